"""The page in a real browser: Debian's Chromium, driven by Playwright.  `bash scripts/test_demo.sh` makes what it needs."""

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visiondrop.demo import media
from visiondrop.demo.state import State

MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
CHROMIUM = shutil.which("chromium")
if MISSING:
    pytest.skip(f"{' and '.join(MISSING)} not installed here: bash scripts/test_demo.sh", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the server would write, if it wrote."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home):
    """(process, address) of a demo of the testbed on a free port, as a user starts it."""
    places = {"HOME": str(home), "TMPDIR": str(home), "GRADIO_TEMP_DIR": str(home), "OMP_NUM_THREADS": "1"}
    places |= {
        "MALLOC_ARENA_MAX": "2",
        "LRU_CACHE_CAPACITY": "64",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    }  # as demo.sh
    command = [sys.executable, "-m", "visiondrop", "demo", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **places}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("VisionDrop demo of "), line
        yield process, line.split()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


@pytest.fixture(scope="module")
def address(server):
    return server[1]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


class Visit:
    """One user's tab; what it asked for and what went wrong in it are noted."""

    def __init__(self, browser, address: str, query: str = "", **context):
        self.tab = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}).new_page()
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.goto(f"{address}/{'?' + query if query else ''}")
        self.tab.wait_for_selector("#run", timeout=30_000)
        self.tab.wait_for_selector(".vd-thumb")

    def upload(self, name: str, data: bytes, kind: str = "image/png") -> None:
        self.tab.set_input_files("#picture input[type=file]", {"name": name, "mimeType": kind, "buffer": data})
        self.tab.wait_for_function("() => !document.querySelector('.vd-thumb[aria-pressed=true]')")

    def ask(self, question: str) -> None:
        self.tab.fill("#question textarea", question)

    def budget(self, tokens: int) -> None:
        field = self.tab.locator("#budget input[type=number]")
        field.fill(str(tokens))
        field.press("Enter")

    def methods(self, *names: str) -> None:
        field = self.tab.locator("#methods input")
        for _ in range(8):
            field.press("Backspace")
        for name in names:
            field.fill(name)
            field.press("Enter")
        field.press("Escape")

    def compare(self) -> None:
        before = self.tab.locator(".vd-results").evaluate("e => { e.dataset.old = '1'; return 1; }")
        assert before
        self.tab.click("#run")
        self.tab.wait_for_selector(
            ".vd-results:not([data-old]) .vd-card, .vd-results:not([data-old]) .vd-error", timeout=60_000
        )
        self.tab.wait_for_timeout(200)

    @property
    def answers(self) -> list[str]:
        return [a.replace("\n", "") for a in self.tab.locator(".vd-answer").all_inner_texts()]

    def shown(self) -> list[np.ndarray]:
        """The pictures that are to be seen, one per method."""
        sources = self.tab.locator(".vd-stages figure:not([hidden]) img").evaluate_all("all => all.map(e => e.src)")
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(s.split(",")[1])))).astype(int) for s in sources]

    def refusal(self) -> str:
        return self.tab.locator(".vd-results .vd-error").first.inner_text()


@pytest.fixture
def visit(browser, address):
    opened = []

    def go(query: str = "", **context) -> Visit:
        opened.append(Visit(browser, address, query, **context))
        return opened[-1]

    yield go
    for one in opened:
        assert one.wrong == []
        outside = [url for url in one.asked if not url.startswith((address, "data:", "blob:"))]
        assert outside == []
        one.tab.context.close()


def scene(name: str) -> Image.Image:
    return media.open_picture(media.example(name).path)


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_upload_budget_methods_and_stages(visit, home):
    before = {p for p in home.rglob("*") if p.is_file()}
    one = visit()
    assert "shipped testbed" in one.tab.inner_text(".vd-head")
    one.upload("my scene.png", png(scene("scene-2")))
    one.ask("What digit is on the cyan object?")
    one.budget(48)
    one.methods("visiondrop", "vispruner+fastv")
    one.compare()
    assert one.tab.locator(".vd-card h3").all_inner_texts() == ["visiondrop", "vispruner+fastv"]
    assert one.answers[0] == "2" == one.answers[1]  # the scene's digit; visiondrop keeps it at 48 tokens
    assert "48.0 tokens per layer" in one.tab.locator(".vd-card").first.inner_text()
    # The slider: all stops, from the whole picture to the last stage.
    reach = one.tab.locator(".vd-range")
    stops = int(reach.get_attribute("max"))
    assert int(reach.input_value()) == stops and stops >= 4
    bright = []
    for stop in range(stops + 1):
        reach.fill(str(stop))
        bright.append(one.shown()[0].mean())
        assert f"stage={stop}" in one.tab.url
    assert one.tab.locator(".vd-slider output").inner_text() == "on entry of layer 9"
    assert bright[0] > 1.5 * bright[1] and np.abs(bright[0] - np.asarray(scene("scene-2")).mean()) < 2
    # visiondrop's own stages darken it; where only the other method has a stage, it stays as it was.
    assert sorted(bright, reverse=True) == bright and len(set(bright)) == 1 + 4 < len(bright)
    # Code and link.
    assert not one.tab.locator(".vd-code").is_visible()
    one.tab.click(".vd-show-code")
    code = one.tab.locator(".vd-code").inner_text()
    assert "--image 'my scene.png'" in code and "--method vispruner+fastv" in code and "visiondrop.apply" in code
    assert "picture=own" in one.tab.url and f"mark={media.mark_of(url_of(png(scene('scene-2'))))}" in one.tab.url
    # Nothing of it is on the disk.
    assert {p for p in home.rglob("*") if p.is_file()} == before


