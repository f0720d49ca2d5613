"""The demo without its page: state, links, commands, pictures from a browser, and what the engine finds."""

import base64
import contextlib
import io
import json
import shlex
import threading
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from PIL import Image

import visiondrop
from testbed import examples as drawn
from tests.support import hub_folders
from visiondrop.__main__ import main
from visiondrop.demo import html, media
from visiondrop.demo.engine import NEW_TOKENS, Comparison, Engine
from visiondrop.demo.show import CELL, UNIT_GAP
from visiondrop.demo.state import MOST_LETTERS, State, check, command_lines, python, read_budget, read_method
from visiondrop.errors import VisionDropError
from visiondrop.families import loader
from visiondrop.ops.report import Clocked

TESTBED = "checkpoints/testbed"
METHODS = ["visiondrop", "fastv", "vispruner+fastv", "visiondrop merge=off", "pool"]


@pytest.fixture(scope="module")
def engine():
    return Engine(loader().load(TESTBED, torch.float32))


@pytest.fixture(scope="module")
def scene():
    example = media.example("scene-1")
    return media.open_picture(example.path), example.question


@pytest.fixture(scope="module")
def found(engine, scene) -> Comparison:
    return engine.compare(*scene, 64, METHODS)


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


# --- state, links and commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        State("scene-1", "What color is the star?"),
        State("own", "Où? & 100 % = a+b", "22%", ("vispruner+fastv", "visiondrop merge=off"), 3, "0123456789ab"),
        State("coffee", "x", 7, ("random",), 0),
    ],
)
def test_a_link_holds_the_whole_state(state):
    assert State.read(parse_qsl(state.query(), keep_blank_values=True)) == state


def test_a_link_with_nothing_in_it_is_the_default():
    assert State.read([]) == State("own", "")


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: State.read([("tokens", "many")]), "neither a number of tokens nor a share"),
        (lambda: State.read([("tokens", "0%")]), "above 0%"),
        (lambda: State.read([("stage", "-1")]), "stage '-1' is no number"),
        (lambda: read_budget("6.5"), "write 64 or 22%"),
        (lambda: read_method("visiondrop merge"), "name=value"),
        (lambda: read_method("visiondop"), "did you mean 'visiondrop'"),
        (lambda: read_method("visiondrop merg=off"), "no option 'merg'"),
        (lambda: check(State("scene-1", "  ")), "Write a question"),
        (lambda: check(State("scene-1", "a" * (MOST_LETTERS + 1))), "shorten it"),
        (lambda: check(State("scene-1", "a", methods=())), "at least one method"),
        (lambda: check(State("scene-1", "a", methods=("random",) * 7)), "compares up to 6"),
        (lambda: media.example("scene-9"), "no example 'scene-9'"),
    ],
)
def test_mistakes_are_sentences(call, words):
    with pytest.raises(VisionDropError, match=words):
        call()


def test_command_lines_and_python_give_the_pages_answers(engine, scene, found, capsys, tmp_path, monkeypatch):
    """Both are run as they are shown, also with a question that needs quoting."""
    file = str(media.example("scene-1").path)
    state = State("scene-1", scene[1], 64, ("visiondrop merge=off", "vispruner+fastv", "none"))
    answers = {o.method: o.answer for o in [found.unpruned, *found.outcomes]}
    lines = command_lines(state, TESTBED, file, NEW_TOKENS, "float32").splitlines()
    assert len(lines) == 3 and shlex.split(lines[0])[:4] == ["python", "-m", "visiondrop", "ask"]
    for line, method in zip(lines, state.methods):
        words = shlex.split(line)[3:]
        words[words.index("--show") + 1] = str(tmp_path / "kept.png")
        assert main(words) == 0
        assert capsys.readouterr().out.splitlines()[0] == answers[method]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(python(state, TESTBED, file, NEW_TOKENS, "float32"), {})
    said = [line for line in out.getvalue().splitlines() if " answers " in line]
    assert said == [
        f"{name} answers {answers[m]}"
        for name, m in [
            ("none", "none"),
            ("visiondrop", state.methods[0]),
            ("vispruner+fastv", state.methods[1]),
            ("none", "none"),
        ]
    ]
    odd = State("own", 'it\'s a "test"; $(rm -rf /)', "22%", ("visiondrop",))
    assert 'it\'s a "test"; $(rm -rf /)' in shlex.split(command_lines(odd, TESTBED, "a b.png", 4, "float32"))
    compile(python(odd, TESTBED, "a'b.png", 4, "bfloat16"), "shown", "exec")


