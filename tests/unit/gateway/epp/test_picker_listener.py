"""Settings of the endpoint picker that cannot work behind Envoy are refused at the start."""

from __future__ import annotations

import pytest

from headway.gateway.settings import QueueSettings, ReplicaSettings, Settings

pytest.importorskip("hpack", reason="the extra `epp` is not installed")
from headway.gateway.epp.picker_listener import PickerSettings, check_picker

WAITS_600_S = Settings(queue=QueueSettings(timeout_seconds=600.0))


@pytest.mark.parametrize("seconds", [0.2, 600.0])
def test_a_queue_that_outlasts_envoys_patience_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=rf"`queue.timeout_seconds` is 600 and Envoy's timeout {seconds:g} s"):
        check_picker(PickerSettings(envoy_timeout_seconds=seconds), WAITS_600_S)


@pytest.mark.parametrize("seconds", [600.5, None])
def test_one_that_does_not_is_taken(seconds: float | None) -> None:
    check_picker(PickerSettings(envoy_timeout_seconds=seconds), WAITS_600_S)


@pytest.mark.parametrize(
    ("url", "is_taken"),
    [("http://10.0.0.1:8000", True), ("http://[::1]:8000", True), ("http://engine.example:8000", False)],
)
def test_engines_are_named_by_address(url: str, is_taken: bool) -> None:
    settings = Settings(replica=(ReplicaSettings(url=url),))
    if is_taken:
        check_picker(PickerSettings(), settings)
    else:
        with pytest.raises(ValueError, match=r"replica\[0\].url must name the engine by its IP address"):
            check_picker(PickerSettings(), settings)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="grpc-listen must be host:port"):
        check_picker(PickerSettings(listen="9002"), Settings())


def test_tls_without_a_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="`--grpc-tls` needs a certificate"):
        check_picker(PickerSettings(speaks_tls=True), Settings())
