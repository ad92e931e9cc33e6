"""A recording: a trace with the TTFT and the end-to-end latency that a real engine measured for each request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headway.bench.traces.reshaping import Rows, head
from headway.simulator.trace import Trace

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recording:
    """What one engine did to one trace.

    Attributes:
        trace: the requests.
        ttft_seconds: measured, arrival to first token; NaN where it was not measured.
        e2e_seconds: measured, arrival to last token; likewise.
        label: where it comes from.
        notes: what the user should know about how it was read, one sentence each.
    """

    trace: Trace
    ttft_seconds: Seconds
    e2e_seconds: Seconds
    label: str
    notes: Sequence[str] = ()

    @property
    def tpot_seconds(self) -> Seconds:
        """Measured seconds per token after the first; NaN for a single token."""
        return seconds_per_token(self.trace, self.ttft_seconds, self.e2e_seconds)

    def as_trace(self) -> Trace:
        """The trace with the measured times in it, to write to a file."""
        return replace(self.trace, measured_ttft_seconds=self.ttft_seconds, measured_e2e_seconds=self.e2e_seconds)

    def measured_only(self, rows: Rows) -> Recording:
        """The same day with the measured times of these rows only; the others are held out."""
        seen = np.zeros(len(self.trace), bool)
        seen[rows] = True
        return replace(
            self,
            ttft_seconds=np.where(seen, self.ttft_seconds, np.nan),
            e2e_seconds=np.where(seen, self.e2e_seconds, np.nan),
        )

    def first(self, requests: int) -> Recording:
        """The first `requests` of it, all where there are fewer."""
        count = min(requests, len(self.trace))
        return replace(
            self,
            trace=head(self.trace, count),
            ttft_seconds=self.ttft_seconds[:count],
            e2e_seconds=self.e2e_seconds[:count],
        )


def seconds_per_token(trace: Trace, ttft: Seconds, e2e: Seconds) -> Seconds:
    """(e2e - TTFT) / (output - 1), NaN where the output is one token."""
    gaps = trace.output_tokens - 1
    return np.where(gaps > 0, (e2e - ttft) / np.maximum(gaps, 1), np.nan)


def tokens_per_second(trace: Trace, e2e: Seconds) -> float:
    """Output tokens of the requests with an end, over the seconds from the first arrival to the last end; 0 if none."""
    known = np.isfinite(e2e)
    if not known.any():
        return 0.0
    seconds = float((trace.arrived_seconds + e2e)[known].max() - trace.arrived_seconds[known].min())
    return float(trace.output_tokens[known].sum()) / seconds if seconds > 0 else 0.0


def of_trace(trace: Trace, label: str) -> Recording | None:
    """The recording in a trace that has measured times; None without any."""
    ttft, e2e = trace.measured_ttft_seconds, trace.measured_e2e_seconds
    if ttft is None or e2e is None or not np.isfinite(e2e).any():
        return None
    return Recording(trace, ttft, e2e, label)
