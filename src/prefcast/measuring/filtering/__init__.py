"""Which rows of preference data stay: by the forecast of their labels, by leaks into benchmarks, and by duplicates."""

from __future__ import annotations

from prefcast.measuring.filtering.verdicts import REASONS, FilterRule, Verdicts, judged
from prefcast.measuring.filtering.writing import Filtered, write_filtered

__all__ = ["REASONS", "FilterRule", "Filtered", "Verdicts", "judged", "write_filtered"]
