"""What the fast engine writes down while a day runs: columns by row, a few machine words a request, and curves."""

from __future__ import annotations

from array import array

import numpy as np

from headway.simulator.outcome import NEVER, DayOutcome, LoadPoints

_CURVE_POINTS = 4_096
_GOLDEN = 0.6180339887498949


class DayColumns:
    """Columns by row of the trace, filled in as facts come; the engines of a fleet share them.

    Attributes:
        lost_tokens: row → prompt tokens that a replica had computed of it when it failed, if it had computed any.
    """

    def __init__(self, requests: int) -> None:
        self.arrived_ps = array("q", [NEVER]) * requests
        self.admitted_ps = array("q", [NEVER]) * requests
        self.first_token_ps = array("q", [NEVER]) * requests
        self.ended_ps = array("q", [NEVER]) * requests
        self.cached_tokens = array("q", [0]) * requests
        self.preemptions = array("q", [0]) * requests
        self.recomputed_tokens = array("q", [0]) * requests
        self.refused: dict[int, str] = {}
        self.lost_tokens: dict[int, int] = {}
        self.gap_columns = (array("q"), array("q"), array("q"), array("q"))

    def gap(self, first_ps: int, growth_ps: int, steps: int, tokens: int) -> None:
        """Note inter-token gaps, see `TokenGaps`."""
        first, growth, count, width = self.gap_columns
        first.append(first_ps)
        growth.append(growth_ps)
        count.append(steps)
        width.append(tokens)

    def admit(self, row: int, at_ps: int, cached_tokens: int) -> None:
        """Note a first admission; later ones change nothing."""
        if self.admitted_ps[row] == NEVER:
            self.admitted_ps[row] = at_ps
            self.cached_tokens[row] = cached_tokens

    def outcome(self, steps: int, kv_blocks_peak: int, load: LoadPoints) -> DayOutcome:
        """Close the day."""
        return DayOutcome(
            arrived_ps=np.array(self.arrived_ps),
            admitted_ps=np.array(self.admitted_ps),
            first_token_ps=np.array(self.first_token_ps),
            ended_ps=np.array(self.ended_ps),
            cached_tokens=np.array(self.cached_tokens),
            preemptions=np.array(self.preemptions),
            recomputed_tokens=np.array(self.recomputed_tokens),
            refused=self.refused,
            makespan_ps=max(0, max(self.ended_ps, default=0)),
            steps=steps,
            kv_blocks_peak=kv_blocks_peak,
            gaps=np.stack([np.array(column) for column in self.gap_columns], axis=1),
            curve_ps=load.at_ps,
            curve_waiting=load.waiting,
            curve_running=load.running,
            curve_blocks=load.blocks,
        )


class LoadCurve:
    """What waits, what runs and how many KV blocks are in use at one replica over the day, thinned to be drawn.

    Attributes:
        blocks_peak: most KV blocks in use at once.
    """

    def __init__(self) -> None:
        self.blocks_peak = 0
        self._curves = (array("q"), array("q"), array("q"), array("q"))

    def points(self) -> LoadPoints:
        """The points to draw."""
        at, waiting, running, blocks = self._curves
        return LoadPoints(at.tolist(), waiting.tolist(), running.tolist(), blocks.tolist())

    def sample(self, at_ps: int, waiting: int, running: int, blocks: int) -> None:
        """Note a point of the curves, which are thinned whenever they grow too long to draw."""
        if blocks > self.blocks_peak:  # noqa: PLR1730 - max() would cost a call in the hot path
            self.blocks_peak = blocks
        at_curve, waiting_curve, running_curve, blocks_curve = self._curves
        at_curve.append(at_ps)
        waiting_curve.append(waiting)
        running_curve.append(running)
        blocks_curve.append(blocks)
        if len(at_curve) >= 2 * _CURVE_POINTS:
            self._thin()

    def _thin(self) -> None:
        """Cut the day so far into equal spans; of each keep what the curves show at one moment inside, and the latest.

        By time and not every second point: busy and idle points come by turns, and one kind would be dropped. The
        moments are scattered (multiples of the golden ratio), for traffic may be regular too.
        """
        at = np.array(self._curves[0])
        span = (float(at[-1]) - float(at[0])) / _CURVE_POINTS
        places = np.arange(_CURVE_POINTS)
        starts = (at[0] + places * span).astype(np.int64)
        moments = at[0] + (places + places * _GOLDEN % 1.0) * span
        kept = np.append(np.searchsorted(at, moments, side="right") - 1, len(at) - 1)
        times = np.append(starts, at[-1]).tolist()
        values = (array("q", np.array(curve)[kept].tolist()) for curve in self._curves[1:])
        self._curves = (array("q", times), *values)  # type: ignore[assignment]
