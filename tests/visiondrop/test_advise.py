"""`visiondrop advise`: numbers against a plain loop, resuming, and bad data told by file and line."""

import base64
import io
import json
import re

import pytest
import torch
from PIL import Image

import visiondrop
from llava.adapter import load
from visiondrop.__main__ import main
from visiondrop.advice.measure import compare, forced, prepare, reference
from visiondrop.advice.run import same_words
from visiondrop.advice.samples import Sample, read_samples
from visiondrop.advice.stats import Summary, is_out, ratio, recommend
from visiondrop.errors import VisionDropError
from visiondrop.reuse.tower import TowerMemory, remembering


@pytest.fixture(scope="module")
def loaded():
    return load("checkpoints/testbed", torch.float32)


@pytest.fixture(scope="module")
def samples():
    return read_samples("testbed_quick", limit=4)[0]


@torch.no_grad()
def plain(loaded, inputs, ids, method, tokens):
    """[A, V] log-probabilities with everything computed again for every token, each from the prompt's cache alone."""
    rows = []
    settings = {} if tokens is None else {"tokens": tokens}
    for n in range(len(ids)):
        with visiondrop.apply(loaded.model, method, **settings):
            cache = loaded.model(**inputs, use_cache=True)
            logits = cache.logits[:, -1]
            past = cache.past_key_values
            for token in ids[:n]:
                step = loaded.model(input_ids=token.view(1, 1), past_key_values=past, use_cache=True)
                logits = step.logits[:, -1]
            rows.append(logits[0].float().log_softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("method, tokens", [("visiondrop", 64), ("fastv", 64), ("vispruner", "11%")])
def test_one_pass_equals_a_plain_loop(loaded, samples, method, tokens):
    for sample in samples[:2]:
        inputs = prepare(loaded, sample)
        with visiondrop.apply(loaded.model, "none") as handle, remembering(TowerMemory(projections=True)):
            held = reference(handle, loaded, inputs, 8)
            with handle.using(method, tokens):
                told = compare(held, forced(loaded.model, inputs, held.ids, held.end)[0])
        stock, pruned = plain(loaded, inputs, held.ids, "none", None), plain(loaded, inputs, held.ids, method, tokens)
        n = held.counted
        kl = float((stock.exp() * (stock - pruned)).sum(-1)[:n].sum())
        assert told["kl"] == pytest.approx(kl, abs=1e-5)
        assert told["same"] == int((stock.argmax(-1) == pruned.argmax(-1))[:n].sum())


def test_unpruned_against_itself_and_a_run_that_was_killed(loaded, samples, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ask = dict(methods=["uniform"], tokens=[64, 4], progress=False)
    first = visiondrop.advise(loaded, samples, out=whole, **ask)
    none = first.found[0]
    assert (none.agreement, none.kl, none.same_answers) == (1.0, 0.0, 1.0)
    assert first.found[2].kl > 0
    lines = (whole / "rows.jsonl").read_text().splitlines(keepends=True)
    cut.mkdir()
    (cut / "rows.jsonl").write_text("".join(lines[:-5]) + lines[-5][:40])  # as kill -9 leaves it
    again = visiondrop.advise(loaded, samples, out=cut, **ask)
    for a, b in zip(first.found, again.found):
        assert (a.name, a.agreement, a.kl, a.same_answers, a.first) == (
            b.name,
            b.agreement,
            b.kl,
            b.same_answers,
            b.first,
        )
    with pytest.raises(VisionDropError, match="holds another run .loss differ"):
        visiondrop.advise(loaded, samples, out=cut, loss=0.2, **ask)


def test_bad_data_is_told_by_file_and_line(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [
        {"picture": "good.png", "question": "What?"},
        {"picture": "missing.png", "question": "What?"},
        {"picture": "broken.png", "question": "What?"},
        {"image": "good.png", "question": "What?"},
        {"picture": "good.png", "question": "<image> What?"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{torn")
    good, problems = read_samples(str(path))
    assert [s.question for s in good] == ["What?"]
    assert sorted(int(p.split("line ")[1].split(":")[0]) for p in problems) == [2, 3, 4, 5, 6]
    assert all(str(path) in p for p in problems)
    (tmp_path / "data.csv").write_text("image,question\ngood.png,What?\n")
    with pytest.raises(VisionDropError, match="data.csv, line 1: no column 'picture'; found image, question"):
        read_samples(str(tmp_path / "data.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(VisionDropError, match="holds no picture"):
        read_samples(str(tmp_path / "empty"))


def test_several_pictures_stand_before_the_question(loaded, samples):
    two = Sample((samples[0].pictures[0], samples[-1].pictures[0]), samples[0].question)
    inputs = prepare(loaded, two)
    assert int((inputs["input_ids"] == -200).sum()) == len(inputs["images"]) == 2


def summary(name, agreement, interval, tflops, **more):
    return Summary(name, 9, agreement, interval, 0.0, (0.0, 0.0), 1.0, tflops=tflops, mean_tokens=1.0, **more)


def test_the_cheapest_that_passes_is_recommended():
    good, cheap, bad = (
        summary("a", 0.995, (0.98, 1.0), 3.0),
        summary("b", 0.991, (0.97, 1.0), 2.0),
        summary("c", 0.9, (0.88, 0.92), 1.0),
    )
    assert recommend([good, cheap, bad], 0.01) is cheap
    assert recommend([bad], 0.01) is None
    assert [is_out(s, 0.01) for s in (good, cheap, bad)] == [False, False, True]


def test_intervals_draw_pictures_not_samples():
    one_each = ratio([1, 0] * 20, [1] * 40, [str(i) for i in range(40)])[1]
    shared = ratio([1, 0] * 20, [1] * 40, [str(i % 2) for i in range(40)])[1]
    assert shared[1] - shared[0] > one_each[1] - one_each[0]
    assert ratio([1] * 30, [1] * 30, [str(i) for i in range(30)]) == (1.0, (0.9, 1.0))
    assert same_words("Red.", "red") and not same_words("red star", "red")


def test_the_page_shows_kept_patches(tmp_path, capsys):
    """A row of panels for a picture, not the picture alone."""
    asked = ["--model", "checkpoints/testbed", "--data", "testbed_quick", "--limit", "2", "--out", str(tmp_path)]
    assert main(["advise", *asked, "--methods", "visiondrop", "--tokens", "16"]) == 0
    drawn = re.findall(r"base64,([^\"]+)", (tmp_path / "changed.html").read_text())
    assert drawn
    for data in drawn:
        width, height = Image.open(io.BytesIO(base64.b64decode(data))).size
        assert width > 2 * height
