"""The live page in a real browser, under load: what it shows, by keyboard, in the dark, to a screen reader, offline."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headway.gateway.settings import QueueSettings
from tests.support.chromium import CHROMIUM, Browser
from tests.support.gateway_setup import RunGateway, Setup, completion
from tests.support.scripted_replica import echoes

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: set HEADWAY_CHROMIUM, or put it on the path")

# Roles whose elements have to have a name for who does not see the page.
NAMED = {
    "button",
    "textbox",
    "link",
    "table",
    "heading",
    "img",
    "image",
    "form",
    "region",
    "checkbox",
    "combobox",
    "slider",
}
CONTRAST = """(() => {
  const linear = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (node) => { for (let at = node; at; at = at.parentElement) {
    const found = parts(getComputedStyle(at).backgroundColor); if (found.length < 4 || found[3] > 0.99) return found; }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255]; };
  const low = [];
  for (const node of document.body.querySelectorAll("*")) {
    if (![...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim()) || !node.offsetParent) continue;
    const [front, back] = [light(parts(getComputedStyle(node).color).slice(0, 3)), light(behind(node).slice(0, 3))];
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) low.push(`${node.tagName} ${node.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return low; })()"""


async def shows_what_goes_on(setup: Setup, browser: Browser) -> None:
    """Queues, replicas, TTFT by class, refusals, the why of requests."""

    async def text(of: str) -> str:
        return str(await browser.value(f"document.querySelector({of!r}).innerText"))

    assert "generation\t6\t" in await text("#lines")
    assert "r0\tup\t2 / 2" in await text("#replicas")
    assert "below 256\t" in await text("#classes")
    assert "256 to 2,047\t1" in await text("#classes")
    assert "queue-full\t2" in await text("#reasons")
    assert "done-40" in await text("#stories")
    counts = (await text("#counts")).replace("\n", " ")
    assert "arrived 14" in counts
    assert "completed 2" in counts
    await setup.replicas[1].stop()
    await browser.until("document.querySelector('#replicas').innerText.includes('ejected')")
    assert await browser.value("document.querySelector('#chart-waiting svg path.line') !== null")
    assert "6 requests wait" in await text("#waiting-words")
    assert "\t6\t" in await text("#waiting-cells")
    assert "(no name)\t4\t2\t" in await text("#hour-tenants")  # two answered, two refused
    assert await browser.value("document.querySelector('nav a').href") == f"http://127.0.0.1:{setup.port}/metrics"


async def works_by_keyboard(setup: Setup, browser: Browser) -> None:
    """Every control is reached by Tab alone, and shows that it is."""

    async def tab_to(script: str) -> list[str]:
        passed = []
        for _ in range(20):
            await browser.press("Tab", code=9)
            passed.append(str(await browser.value("document.activeElement.id || document.activeElement.tagName")))
            if await browser.value(script):
                return passed
        raise AssertionError(f"never reached: {passed}")

    await tab_to("document.activeElement.classList.contains('skip')")
    assert await browser.value("document.activeElement.getBoundingClientRect().top >= 0")  # it shows itself
    await tab_to("document.activeElement.id === 'pause'")
    seen = "getComputedStyle(document.activeElement)"
    assert await browser.value(f"{seen}.outlineStyle !== 'none' || {seen}.boxShadow !== 'none'")
    await browser.press("Enter", code=13, text="\r")
    assert await browser.value("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
    await browser.press("Enter", code=13, text="\r")
    await tab_to("document.activeElement.id === 'id'")
    await browser.tell("Input.insertText", text="done-40")
    await browser.press("Enter", code=13, text="\r")
    told = await browser.until("document.querySelector('#answer').innerText")
    assert told.startswith("completed after ")
    assert "did not wait" in told
    await browser.value("document.querySelector('#id').value = ''")
    await browser.tell("Input.insertText", text="nobody")
    await browser.press("Enter", code=13, text="\r")
    await browser.until("document.querySelector('#answer').innerText.includes('no such request')")
    browser.faults = [fault for fault in browser.faults if "404" not in fault]  # asked for, and told in words


async def is_readable(setup: Setup, browser: Browser) -> None:
    """For a screen reader, and for eyes, by day and by night."""
    while True:  # charts are drawn anew each ten seconds, and the browser needs a moment to tell of them
        nodes = (await browser.tell("Accessibility.getFullAXTree"))["nodes"]
        told = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")]
        if (roles := {role for role, _ in told}) & {"img", "image"}:
            break
        await asyncio.sleep(0.1)
    assert {"button", "textbox", "heading", "table", "main"} < roles
    assert [role for role, name in told if role in NAMED and not name.strip()] == []
    assert await browser.value("document.documentElement.lang") == "en"
    assert await browser.value("document.title") == "Headway"
    ids = await browser.value("[...document.querySelectorAll('[id]')].map((one) => one.getAttribute('id'))")
    assert len(ids) == len(set(ids))
    levels = await browser.value("[...document.querySelectorAll('h1,h2,h3')].map((one) => one.tagName)")
    assert levels[0] == "H1"
    assert levels.count("H1") == 1
    backgrounds = set()
    for scheme in ("light", "dark"):
        await browser.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert await browser.value(CONTRAST) == []
        backgrounds.add(await browser.value("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


async def fits_a_telephone(setup: Setup, browser: Browser) -> None:
    """Nothing sticks out."""
    for width in (360, 1_280):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        await browser.tell("Emulation.setDeviceMetricsOverride", **size)
        assert await browser.value("document.documentElement.scrollWidth <= innerWidth")


async def says_when_it_is_cut_off(setup: Setup, browser: Browser) -> None:
    """And goes on when it is not."""
    await browser.tell(
        "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
    )
    await browser.until("document.querySelector('#news').innerText.includes('does not answer')")
    await browser.tell(
        "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )
    await browser.until("document.querySelector('#news').innerText === ''")
    browser.faults = [fault for fault in browser.faults if "ERR_INTERNET_DISCONNECTED" not in fault]


async def behind_a_prefix(port: int, prefix: bytes) -> asyncio.Server:
    """A proxy that takes a prefix off each path, as an ingress does; other paths are not found."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, rest = head.split(b" ", 2)
        if path.startswith(prefix + b"/"):
            line, _, headers = rest.partition(b"\r\n")
            there, gateway = await asyncio.open_connection("127.0.0.1", port)
            target = path.removeprefix(prefix)
            kept = [one for one in headers.split(b"\r\n") if one and not one.lower().startswith(b"connection:")]
            gateway.write(b"\r\n".join([b"%s %s %s" % (method, target, line), *kept, b"connection: close", b"", b""]))
            writer.write(await there.read())
            gateway.close()
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    return await asyncio.start_server(pass_on, "127.0.0.1", 0)


def test_the_page_behind_a_path_prefix(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = echoes()
        await setup.ask(completion(), headers="x-request-id: one\r\n")
        server = await behind_a_prefix(setup.port, b"/team/llm")
        origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/team/llm/"
        async with Browser(tmp_path) as browser:
            await browser.tell("Page.navigate", url=origin + "headway")  # sent on to the slash, below the prefix
            await browser.until("document.querySelectorAll('#hour-tenants tr, #stories td').length > 1")
            assert await browser.value("location.href") == origin + "headway/"
            assert "one" in await browser.value("document.querySelector('#stories').innerText")
            assert await browser.value("document.querySelector('nav a').href") == origin + "metrics"
            await browser.value("document.querySelector('#id').value = 'one'")
            await browser.value("document.querySelector('#find button').click()")
            told = await browser.until("document.querySelector('#answer').innerText")
            assert told.startswith("completed after ")
            assert not [url for url in browser.requests if not url.startswith((origin, "data:", "about:"))]
            assert browser.faults == []
        server.close()

    run_gateway(scenario, replicas=1)


def test_many_replicas_and_tenants_fit_a_telephone(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        for one in setup.replicas:
            one.usual = echoes(tokens=1)
        for begin in range(0, 1_000, 100):
            headers = [f"x-gateway-inference-fairness-id: tenant-{begin + number}\r\n" for number in range(100)]
            await asyncio.gather(*(setup.ask(completion(), headers=one) for one in headers))
        async with Browser(tmp_path) as browser:
            size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
            await browser.tell("Emulation.setDeviceMetricsOverride", **size)
            await browser.tell("Page.navigate", url=f"http://127.0.0.1:{setup.port}/headway/")
            await browser.until("document.querySelectorAll('#hour-tenants tr').length > 1")
            assert await browser.value("document.querySelectorAll('#replicas tr').length") == 50
            assert await browser.value("document.querySelectorAll('#hour-tenants tr').length") == 11
            assert "others" in await browser.value("document.querySelector('#hour-tenants').innerText")
            assert await browser.value("document.documentElement.scrollWidth <= innerWidth")
            wide = (
                "[...document.querySelectorAll('td')].filter((one) => one.getBoundingClientRect().right > innerWidth)"
            )
            assert await browser.value(f"{wide}.map((one) => one.innerText)") == []
            assert browser.faults == []

    run_gateway(scenario, replicas=50)


def test_the_page_under_load_in_a_browser(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = setup.replicas[1].usual = echoes()
        for size in (40, 4_000):  # far from the bounds of their classes, however many bytes a token seems to have
            await setup.ask(completion(prompt="p" * size), headers=f"x-request-id: done-{size}\r\n")
        setup.replicas[0].usual = setup.replicas[1].usual = echoes(gate=gate)
        asking = [asyncio.ensure_future(setup.ask()) for _ in range(12)]  # four run, six wait, two are refused
        await setup.until(lambda: setup.dispatcher.counts.arrived == 14 and setup.dispatcher.counts.inside == 10)
        origin = f"http://127.0.0.1:{setup.port}/"
        async with Browser(tmp_path) as browser:
            await browser.tell("Page.navigate", url=origin + "headway/")
            await browser.until("document.querySelectorAll('#stories tr, #chart-waiting svg').length > 2")
            for check in (
                is_readable,
                fits_a_telephone,
                works_by_keyboard,
                says_when_it_is_cut_off,
                shows_what_goes_on,
            ):
                await check(setup, browser)
                assert browser.faults == [], check.__name__
            assert not [url for url in browser.requests if not url.startswith((origin, "data:", "about:"))]
        gate.set()
        await asyncio.gather(*asking)

    run_gateway(scenario, replicas=2, seats=2, queue=QueueSettings(max_requests=6))
