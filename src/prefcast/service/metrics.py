"""Counters in the text format of Prometheus. No label holds anything that a client chose."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server. `waiting` gives the number of pairs that wait or are being scored."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "prefcast_requests", "Requests answered.", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "prefcast_request_seconds",
            "From the head of a request to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram("prefcast_batch_items", "Items in a batch.", buckets=_ITEMS, registry=self._registry)
        self._scoring = Counter("prefcast_scoring_seconds", "Seconds spent on scoring.", registry=self._registry)
        self._items = Counter(
            "prefcast_items", "Pairs and conversations answered.", ("outcome",), registry=self._registry
        )
        self._escalated = Counter(
            "prefcast_escalated", "Pairs that the second tier of a cascade scored.", registry=self._registry
        )
        Gauge("prefcast_waiting_items", "Items that wait or are being scored.", registry=self._registry).set_function(
            waiting
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, items: int, seconds: float) -> None:
        self._batches.observe(items)
        self._scoring.inc(seconds)

    def item(self, outcome: str, count: int = 1) -> None:
        """Count an item. `outcome` is forecast, truncated, scored or failed."""
        self._items.labels(outcome).inc(count)

    def escalated(self) -> None:
        """Count a pair that the second tier of a cascade scored."""
        self._escalated.inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
