"""What a fit tries: one form of link."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Candidate"]


@dataclass(frozen=True)
class Candidate:
    """One form of link: its members, and whether it has covariates.

    `tied` gives the tie evidence the coefficient of the margin, `fixed` uses the evidence as it is, and `blank` ignores
    the evidence. `shipped` is the outcome model that the only member had before the fit, `shrunk` shrinks towards that of a
    member.
    """

    name: str
    kind: str
    members: tuple[int, ...]
    covariates: bool = False
    tied: bool = False
    fixed: bool = False
    blank: bool = False
    shipped: bool = False
    shrunk: bool = False
