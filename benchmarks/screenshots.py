"""The pictures of the report and of the live page in docs: in light, in dark, and on a telephone, by Chromium.

    .venv/bin/headway compare --report report.html
    python -m benchmarks.screenshots report.html docs
    python -m benchmarks.screenshots http://127.0.0.1:8000/headway/ docs

A report gives `report.png` (its charts of TTFT) and `report-page….png`, a live page `serve-page….png`: look at it while
a load has run for some minutes.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.support.chromium import Browser

WIDTH, PHONE_WIDTH = 1_200, 390
CHARTS = "Time to first token by length of prompt"
WAIT_SECONDS = 12.0  # the live page draws its charts each 10 s


async def shot(browser: Browser, file: Path, width: int, scheme: str, span: tuple[float, float]) -> None:
    """One picture: the part of the page between these two heights."""
    size = {"width": width, "height": 1_500, "deviceScaleFactor": 1, "mobile": width == PHONE_WIDTH}
    await browser.tell("Emulation.setDeviceMetricsOverride", **size)
    await browser.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    await asyncio.sleep(1.0)  # it is laid out anew
    clip = {"x": 0, "y": span[0], "width": width, "height": span[1] - span[0], "scale": 1}
    taken = Image.open(BytesIO(await browser.picture(clip=clip, captureBeyondViewport=True)))
    # An octree keeps the few pixels of a thin line in their colour; the median cut mixes them with others.
    taken.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        file, optimize=True
    )


async def charts_span(browser: Browser) -> tuple[float, float]:
    """Where a report's charts of TTFT stand, with their heading and legend."""
    size = {"width": WIDTH, "height": 1_500, "deviceScaleFactor": 1, "mobile": False}
    await browser.tell("Emulation.setDeviceMetricsOverride", **size)
    top, bottom = await browser.value(
        "(() => { const head = [...document.querySelectorAll('h3')].find((one) => one.innerText === '" + CHARTS + "');"
        "let last = head; while (!last.classList.contains('panels')) last = last.nextElementSibling;"
        "return [head.getBoundingClientRect().top, last.getBoundingClientRect().bottom]; })()"
    )
    return top - 14, bottom + 6


async def take(address: str, folder: Path) -> None:
    """All pictures of one page, a report's file or a live page's address."""
    is_live = address.startswith("http")
    name, height, phone_height = ("serve-page", 1_200, 1_500) if is_live else ("report-page", 2_420, 1_900)
    with tempfile.TemporaryDirectory() as profile:
        async with Browser(Path(profile)) as browser:
            await browser.tell("Page.navigate", url=address if is_live else Path(address).resolve().as_uri())
            await browser.until("document.readyState === 'complete'")
            await asyncio.sleep(WAIT_SECONDS if is_live else 0.0)
            if not is_live:
                await shot(browser, folder / "report.png", WIDTH, "light", await charts_span(browser))
            await shot(browser, folder / f"{name}.png", WIDTH, "light", (0, height))
            await shot(browser, folder / f"{name}-dark.png", WIDTH, "dark", (0, height))
            await shot(browser, folder / f"{name}-phone.png", PHONE_WIDTH, "light", (0, phone_height))


if __name__ == "__main__":
    asyncio.run(take(sys.argv[1], Path(sys.argv[2])))