def url_of(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_a_link_reproduces_what_it_was_copied_from(visit):
    state = State("scene-3", "What color is the diamond?", "9%", ("fastv", "visiondrop merge=off"), 1)
    one = visit(state.query())
    one.tab.wait_for_selector(".vd-card", timeout=60_000)
    assert one.tab.input_value("#question textarea") == state.question
    assert one.tab.locator(".vd-card h3").all_inner_texts() == list(state.methods)
    assert one.tab.locator(".vd-range").input_value() == "1"
    assert (
        one.tab.input_value("#budget input[type=number]") == "9" and one.tab.locator("#unit input").nth(1).is_checked()
    )
    shown, answers = one.shown(), one.answers
    one.tab.wait_for_function(f"() => location.search.slice(1) === {state.query()!r}")
    two = visit(one.tab.url.split("?", 1)[1])
    two.tab.wait_for_selector(".vd-card", timeout=60_000)
    assert two.answers == answers and all(np.array_equal(a, b) for a, b in zip(two.shown(), shown))


def test_a_link_with_somebodys_picture_asks_for_it(visit):
    one = visit(State("own", "What color is the star?", 64, ("visiondrop",), mark="0123456789ab").query())
    one.tab.wait_for_selector(".vd-error")
    assert "0123456789ab" in one.refusal() and "not stored" in one.refusal()
    assert one.tab.input_value("#question textarea") == "What color is the star?"


@pytest.mark.parametrize(
    "query, words", [("picture=../../etc/passwd", "no example"), ("tokens=lots", "neither a number")]
)
def test_a_broken_link_is_told_in_a_sentence(visit, query, words):
    one = visit(query)
    one.tab.wait_for_selector(".vd-error")
    assert words in one.refusal()


def test_mistakes_are_sentences_on_the_page(visit):
    one = visit()
    one.upload("notes.txt", b"this is no picture", "text/plain")
    one.compare()
    assert "not an image" in one.refusal()
    one.tab.set_input_files(
        "#picture input[type=file]",
        {"name": "huge.png", "mimeType": "image/png", "buffer": bytes(media.MOST_BYTES + 1)},
    )
    one.tab.wait_for_selector(".vd-said:not([hidden])")
    assert "up to 8 MB" in one.tab.inner_text(".vd-said")
    one.upload("large.png", png(Image.new("1", (8000, 7000))))
    one.compare()
    assert "8000 x 7000 pixels" in one.refusal()
    one.tab.click(".vd-thumb >> nth=0")
    one.methods("fastv", "visiondrop", "nonsense")
    one.budget(12)
    one.compare()
    cards = one.tab.locator(".vd-card").all_inner_texts()
    assert "not reachable" in cards[0] and "12.0 tokens per layer" in cards[1] and "unknown method" in cards[2]
    one.ask("")
    one.compare()
    assert "Write a question" in one.refusal()


def test_a_pasted_picture_is_taken(visit):
    one = visit()
    one.tab.evaluate(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const held = new DataTransfer();
            held.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: held, bubbles: true }));
        }""",
        base64.b64encode(png(scene("scene-3"))).decode(),
    )
    one.tab.wait_for_function("() => !document.querySelector('.vd-thumb[aria-pressed=true]')")
    one.ask("What color is the diamond?")
    one.compare()
    assert one.answers[0] == "cyan"


def test_two_users_at_once_do_not_see_each_others_results(visit):
    users = {
        "scene-2": ("What color has the same shape as the cyan object?", "green"),
        "scene-3": ("What color is the star?", "cyan"),
    }
    tabs = {}
    for name, (question, _) in users.items():
        tabs[name] = visit()
        tabs[name].upload(f"{name}.png", png(scene(name)))
        tabs[name].ask(question)
        tabs[name].methods("visiondrop", "visionzip")
    for _ in range(2):
        for one in tabs.values():
            one.tab.locator(".vd-results").evaluate("e => { e.dataset.old = '1'; }")
        for one in tabs.values():
            one.tab.click("#run", no_wait_after=True)
        for name, one in tabs.items():
            one.tab.wait_for_selector(".vd-results:not([data-old]) .vd-card", timeout=60_000)
            assert one.answers[0] == users[name][1] and one.answers[1] == users[name][1]
            one.tab.locator(".vd-range").fill("0")
            assert np.abs(one.shown()[0] - np.asarray(scene(name)).astype(int)).mean() < 4


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_fits_the_screen_in_light_and_dark(visit, width, scheme, tmp_path_factory):
    one = visit(
        "picture=scene-1&question=What+digit+is+on+the+triangle%3F&tokens=64&method=visiondrop&method=sparsevlm&method=fastv",
        viewport={"width": width, "height": 844},
        color_scheme=scheme,
    )
    one.tab.wait_for_selector(".vd-card", timeout=60_000)
    one.tab.wait_for_timeout(500)
    assert one.tab.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (
        one.tab.evaluate(f"getComputedStyle(document.querySelector('{e}')).{c}")
        for e, c in ((".vd-card h3", "color"), (".vd-card", "backgroundColor"))
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (ink, paper)]
    assert (light[0] < 80 and light[1] > 200) if scheme == "light" else (light[0] > 180 and light[1] < 80)
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screens"))
    one.tab.screenshot(path=folder / f"{width}-{scheme}.png", full_page=True)


def answer_to(address: str, path: str, data: bytes | None = None) -> tuple[int, str]:
    """(status, text) of one request."""
    request = urllib.request.Request(address + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=README.md",
        "/file=README.md",
        "/gradio_api/proxy=https://example.org",
        "/gradio_api/upload",
        "/gradio_api/info",
        "/gradio_api/deep_link?session_hash=a",
        "/gradio_api/runs",
        "/monitoring",
        "/docs",
    ],
)
def test_no_other_address_is_served(address, path):
    status, text = answer_to(address, path)
    assert status == 404 and text == "This page serves no such address."
    assert answer_to(address, path, b"{}")[0] == 404


@pytest.mark.parametrize(
    "path", ["/static/%2e%2e/%2e%2e/routes.py", "/assets/..%2f..%2froutes.py", "/svelte/../../../routes.py"]
)
def test_the_folders_that_are_served_cannot_be_left(address, path):
    status, text = answer_to(address, path)
    assert status in (400, 403, 404) and "import" not in text


def test_bodies_have_a_limit_and_name_no_files(address):
    status, text = answer_to(address, "/gradio_api/queue/join", b"x" * (media.MOST_BYTES * 3 // 2 + 1))
    assert status == 413 and "8 MB" in text
    status, text = answer_to(address, "/gradio_api/queue/join", b'{"data": [{"meta": {"_type": "gradio.FileData"}}]}')
    assert status == 400 and "references to files" in text


def test_the_port_that_is_taken_is_told_in_a_sentence(address):
    port = address.rsplit(":", 1)[1]
    done = subprocess.run(
        [sys.executable, "-m", "visiondrop", "demo", "--port", port], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and f"--port {port}" in done.stderr and "--port 0" in done.stderr


def ask_without_browser(address: str, button: int, number: int) -> None:
    """One request as a tab of its own makes it, each with another budget."""
    tab = uuid.uuid4().hex
    fields = [json.dumps({"example": f"scene-{1 + number % 3}"}), "What color is the star?", 60 + number % 50, "tokens"]
    body = {"data": [*fields, ["visiondrop", "fastv"], None], "fn_index": button, "session_hash": tab}
    assert answer_to(address, "/gradio_api/queue/join", json.dumps(body).encode())[0] == 200
    assert "vd-card" in answer_to(address, f"/gradio_api/queue/data?session_hash={tab}")[1]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the process's memory is read from /proc")
def test_memory_stays_flat_over_many_requests(server):
    """Without `trim_memory` and `SESSIONS` a hundred requests add about 50 MB; measured once every budget was seen."""
    process, address = server
    config = json.loads(answer_to(address, "/config")[1])
    names = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
    button = next(d["id"] for d in config["dependencies"] if any(names.get(t[0]) == "run" for t in d["targets"]))
    held = []
    for number in range(140):
        ask_without_browser(address, button, number)
        if number in (69, 139):
            status = Path(f"/proc/{process.pid}/status").read_text()
            held.append(int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024)
    print(held)
    assert held[1] - held[0] < 20
