"""Series of the metrics: what is counted for each model and tenant, with a bound on how many are kept apart.

Law: no sum is lost. A series that has to make room is added to its model's series `other`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from headway.gateway.observing.prometheus_text import BucketHistogram, label_text
from headway.gateway.replicas.inter_token_latency import TOKEN_SECONDS

OTHER = "other"


class TrafficSeries:
    """What is counted for one model and one tenant. Its writer clears `text`, the lines as they were written last."""

    __slots__ = ("duration", "input_tokens", "labels", "output_tokens", "queue", "requests", "text", "tpot", "ttft")

    def __init__(self, model: str, tenant: str) -> None:
        self.labels = label_text({"model_name": model, "fairness_id": tenant})
        self.requests: Counter[tuple[str, str]] = Counter()  # (outcome, reason)
        self.queue = BucketHistogram()
        self.ttft = BucketHistogram()
        self.tpot = BucketHistogram(TOKEN_SECONDS)
        self.duration = BucketHistogram()
        self.input_tokens = 0
        self.output_tokens = 0
        self.text: tuple[str, ...] | None = None

    @property
    def histograms(self) -> tuple[BucketHistogram, ...]:
        """All of them, in the order in which they are written."""
        return self.queue, self.ttft, self.tpot, self.duration

    def add(self, other: TrafficSeries) -> None:
        """Take the counts of another series too."""
        self.requests.update(other.requests)
        for ours, theirs in zip(self.histograms, other.histograms, strict=True):
            ours.add(theirs.counts, theirs.sum)
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.text = None


class BoundedLabels:
    """The first values of a label, as many as are allowed; later ones become "other"."""

    def __init__(self, values_max: int) -> None:
        self._known: set[str] = set()
        self._values_max = values_max

    def __call__(self, value: str) -> str:
        """The value, or "other" beyond the limit."""
        if value in self._known:
            return value
        if len(self._known) >= self._values_max:
            return OTHER
        self._known.add(value)
        return value


class SeriesByLabels:
    """The series, those of tenants used least lately first. At most `series_max` of them, and one `other` per model."""

    def __init__(self, series_max: int) -> None:
        self._series_max = series_max
        self._model = BoundedLabels(series_max)
        self._of_tenants: OrderedDict[tuple[str, str], TrafficSeries] = OrderedDict()
        self._others: dict[str, TrafficSeries] = {}  # by model

    def of(self, model: str, tenant: str) -> TrafficSeries:
        """The series to count in."""
        key = model, tenant
        series = self._of_tenants.get(key)
        if series is None:
            model = self._model(model)
            series = self._of_tenants.get((model, tenant))
            key = model, tenant
        if series is not None:
            self._of_tenants.move_to_end(key)
            return series
        if tenant == OTHER:
            return self._other(model)
        if len(self._of_tenants) >= self._series_max:
            (last_model, _), oldest = self._of_tenants.popitem(last=False)
            self._other(last_model).add(oldest)
        series = self._of_tenants[key] = TrafficSeries(model, tenant)
        return series

    def all(self) -> list[TrafficSeries]:
        """Every series."""
        return [*self._of_tenants.values(), *self._others.values()]

    def _other(self, model: str) -> TrafficSeries:
        series = self._others.get(model)
        if series is None:
            series = self._others[model] = TrafficSeries(model, OTHER)
        return series
