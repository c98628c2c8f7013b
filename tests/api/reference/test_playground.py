"""The playground in a real browser: it renders, it authorises once, and its calls are answered live."""

import base64
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from deployerp.core.settings import Settings
from tests.conftest import Client, Fleet, free_port
from tests.serving import listening

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# A picture has its colours counted where it can be read without another library: in the browser.
COLOURS = """async picture => {
    const image = new Image();
    image.src = "data:image/png;base64," + picture;
    await image.decode();
    const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
    canvas.drawImage(image, 0, 0);
    const pixels = new Uint32Array(canvas.getImageData(0, 0, image.width, image.height).data.buffer);
    const counted = new Map();
    pixels.forEach(pixel => counted.set(pixel, (counted.get(pixel) ?? 0) + 1));
    return {colours: counted.size, ground: Math.max(...counted.values()) / pixels.length};
}"""
# What keeps the page from a neighbour who would let nobody in, either.
REFUSED_BY = """neighbour => new Promise(resolve => {
    document.addEventListener("securitypolicyviolation", event => resolve(event.effectiveDirective));
    fetch(neighbour).catch(() => setTimeout(() => resolve("nothing"), 1000));
})"""


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    # What the browser sees does not depend on the kind of database.
    return sqlite_url


@pytest.fixture
async def address(settings: Settings) -> AsyncIterator[str]:
    async with listening(settings) as address:
        yield address


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert program, "Chromium is missing: `scripts/system-packages chromium` installs it"
    async with async_playwright() as playwright:
        # Its sandbox does not work for root, and it opens nothing but our own page.
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield await browser.new_page()
        await browser.close()


async def test_calls_are_made_in_the_playground(
    address: str, page: Page, client: Client, fleet: Fleet, tmp_path: Path
) -> None:
    requested, complaints = [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    server = await fleet.server("shown-in-the-playground")

    await page.goto(f"{address}/playground")
    await expect(page.get_by_role("heading", name="deployERP")).to_be_visible()
    for path in ("/v1/servers", "/v1/instances"):
        await expect(page.locator(f'.opblock-get [data-path="{path}"]')).to_be_visible()
    picture = await page.screenshot(path=tmp_path / "playground.png", full_page=True)
    seen = await page.evaluate(COLOURS, base64.b64encode(picture).decode())
    assert seen["colours"] > 100
    assert seen["ground"] < 0.9

    await page.get_by_role("button", name="Authorize").click()
    await page.get_by_label("auth-bearer-value").fill(client.token)
    await page.get_by_role("button", name="Apply credentials").click()
    await expect(page.get_by_role("button", name="Remove authorization")).to_be_visible()

    await page.goto(f"{address}/playground#/servers/list_servers")
    await page.reload()
    called = page.locator("#operations-servers-list_servers")
    await called.get_by_role("button", name="Execute").click()
    answer = called.locator(".live-responses-table .response")
    await expect(answer.locator(".response-col_status")).to_contain_text("200")
    for told in ('"success"', '"request_id"', server["id"], server["name"]):
        await expect(answer.locator(".highlight-code").first).to_contain_text(told)
    await expect(answer.get_by_role("heading", name="Request duration")).to_be_visible()
    await called.screenshot(path=tmp_path / "answer.png")

    assert [url for url in requested if not url.startswith((f"{address}/", "data:"))] == []
    assert complaints == []


async def test_the_playground_speaks_to_nobody_else(address: str, page: Page) -> None:
    await page.goto(f"{address}/playground")
    assert await page.evaluate(REFUSED_BY, f"http://127.0.0.1:{free_port()}/") == "connect-src"
