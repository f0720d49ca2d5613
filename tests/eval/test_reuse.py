"""`--reuse on`: grouped by image, same answers in the same order, each image encoded once, text-guided refused."""

from types import SimpleNamespace
from unittest import mock

import pytest
from PIL import Image

import visiondrop
from eval import run
from eval.models import reuse
from eval.models.llava import LlavaVisionDrop
from eval.results import rows
from eval.results.folder import RunFiles
from eval.settings import ModelSettings
from llava.static.generate import NotStatic, StaticGenerator
from tests.eval.test_checkpoint import write_answering_checkpoint
from tests.support import datasets_small

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reuse") / "words"
    write_answering_checkpoint(folder)
    return folder


def requests(count=11):
    """Questions over three images in turn, the last one without an image; arguments as lmms-eval makes them."""

    def images(doc):
        # A new object each time, as lmms-eval's tasks decode them.
        return [Image.new("RGB", (60, 40), COLOURS[doc % 3])] if doc < count - 1 else []

    settings = {"max_new_tokens": 4, "temperature": 0}
    words = "What is this thing called and where does it stand in the picture ?".split()
    return [SimpleNamespace(args=(" ".join(words[: 3 + i]), settings, images, i, "toy", "test")) for i in range(count)]


def made(checkpoint, **more):
    lm = LlavaVisionDrop(ModelSettings.of(model=str(checkpoint), tokens=16, device="cpu", batch_size=4, **more))
    lm.task_dict = {"toy": {"test": list(range(100))}}
    return lm


def test_same_answers_and_each_image_once(checkpoint):
    asked = requests()
    expected = made(checkpoint).generate_until(asked)
    lm = made(checkpoint, reuse="on")
    with mock.patch.object(reuse, "encode_prefix", side_effect=reuse.encode_prefix) as encoded:
        answers = lm.generate_until(asked)
    assert answers == expected and len(set(answers)) > 1
    assert encoded.call_count == 3 and lm.reuse.prefixes.misses == 3


def test_nothing_held_is_still_right(checkpoint):
    asked = requests()
    lm = made(checkpoint, reuse="on")
    lm.reuse.prefixes.limit_bytes = 0
    assert lm.generate_until(asked) == made(checkpoint).generate_until(asked)
    assert len(lm.reuse.prefixes) == 0


def test_text_guided_methods_are_refused(checkpoint):
    with pytest.raises(visiondrop.UnsupportedError, match="reads the question"):
        made(checkpoint, reuse="on", score="text")


def test_the_driver_with_and_without(checkpoint, tmp_path):
    """POPE through eval.run with every switch: equal answers in equal order, rows of their own that tell."""
    datasets_small.write_pope(tmp_path / "data", 18)
    out, runs, answers = tmp_path / "rows.jsonl", tmp_path / "runs", []
    arguments = [
        "pope",
        "--tokens",
        "16",
        "--model",
        str(checkpoint),
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(out),
    ]
    arguments += ["--runs", str(runs), "--batch-size", "4"]
    switches = [(reuse, compiled) for reuse in ("off", "on") for compiled in ("off", "on")]
    # Without a compiler behind it, so that this is no test of g++.
    with mock.patch.object(StaticGenerator.__init__, "__defaults__", (None, 16)):
        for reuse_or_not, compile_or_not in switches:
            assert run.main([*arguments, "--reuse", reuse_or_not, "--compile", compile_or_not]) == 0
            row = rows.load(out, strict=True)[0][-1]
            assert (row["reuse"], row["compile"]) == (reuse_or_not, compile_or_not)
            answers.append([s["answer"] for s in RunFiles(runs / row["folder"]).samples()])
    assert len(answers[0]) == 18 and all(found == answers[0] for found in answers)
    made = rows.load(out, strict=True)[0]
    assert len({row["run"] for row in made}) == 4 and len({row["score"] for row in made}) == 1


def test_a_row_says_when_nothing_was_compiled(checkpoint):
    asked = requests(4)
    lm = made(checkpoint, compile="on")
    with mock.patch.object(StaticGenerator, "_settings", side_effect=NotStatic("a reason")):
        answers = lm.generate_until(asked)
    assert lm.compiled == "eager" and answers == made(checkpoint).generate_until(asked)
    assert made(checkpoint).compiled == "off"
