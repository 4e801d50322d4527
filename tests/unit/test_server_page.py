"""The web page in a real browser: every step a visitor takes, by mouse, keyboard and microphone.

Needs Debian's chromium (`apt-get install chromium`) or another one named by OMNIROUTER_CHROMIUM.
OMNIROUTER_SCREENSHOTS names a folder for pictures of the page, to look at.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from omnirouter.config import Access, own_names
from omnirouter.serve.http.app import create_app
from omnirouter.serve.http.app_state import ServedModel
from omnirouter.serve.transcriber import Transcriber

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
Running = Callable[[Any], AbstractContextManager[str]]
KEY = "a key of sixteen letters or more"
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = os.environ.get("OMNIROUTER_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium, or set OMNIROUTER_CHROMIUM")
    from playwright.sync_api import sync_playwright

    arguments = [
        "--no-sandbox",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--autoplay-policy=no-user-gesture-required",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(served: list[ServedModel], running: Running) -> Iterator[str]:
    with running(create_app(served, access=Access(hosts=own_names("127.0.0.1")))) as address:
        yield address


@pytest.fixture(scope="module")
def locked(served: list[ServedModel], running: Running) -> Iterator[str]:
    access = Access(api_key=KEY, hosts=own_names("127.0.0.1"))
    with running(create_app(served[:1], access=access)) as address:
        yield address


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory, noise_file: Callable[..., bytes]) -> Path:
    path = tmp_path_factory.mktemp("page") / "a talk.wav"
    path.write_bytes(noise_file(4.0))
    return path


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page; afterwards nothing came from elsewhere, and nothing went wrong in it."""
    pages, wrong = [], []

    def opened(address: str, size: str = "desktop", scheme: Any = "light") -> Page:
        width, height = WIDTHS[size]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            has_touch=size == "phone",
            is_mobile=size == "phone",
            permissions=["microphone"],
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        own = (address, "blob:", "data:")
        page.on("request", lambda r: None if r.url.startswith(own) else wrong.append(r.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.goto(address)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.context.close()
    assert [text for text in wrong if "status of 40" not in text] == []


def transcribed(page: Page, talk: Path, beside: str = "") -> None:
    if beside:
        page.get_by_label("Compare with").select_option(beside)
    page.locator("#file").set_input_files(talk)
    until(page, "document.querySelector('#status').textContent.includes('done in')")


def until(page: Page, condition: str) -> None:
    """Wait for JavaScript to be true; Playwright's own way needs eval, which the page forbids."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def shot(page: Page, name: str) -> None:
    folder = os.environ.get("OMNIROUTER_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_two_models_side_by_side(
    visit: Callable[..., Page], address: str, talk: Path, noise_file: Callable[..., bytes]
) -> None:
    """Words, strips of both models, what the mouse finds there, and files to take away."""
    page = visit(address)
    transcribed(page, talk, beside="switch")
    route = f"{address}/v1/audio/transcriptions"
    answers = {}
    for name in ("omni", "switch"):
        form = {
            "model": name,
            "response_format": "verbose_json",
            "timestamp_granularities[]": "word",
            "include[]": "subtitles",
        }
        files = {"file": talk.read_bytes()}
        answers[name] = httpx.post(route, data=form, files=files).json()
        words = page.locator(f"article[data-model={name}] .words .word")
        assert words.all_text_contents() == [word["word"] for word in answers[name]["words"]]
    strips = page.locator("#strips canvas")
    assert strips.count() == 2
    box = strips.nth(1).bounding_box()
    assert box is not None
    strips.nth(1).hover(position={"x": box["width"] / 2, "y": 0.9 * box["height"]})
    readout = page.locator("#readout").text_content() or ""
    assert re.search(
        r"^2\.\d\d s · switch layer 1: expert [1-4], color [1-4], gate 0\.\d\d", readout
    )
    assert "omni layer" not in readout
    for kind in ("srt", "vtt"):
        with page.expect_download() as download:
            page.locator("article[data-model=switch]").get_by_role("button", name=kind).click()
        assert download.value.suggested_filename == f"a talk.switch.{kind}"
        saved = Path(download.value.path()).read_text(encoding="utf-8")
        assert saved == answers["switch"]["subtitles"][kind]
    # the strip shows what the server says of the same stretch
    form = {"model": "switch"}
    found = httpx.post(f"{address}/v1/inspect", data=form, files={"file": talk.read_bytes()}).json()
    assert (len(found["layers"]), found["num_experts"], found["seconds"]) == (3, 4, 4.0)


def test_a_file_before_the_models_are_listed(
    visit: Callable[..., Page], address: str, talk: Path
) -> None:
    """Who is faster than the server's list of models need not ask twice."""
    page = visit(address)
    held: list[Any] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    page.locator("#file").set_input_files(talk)
    page.wait_for_timeout(200)
    assert len(held) == 1
    held[0].continue_()
    until(page, "document.querySelector('#status').textContent.includes('done in')")


def test_words_light_up(visit: Callable[..., Page], address: str, talk: Path) -> None:
    """A click on a word plays from there, and the word said is the one lit."""
    page = visit(address)
    transcribed(page, talk)
    words = page.locator(".words .word")
    word = words.nth(words.count() // 2)
    title = word.get_attribute("title") or ""
    start = float(title.split(" s,")[0])
    word.click()
    until(page, "document.querySelector('.words .now') !== null")
    assert page.evaluate("document.querySelector('#audio').currentTime") >= start - 0.01
    page.evaluate("document.querySelector('#audio').pause()")
    assert "done in" in (page.locator("#status").text_content() or "")
    lit = page.evaluate(
        """() => new Promise((done) => {
          const audio = document.querySelector('#audio');
          const words = [...document.querySelectorAll('.words .word')];
          const begins = words.map((word) => parseFloat(word.title));
          const found = [];
          const next = (i) => {
            if (i === words.length) return done(found);
            audio.addEventListener('seeked', () => setTimeout(() => {
              found.push(words.findIndex((word) => word.classList.contains('now')));
              next(i + 1);
            }), { once: true });
            audio.currentTime = begins[i] + 0.005;
          };
          next(0);
        })"""
    )
    assert lit == list(range(words.count()))


def test_by_keyboard_alone(visit: Callable[..., Page], address: str, talk: Path) -> None:
    """Everything can be reached and used without a mouse."""
    page = visit(address)
    transcribed(page, talk)
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
        if seen[-1] == "time":
            break
    assert {"file", "record", "model", "go", "time"} <= set(seen)
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    text = page.locator("#time").get_attribute("aria-valuetext") or ""
    assert text.startswith("0.12 s, omni layer 2: expert ")
    page.keyboard.press("Enter")
    until(page, "!document.querySelector('#audio').paused")
    page.keyboard.press("Space")
    until(page, "document.querySelector('#audio').paused")
    words = page.locator(".words .word")
    for _ in range(6):  # back over the downloads and Copy
        page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == words.first.text_content()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == words.nth(1).text_content()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_dropping_a_file(visit: Callable[..., Page], address: str, talk: Path) -> None:
    page = visit(address)
    until(page, "document.querySelector('#model').value === 'omni'")
    dropped = page.evaluate_handle(
        """(text) => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], 'dropped.wav'));
          return data;
        }""",
        base64.b64encode(talk.read_bytes()).decode(),
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": dropped})
    assert page.locator("#drop.over").count() == 1
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    page.get_by_role("heading", name="dropped.wav").wait_for()
    assert page.locator("#drop.over").count() == 0


def test_microphone(visit: Callable[..., Page], address: str) -> None:
    """What the browser's fake microphone beeps comes back as a recording that plays."""
    page = visit(address)
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("button", name="Stop recording").wait_for()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop recording").click()
    until(page, "document.querySelector('#status').textContent.includes('done in')")
    assert page.locator("#result-name").text_content() == "recording.wav"
    until(page, "document.querySelector('#audio').duration > 1")


def test_a_recording_can_be_cancelled(visit: Callable[..., Page], address: str) -> None:
    """It shows its time and level; nothing is sent of it."""
    page = visit(address)
    page.get_by_role("button", name="Record", exact=True).click()
    until(page, "document.querySelector('#timer').textContent === '0:01'")
    until(page, "document.querySelector('#level').value > 0")
    page.get_by_role("button", name="Cancel recording").click()
    page.get_by_text("Recording cancelled.").wait_for()
    assert page.locator("#recording").is_hidden() and page.locator("#result").is_hidden()


def test_live_words(visit: Callable[..., Page], streamer: Transcriber, running: Running) -> None:
    """A model that streams writes while somebody speaks."""
    model = ServedModel("live", streamer, streamer.config)
    with running(create_app([model], access=Access(hosts=own_names("127.0.0.1")))) as place:
        page = visit(place)
        until(page, "document.querySelector('#model').value === 'live'")
        page.get_by_role("button", name="Record", exact=True).click()
        until(page, "!/^(Listening.*)?$/.test(document.querySelector('#live').textContent)")
        shot(page, "live-desktop-light")
        page.get_by_role("button", name="Stop recording").click()
        until(page, "document.querySelector('#status').textContent.includes('done in')")
        assert page.locator("#live").is_hidden()
        page.close()


def test_the_level_can_be_read(visit: Callable[..., Page], address: str) -> None:
    """It falls slowly between the beeps, and begins at nothing in the next recording."""
    page = visit(address)
    for _ in range(2):
        page.get_by_role("button", name="Record", exact=True).click()
        until(page, "document.querySelector('#level').value > 0.02")
        levels = []
        for _ in range(40):
            levels.append(float(page.evaluate("document.querySelector('#level').value")))
            page.wait_for_timeout(50)
        assert min(levels) > max(levels) / 50
        page.get_by_role("button", name="Cancel recording").click()
        page.get_by_text("Recording cancelled.").wait_for()


def test_playing_stops_where_recording_begins(
    visit: Callable[..., Page], address: str, talk: Path
) -> None:
    page = visit(address)
    transcribed(page, talk)
    page.evaluate("document.querySelector('#audio').play()")
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("button", name="Stop recording").wait_for()
    assert page.evaluate("document.querySelector('#audio').paused")
    page.get_by_role("button", name="Cancel recording").click()
    page.get_by_text("Recording cancelled.").wait_for()


def test_live_words_that_end_say_so(
    visit: Callable[..., Page], streamer: Transcriber, running: Running
) -> None:
    """Where the connection fails the page does not go on listening; the recording does."""
    model = ServedModel("live", streamer, streamer.config)
    with running(create_app([model], access=Access(hosts=own_names("127.0.0.1")))) as place:
        page = visit(place)
        page.route_web_socket(re.compile("/v1/audio/stream"), lambda socket: socket.close())
        page.reload()
        until(page, "document.querySelector('#model').value === 'live'")
        page.get_by_role("button", name="Record", exact=True).click()
        page.get_by_text("No live words: the connection ended. The recording goes on.").wait_for()
        until(page, "document.querySelector('#timer').textContent === '0:01'")
        page.get_by_role("button", name="Stop recording").click()
        until(page, "document.querySelector('#status').textContent.includes('done in')")
        page.close()


def test_text_can_be_marked_and_copied(
    visit: Callable[..., Page], address: str, tmp_path: Path, noise_file: Callable[..., bytes]
) -> None:
    """Marking plays nothing; a long text has paragraphs with times, which are not copied."""
    path = tmp_path / "long.wav"
    path.write_bytes(noise_file(65.0, rate=8_000))
    page = visit(address)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    transcribed(page, path)
    words = page.locator(".words .word")
    assert page.locator(".words p").count() > 1
    assert re.fullmatch(r"\d:\d\d", page.locator(".words .when").first.text_content() or "")
    first, later = words.nth(0).bounding_box(), words.nth(3).bounding_box()
    assert first is not None and later is not None
    page.mouse.move(first["x"] + 1, first["y"] + 5)
    page.mouse.down()
    page.mouse.move(later["x"] + later["width"], later["y"] + 5, steps=5)
    page.mouse.up()
    marked = page.evaluate("getSelection().toString()")
    assert marked.split()[1:3] == [words.nth(n).text_content() for n in (1, 2)]
    assert page.evaluate("document.querySelector('#audio').paused")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.split() == " ".join(words.all_text_contents()).split()


def test_the_example_and_what_the_model_is(
    visit: Callable[..., Page], served: list[ServedModel], running: Running
) -> None:
    model = replace(served[0], description="A small model; every third word is wrong.")
    with running(create_app([model], access=Access(hosts=own_names("127.0.0.1")))) as place:
        page = visit(place)
        page.get_by_text("every third word is wrong").wait_for()
        page.get_by_role("button", name="Try an example").click()
        page.get_by_role("heading", name="example.flac").wait_for()
        assert page.locator("#axis span").count() >= 3
        assert page.locator(".rows b").first.text_content() == "1"
        page.close()


def test_a_phone_says_nothing_of_mice_and_keys(
    visit: Callable[..., Page], address: str, talk: Path
) -> None:
    page = visit(address, "phone")
    transcribed(page, talk)
    assert page.get_by_text("Choose a recording").is_visible()
    text = page.evaluate("document.body.innerText")
    assert "Drop" not in text and "keyboard" not in text and "Tap to play" in text


def test_long_recordings_go_by_stretches(
    visit: Callable[..., Page], address: str, tmp_path: Path, noise_file: Callable[..., bytes]
) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(noise_file(65.0, rate=8_000))
    page = visit(address)
    transcribed(page, path)
    assert page.locator("#span").text_content() == "0:00 to 0:30 of 1:05"
    for text in ("0:30 to 1:00 of 1:05", "1:00 to 1:05 of 1:05"):
        page.get_by_role("button", name="Later").click()
        page.get_by_text(text).wait_for()
    assert page.get_by_role("button", name="Later").is_disabled()
    page.locator(".words .word").nth(3).click()  # playing turns back by itself
    page.get_by_text("0:00 to 0:30 of 1:05").wait_for()


def test_what_is_wrong_is_said(
    visit: Callable[..., Page], address: str, locked: str, tmp_path: Path, talk: Path
) -> None:
    path = tmp_path / "notes.wav"
    path.write_text("no audio", encoding="utf-8")
    page = visit(address)
    page.locator("#file").set_input_files(path)
    page.get_by_role("alert").filter(has_text="notes.wav: not readable as audio").wait_for()
    transcribed(page, talk)
    assert page.get_by_role("alert").is_hidden()
    page.locator("#file").set_input_files(path)  # an error takes the last result off the page
    page.get_by_role("alert").filter(has_text="notes.wav: ").wait_for()
    assert page.locator("#result").is_hidden()
    page = visit(locked)
    page.get_by_role("alert").filter(has_text="Enter the API key of this server.").wait_for()
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("API key").press("Tab")
    until(page, "document.querySelector('#model').value === 'omni'")
    transcribed(page, talk)
    assert page.get_by_role("alert").is_hidden()


@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(
    visit: Callable[..., Page], address: str, talk: Path, size: str, scheme: str
) -> None:
    """Nothing sticks out sideways, text stands out from its background, in both schemes."""
    page = visit(address, size, scheme)
    shot(page, f"start-{size}-{scheme}")
    transcribed(page, talk, beside="switch")
    page.locator(".words .word").nth(2).click()
    until(page, "document.querySelector('.words .now') !== null")
    page.evaluate("document.querySelector('#audio').pause()")
    page.locator("#time").hover(position={"x": 90, "y": 250})
    shot(page, f"result-{size}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = page.evaluate(
        "[...document.querySelectorAll('button, select')]"
        ".filter((e) => e.offsetParent && e.offsetHeight < 40).length"
    )
    assert small == 0  # fingers are broad
    assert page.evaluate(CONTRASTS) >= 4.5  # WCAG 2.2, level AA
    if size == "desktop":
        page.goto(f"{address}/docs/")
        page.get_by_role("heading", name="POST /v1/audio/transcriptions").wait_for()
        shot(page, f"docs-{scheme}")
        assert page.evaluate(CONTRASTS) >= 4.5


# the smallest contrast of a visible text with what is behind it
CONTRASTS = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = parts(color).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((parts(color)[3] ?? 1) > 0.5) return color;
    }
    return getComputedStyle(document.documentElement).backgroundColor;
  };
  const texts = [...document.querySelectorAll('body *')].filter((element) =>
    element.offsetParent && !element.disabled
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return Math.min(...texts.map((element) => {
    const pair = [light(getComputedStyle(element).color), light(behind(element))].sort();
    const [low, high] = pair[0] < pair[1] ? pair : [pair[1], pair[0]];
    return (high + 0.05) / (low + 0.05);
  }));
}"""
