"""What a server counts, for Prometheus (/metrics)."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server; `watch` adds what is read when it is asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._watched: dict[str, Gauge] = {}
        self.requests = Counter("plait_requests", "Requests by endpoint and status.", ["endpoint", "status"],
                                registry=self.registry)  # fmt: skip
        self.tokens = Counter("plait_tokens", "Tokens that went through the model, prompts included.",
                              registry=self.registry)  # fmt: skip
        self.seconds = Histogram("plait_request_seconds", "Seconds of a request.", ["endpoint"], buckets=SECONDS,
                                 registry=self.registry)  # fmt: skip
        self.first = Histogram("plait_first_token_seconds", "Seconds from a request to its first token or item.",
                               buckets=SECONDS, registry=self.registry)  # fmt: skip

    def watch(self, model: str, figures: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Add figures of a model that are read when they are asked for: a text, and what returns the value."""
        for name, (text, value) in figures.items():
            if name not in self._watched:
                self._watched[name] = Gauge(f"plait_{name}", text, ["model"], registry=self.registry)
            self._watched[name].labels(model).set_function(value)

    def text(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return generate_latest(self.registry)
