"""The picture of the README: the same thirty requests, first come, first served, and under the default order.

Six documents of 50,000 tokens wait when twenty-four short chats come, four a second. Simulated: Llama-3.1-8B, one H100.

    python -m benchmarks.queue_picture docs/queue.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.report.markup import Markup, tag
from headway.simulator.replica import replica
from headway.simulator.trace import Trace

DOCUMENTS, CHATS = 6, 24
ORDERS = {"fcfs": "First come, first served", "highest-response-ratio": "Headway"}
_PANEL, _GAP, _TOP, _ROW, _SECONDS = 400, 40, 62, 8, 12
_STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 18px; font-weight: 600 }
.quiet, .axis text { fill: #59636e; font-size: 12px }
.axis line { stroke: #d1d9e0 }
.document { fill: #e0803a } .chat { fill: #2f6fde }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .quiet, .axis text { fill: #9198a1 } .axis line { stroke: #3d444d }
  .document { fill: #f0965a } .chat { fill: #6ea0ff }
}
"""

Seconds = npt.NDArray[np.float64]


def traffic() -> Trace:
    """The requests: documents first, then chats."""
    arrival = np.concatenate([np.zeros(DOCUMENTS), 0.2 + 0.25 * np.arange(CHATS)])
    prompt = np.repeat([50_000, 300], [DOCUMENTS, CHATS])
    return Trace("queue", arrival, prompt, np.repeat([200, 150], [DOCUMENTS, CHATS]))


def waits(ordering: str) -> tuple[Seconds, Seconds]:
    """Arrival and time of the first token, both in seconds, of every request under an order."""
    day = simulate_bundle(traffic(), replica("h100", "llama-3.1-8b"), Bundle(label=ordering, ordering=ordering), 0)
    return day.arrived_ps / 1e12, day.first_token_ps / 1e12


def picture() -> str:
    """An SVG document that follows the reader's light or dark colours."""
    width, height = 2 * _PANEL + _GAP, _TOP + (DOCUMENTS + CHATS) * _ROW + 70
    panels = [
        tag("g", _panel(title, *waits(ordering)), transform=f"translate({place * (_PANEL + _GAP)} 0)")
        for place, (ordering, title) in enumerate(ORDERS.items())
    ]
    key = tag(
        "g",
        tag("rect", class_="document", x=0, y=height - 14, width=24, height=6),
        tag("text", f"{DOCUMENTS} documents of 50,000 tokens", x=30, y=height - 6),
        tag("rect", class_="chat", x=_PANEL + _GAP, y=height - 14, width=24, height=6),
        tag(
            "text", f"{CHATS} short chats; a bar lasts from arrival to first token", x=_PANEL + _GAP + 30, y=height - 6
        ),
    )
    document = tag(
        "svg", tag("style", Markup(_STYLE)), *panels, key,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
    )  # fmt: skip
    return f"{document}\n"


def _panel(title: str, arrived: Seconds, first_token: Seconds) -> Markup:
    waited = first_token - arrived
    chats, documents = waited[DOCUMENTS:].mean(), waited[:DOCUMENTS].mean()
    scale, bottom = _PANEL / _SECONDS, _TOP + (DOCUMENTS + CHATS) * _ROW
    bars = [
        tag("rect", class_="document" if row < DOCUMENTS else "chat", x=f"{begin * scale:.1f}", y=_TOP + row * _ROW,
            width=f"{length * scale:.1f}", height=_ROW - 2, rx=2)
        for row, (begin, length) in enumerate(zip(arrived, waited, strict=True))
    ]  # fmt: skip
    ticks = [
        tag("g", tag("line", x1=at * scale, x2=at * scale, y1=_TOP - 4, y2=bottom + 4),
            tag("text", f"{at} s", x=at * scale, y=bottom + 20, text_anchor="start" if at == 0 else "middle"))
        for at in range(0, _SECONDS, 2)
    ]  # fmt: skip
    return tag(
        "g",
        tag("text", title, class_="title", x=0, y=20),
        tag("text", f"A chat waits {chats:.1f} s on average, a document {documents:.1f} s.", x=0, y=44),
        tag("g", *ticks, class_="axis"),
        *bars,
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