# --- pictures -----------------------------------------------------------------------------------------------------------


def test_the_examples_are_the_drawn_scenes_pixel_by_pixel():
    shipped = {example.path.name: media.open_picture(example.path) for example in media.examples().values()}
    for name, pixels in {**drawn.scenes(), **drawn.clips()}.items():
        assert np.array_equal(np.asarray(shipped.pop(name)), pixels), name
    assert set(shipped) == {"coffee.jpg"}


def test_a_picture_from_a_browser_is_the_picture(scene):
    assert np.array_equal(np.asarray(media.from_url(url(png(scene[0])))), np.asarray(scene[0]))
    clip = media.example("clip-1")
    assert np.array_equal(media.from_url(clip.url), media.open_picture(clip.path))
    assert media.mark_of(url(b"abc")) == "ba7816bf8f01"


@pytest.mark.parametrize(
    "sent, words",
    [
        ("", "no picture: choose a file"),
        ("/etc/passwd", "no picture"),
        ("https://example.org/a.png", "no picture"),
        ("data:image/png;base64,AAA", "cut short on its way"),
        (url(b"just text", "text/plain"), "not an image"),
        (url(b"just text", "image/png"), "not an image"),
        (url(b"not a video", "video/mp4"), "corrupt, cut short or no video"),
        (url(bytes(media.MOST_BYTES + 3)), "up to 8 MB"),
        (url(png(Image.new("1", (10_000, 9_000)))), "10000 x 9000 pixels"),
        (url(png(Image.new("RGB", (1, 1)))), "1x1"),
    ],
)
def test_what_is_no_picture_or_too_large_is_told_in_a_sentence(sent, words):
    with pytest.raises(VisionDropError, match=words):
        media.from_url(sent)


# --- the engine ---------------------------------------------------------------------------------------------------------


def test_the_catalogue_holds_every_method_and_the_pairs_that_run(engine):
    assert set(visiondrop.available()) - {"none"} <= set(engine.methods)
    assert "vispruner+fastv" in engine.methods and "fastv+vispruner" not in engine.methods


def test_answers_are_those_of_apply_and_generate(engine, scene, found):
    loaded = engine.loaded
    inputs = loaded.inputs(*scene)
    for outcome in [found.unpruned, *found.outcomes]:
        name, options = read_method(outcome.method)
        with visiondrop.apply(loaded.model, name, None if name == "none" else 64, options=options) as handle:
            new = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
            assert outcome.answer == loaded.text(new[0])
            assert list(outcome.tokens) == handle.ledger.tokens_per_layer and outcome.told == str(handle.ledger)
    assert found.unpruned.answer == "9" and found.outcomes[0].answer == "9"  # what the scene shows
    assert len(found.units) == 1 and found.grid == (24, 24)
    assert [len(o.steps) for o in found.outcomes] == [4, 1, 2, 4, 1]


def test_times_add_up_and_only_pruned_runs_select(engine, scene, found):
    for outcome in [found.unpruned, *found.outcomes]:
        times = outcome.times
        assert times.encode > 0 and times.prefill > 0 and times.decode > 0
        assert (times.select > 0) == (outcome.method != "none") and times.select < times.total
        assert times.steps == 1
    assert not isinstance(visiondrop.plan("visiondrop", 64).encoder.select, Clocked)


def test_selecting_is_timed_stage_by_stage_only_where_recorded(engine, scene):
    model, inputs = engine.loaded.model, engine.loaded.inputs(*scene)
    for report in (False, True):
        with visiondrop.apply(model, "visiondrop", 64, report=report) as handle, torch.no_grad():
            model(**inputs)
            assert isinstance(handle.plan.encoder.select, Clocked) == report
            if report:
                assert set(handle.report.seconds) == {"encoder", 3, 6, 9}
                assert all(0 < seconds < 5 for seconds in handle.report.seconds.values())


