"""Label values of the metrics are bounded."""

from __future__ import annotations

from headway.gateway.observing.gateway_metrics import LABEL_VALUES_MAX, BoundedLabels


def test_label_values_are_bounded() -> None:
    bounded = BoundedLabels()
    assert {bounded(str(n)) for n in range(LABEL_VALUES_MAX + 50)} == {*map(str, range(LABEL_VALUES_MAX)), "other"}
