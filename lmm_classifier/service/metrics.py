"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""HTTP methods used as a label; all others are counted as one, which bounds how many labels are kept."""
PHOTOS = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """Counts of one service; two in one process do not mix."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "lmm_requests", "Requests answered.", ("route", "method", "status"), registry=registry
        )
        self._seconds = Histogram(
            "lmm_request_seconds",
            "From a request's headers to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._step_seconds = Histogram(
            "lmm_step_seconds", "A batch's time in a step.", ("step",), buckets=_SECONDS, registry=registry
        )
        self._photos = Histogram(
            "lmm_step_photos", "Photos of a batch.", ("step",), buckets=PHOTOS, registry=registry
        )
        self._inside = Gauge("lmm_photos_inside", "Photos being worked on.", registry=registry)
        self._waiting = Gauge("lmm_photos_waiting", "Photos that wait before a step.", registry=registry)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered; `route` is one of those there are, not what was asked for."""
        known = method if method in _METHODS else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, step: str, photos: int, seconds: float) -> None:
        """Count a batch that went through a step."""
        self._step_seconds.labels(step).observe(seconds)
        self._photos.labels(step).observe(photos)

    def watch(self, inside: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Ask these for the gauges."""
        self._inside.set_function(inside)
        self._waiting.set_function(waiting)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)