def test_a_budget_that_one_method_cannot_meet_leaves_the_others(engine, scene):
    found = engine.compare(*scene, 12, ["fastv", "visiondrop"])
    assert "not reachable for method 'fastv'" in found.outcomes[0].error and not found.outcomes[1].error
    page = html.results(found, State("scene-1", scene[1], 12), "", "")
    assert "reachable with these settings: 48" in page and page.count("vd-ledger") == 1


def test_after_a_refusal_the_model_is_the_stock_model_again(engine, scene, found):
    with pytest.raises(VisionDropError, match="<image>"):
        engine.compare(scene[0], "what is <image>?", 64, ["visiondrop"])
    assert engine.compare(scene[0], scene[1], 900, ["visiondrop"]).outcomes[0].error
    assert engine.compare(*scene, 64, []).unpruned.answer == found.unpruned.answer
    assert "_visiondrop_handle" not in engine.loaded.model.__dict__
    assert not engine.loaded.model.get_decoder()._forward_pre_hooks


def test_several_users_at_once_get_what_each_alone_would(engine):
    pictures = [media.open_picture(media.example(f"scene-{i}").path) for i in (1, 2, 3)]
    asked = [(p, media.example(f"scene-{i}").question, 64, METHODS[:3]) for i, p in enumerate(pictures, 1)]
    alone = [engine.compare(*request) for request in asked]
    together: list[list[Comparison]] = [[], [], []]

    def user(which: int) -> None:
        for _ in range(2):
            together[which].append(engine.compare(*asked[which]))

    threads = [threading.Thread(target=user, args=(which,)) for which in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for expected, results in zip(alone, together):
        for found in results:
            for a, b in zip([expected.unpruned, *expected.outcomes], [found.unpruned, *found.outcomes]):
                assert (a.answer, a.tokens, a.steps) == (b.answer, b.tokens, b.steps)
    assert len({tuple(c.outcomes[0].steps[0].stands_for) for c in alone}) == 3  # the pictures do differ


@pytest.mark.parametrize("name, example, units", [("testbed-video", "clip-1", 8), ("testbed-next", "scene-1", 5)])
def test_videos_and_crops(name, example, units):
    engine = Engine(loader().load(f"checkpoints/{name}", torch.float32))
    chosen = media.example(example)
    found = engine.compare(media.open_picture(chosen.path), chosen.question, "11%", ["visiondrop", "pyramiddrop"])
    assert len(found.units) == units and not any(o.error for o in found.outcomes)
    assert "vd-strip" in html.results(found, State(example, chosen.question), "", "")
    if name == "testbed-video":
        assert found.unpruned.answer == "circle" and found.outcomes[0].answer == "circle"
        tower = engine.loaded.inputs(media.open_picture(chosen.path), "x")
        assert (np.asarray(engine.loaded.seen(tower)[0][3]) == media.open_picture(chosen.path)[3]).all()


@pytest.fixture(scope="module", params=list(hub_folders.FAMILIES))
def newer(request, tmp_path_factory):
    """An engine on a tiny random checkpoint of a newer family."""
    path = tmp_path_factory.mktemp(request.param)
    hub_folders.save(request.param, path)
    return request.param, Engine(loader().load(str(path), torch.float32))


def test_the_newer_families_are_compared_and_drawn_as_their_tower_sees_them(newer):
    name, engine = newer
    left = Image.new("RGB", (112, 112), (200, 30, 30))
    left.paste((30, 30, 200), (56, 0, 112, 56))
    found = engine.compare(left, "what is on the table?", "60%", ["visiondrop", "fastv"])
    assert not any(outcome.error for outcome in found.outcomes) and found.outcomes[0].steps
    assert found.outcomes[0].times.total > 0 and found.unpruned.tokens[0] >= found.outcomes[0].tokens[0]
    page = html.results(found, State("own", "x"), "", "")
    if name == "onevision":
        assert not found.units and "no grid of the picture" in page
        return
    rows, columns = found.grid
    assert len(found.units) * rows * columns == found.unpruned.tokens[0]
    whole = np.asarray(found.units[-1].resize((112, 112))).astype(int)  # InternVL: the last tile is the whole picture
    assert (
        np.abs(whole - np.asarray(left))[10:46, 10:46].max() < 12
        and np.abs(whole - np.asarray(left))[10:46, 66:102].max() < 12
    )
    assert page.count("<img") == 2 + sum(len(o.steps) for o in found.outcomes)
    assert (
        max(token for step in found.outcomes[0].steps for token in step.stands_for) < len(found.units) * rows * columns
    )
    with pytest.raises(VisionDropError, match="a video for"):
        engine.compare(np.zeros((8, 56, 56, 3), np.uint8), "what?", 8, ["visiondrop"])


def test_ask_shows_every_frame_of_a_video(tmp_path, capsys):
    out, clip = tmp_path / "kept.png", media.example("clip-1")
    words = ["--image", str(clip.path), "--question", clip.question, "--model", "checkpoints/testbed-video"]
    assert main(["ask", *words, "--tokens", "22%", "--show", str(out)]) == 0
    assert capsys.readouterr().out.startswith("circle\n")
    assert Image.open(out).width == 8 * 16 * CELL + 7 * UNIT_GAP


def test_a_stage_inside_the_tower_is_drawn_before_the_encoders(engine, scene):
    (outcome,) = engine.compare(*scene, 64, ["flowcut"]).outcomes
    assert [step.layer for step in outcome.steps][-1] == "encoder" and outcome.steps[0].layer.startswith("tower ")
    kept = [len(step.stands_for) for step in outcome.steps]
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[-1] == 64
    assert outcome.times.select > 0


def test_a_video_for_a_picture_model_is_refused(engine):
    with pytest.raises(VisionDropError, match="takes pictures and no videos"):
        engine.compare(media.open_picture(media.example("clip-1").path), "What?", 64, ["visiondrop"])


# --- the results as HTML ------------------------------------------------------------------------------------------------


def test_results_show_answers_stages_ledger_times_and_code(found, scene):
    state = State("scene-1", scene[1], 64, tuple(METHODS))
    page = html.results(found, state, "ask --this", "print('that')")
    assert page.count('<article class="vd-card"') == len(METHODS) and page.count("<svg") == len(METHODS)
    assert "same as unpruned" in page and "differs from unpruned" in page and "<del>9</del>" in page
    places = (
        "the input|after the encoder|on entry of layer 0|on entry of layer 1|on entry of layer 3|on entry of layer 6"
    )
    assert f'data-names="{places}|on entry of layer 9"' in page
    assert "ask --this" in page and "print(&#x27;that&#x27;)" in page
    maps = [[int(n) for n in part.split('"')[0].split(",")] for part in page.split('data-map="')[1:]]
    assert maps[0] == [0, 1, 1, 1, 2, 3, 4] and maps[1] == [0, 0, 0, 1, 1, 1, 1]  # visiondrop, fastv: the common stops
    assert page.count("<figure>") == len(METHODS) and page.count("<figure hidden>") == 4 + 1 + 2 + 4 + 1
    for phase in ("encode", "select", "prefill", "decode"):
        assert f"</i>{phase}</th>" in page


def test_nothing_that_users_write_becomes_markup(engine, scene):
    evil = '<img src=x onerror="alert(1)">'
    found = engine.compare(scene[0], evil, 64, ["visiondrop"])
    page = html.results(found, State("own", evil, methods=(evil,)), evil, evil)
    assert "<img src=x" not in page and html.refusal(evil).count("<img") == 0


def test_the_examples_file_is_complete():
    told = json.loads((media.EXAMPLES / "examples.json").read_text())
    files = {p.name for p in media.EXAMPLES.iterdir()} - {"examples.json"}
    assert {e["file"] for e in told.values()} == files


@pytest.mark.parametrize("refused", [False, True])
def test_what_a_request_freed_goes_back_to_the_system(engine, scene, monkeypatch, refused):
    trimmed = []
    monkeypatch.setattr("visiondrop.demo.engine.trim_memory", lambda: trimmed.append(threading.current_thread().name))
    with contextlib.suppress(VisionDropError):
        engine.compare(scene[0], "what is <image>?" if refused else scene[1], 64, [])
    assert len(trimmed) == 1 and trimmed[0].startswith("visiondrop-engine")
