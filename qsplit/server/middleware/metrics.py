"""What is counted and timed, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qsplit.server.engine.halves import Engine

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """The figures of one service; each has a registry of its own, so that two of them can share a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "qsplit_requests", "Requests that were answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "qsplit_request_seconds", "Time to the last byte.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.running = Gauge("qsplit_requests_running", "Requests being answered now.", registry=self.registry)
        self.uploads = Counter(
            "qsplit_uploads", "Pictures that were sent in, by what became of them.", ["outcome"], registry=self.registry
        )

    def watch(self, engine: Engine) -> None:
        """Tell how many answers are waited for and written, whenever that is read."""
        waiting = Gauge("qsplit_answers_waiting", "Requests that wait for the model.", registry=self.registry)
        running = Gauge("qsplit_answers_running", "Answers that are written together now.", registry=self.registry)
        waiting.set_function(lambda: engine.n_waiting)
        running.set_function(lambda: engine.n_running)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
