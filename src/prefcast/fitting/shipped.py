"""The outcome model that a forecaster had before a fit ("as shipped")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefcast.forecasts.fitted_rows import FittedRows
from prefcast.outcomes.models import FittedModel, Link

__all__ = ["Shipped"]


@dataclass(frozen=True)
class Shipped:
    """The outcome model of a forecaster before the fit. `link` has its draws, None if it has none; `prior_tie` is its share
    of ties. `fitted_rows` are the rows that the forecaster was fitted on, None if it does not say."""

    outcome: FittedModel
    link: Link | None
    prior_tie: float
    fitted_rows: FittedRows | None = None

    def as_link(self, member: int) -> Link:
        """The outcome model as a link of the columns of this member; without draws of its own it has one, itself."""
        link, theta = self.link, np.array([self.outcome.scale, self.outcome.level, self.outcome.tie_weight])
        drawn = link is not None and (link.margin, link.tie) == (("margin",), ("tie",)) and len(link.draws) > 0
        draws = link.draws if link is not None and drawn else theta[None, :]
        return Link(self.outcome.kind, (f"margin:{member}",), (f"tie:{member}",), theta, draws)
