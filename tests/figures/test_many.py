"""Many runs in few processes: the same rows as one by one, the tower remembered bit for bit, images joined."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from eval import run
from eval.models import reuse
from eval.models.llava import LlavaVisionDrop
from eval.results import rows
from eval.results.folder import RunFiles
from eval.settings import ModelSettings
from figures.reproduce import many
from tests.eval.test_checkpoint import write_answering_checkpoint
from tests.support import datasets_small
from visiondrop.reuse.tower import TowerMemory, remembering
from visiondrop.tower.encoder import Probe, embed, run_layers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "words"
    write_answering_checkpoint(folder)
    return folder


def made(checkpoint, **more):
    lm = LlavaVisionDrop(ModelSettings.of(model=str(checkpoint), device="cpu", **more))
    lm.task_dict = {"toy": {"test": list(range(100))}}
    return lm


def probed(clip, pixels) -> tuple[torch.Tensor, Probe]:
    """Output of the feature layer, and what was picked up in it."""
    probe, last = Probe(), len(clip.encoder.layers) - 2
    return run_layers(clip, embed(clip, pixels), 0, last, {last: probe}), probe


@torch.inference_mode()
def test_the_tower_is_remembered(checkpoint):
    clip = made(checkpoint, method="none").model.get_vision_tower().clip
    side = clip.config.image_size
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))[[0, 1, 0, 2]]
    expected, (_, plain) = clip.features(pixels, -2), probed(clip, pixels)
    memory = TowerMemory()
    memory.owner = "a"
    for _ in range(2):
        clip = made(checkpoint, method="none").model.get_vision_tower().clip  # loaded again
        with remembering(memory):
            found, probe = probed(clip, pixels)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(clip.features(pixels, -2), expected, rtol=0, atol=1e-6)
        for name in ("query", "key"):
            torch.testing.assert_close(getattr(probe, name), getattr(plain, name), rtol=0, atol=1e-6)
    assert memory.misses == 6  # three pictures, before the feature layer and behind it
    memory.owner = "b"
    with remembering(memory):
        clip.features(pixels[:1], -2)
    assert memory.misses == 8  # another owner's states are not used
    counts = memory.hits, memory.misses
    clip.features(pixels[:1], -2)
    assert (memory.hits, memory.misses) == counts  # outside the block nothing is asked


@torch.inference_mode()
def test_projections_are_remembered_and_weights_tell_towers_apart(checkpoint):
    clip = made(checkpoint, method="none").model.get_vision_tower().clip
    side, ran = clip.config.image_size, []
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected, plain = probed(clip, pixels)
    memory = TowerMemory(projections=True)
    for layer in clip.encoder.layers:
        layer.register_forward_hook(lambda *_: ran.append(1))
    with remembering(memory):
        for pictures in ([0], [0, 1], [1, 0]):
            found, probe = probed(clip, pixels[pictures])
            torch.testing.assert_close(found, expected[pictures], rtol=0, atol=1e-6)
            for name in ("query", "key", "value"):
                torch.testing.assert_close(getattr(probe, name), getattr(plain, name)[pictures], rtol=0, atol=1e-6)
        before = len(ran)
        probed(clip, pixels)
        assert len(ran) == before > 0
        other = made(checkpoint, method="none").model.get_vision_tower().clip
        other.encoder.layers[0].layer_norm1.weight.mul_(2)
        assert not torch.allclose(probed(other, pixels)[0], expected)


@torch.inference_mode()
def test_a_full_memory_lets_go_and_stays_right(checkpoint):
    clip, memory = made(checkpoint, method="none").model.get_vision_tower().clip, TowerMemory(limit_bytes=1)
    pixels = torch.randn(2, 3, clip.config.image_size, clip.config.image_size)
    expected = clip.features(pixels, -2)
    with remembering(memory):
        assert all(torch.allclose(clip.features(pixels, -2), expected, atol=1e-6) for _ in range(2))
    assert memory.hits == 0


@pytest.mark.parametrize("method", ["visiondrop", "hiprune"])
def test_methods_choose_alike_with_a_memory(checkpoint, method):
    """Whatever layers a method asks for: the second model finds what the first has left, and answers the same."""
    asked = [
        SimpleNamespace(
            args=("What is this ?", {"max_new_tokens": 4}, lambda doc: [Image.new("RGB", (40, 40), (doc * 40, 9, 9))])
            + (doc, "toy", "test")
        )
        for doc in range(3)
    ]
    expected, memory = made(checkpoint, method=method, tokens=16).generate_until(asked), TowerMemory()
    computed = []
    for _ in range(2):
        lm = made(checkpoint, method=method, tokens=16)
        memory.owner = "a"
        with remembering(memory):
            assert lm.generate_until(asked) == expected
        computed.append(memory.misses)
    assert computed[0] >= 3 and computed[1] == computed[0]  # every state that the second asks for is there


@pytest.mark.parametrize("method", ["visiondrop", "none", "random", "visionzip"])
def test_joined_images_give_the_answers_of_single_ones(checkpoint, method):
    def images(doc):
        return [Image.new("RGB", (60, 40) if doc < 12 else (40, 60), (20 * (doc // 2), 90, 200 - 15 * (doc // 2)))]

    settings = {"max_new_tokens": 4, "temperature": 0}
    words = "What is this thing called and where does it stand in the picture ?".split()
    asked = [
        SimpleNamespace(args=(" ".join(words[: 3 + i % 7]), settings, images, i, "toy", "test")) for i in range(16)
    ]
    budget = {} if method == "none" else {"tokens": 16}
    expected = made(checkpoint, method=method, **budget).generate_until(asked)
    lm = made(checkpoint, method=method, batch_size=8, reuse="on", **budget)
    sizes = []
    lm._answer = lambda batch, answer=lm._answer: sizes.append(len(batch)) or answer(batch)
    assert lm.generate_until(asked) == expected
    assert sizes == [8, 4, 4] and len(lm.reuse.prefixes) == 0  # four pictures, two, and two of another size


def test_beams_behind_joined_images(checkpoint):
    settings = {"max_new_tokens": 3, "num_beams": 2}
    asked = [
        SimpleNamespace(
            args=(words, settings, lambda doc: [Image.new("RGB", (50, 50), (doc * 40, 9, 9))], doc, "toy", "test")
        )
        for doc, words in enumerate(("What is this ?", "Where does it stand ?", "What is it called ?"))
    ]
    expected = made(checkpoint, method="visiondrop", tokens=16).generate_until(asked)
    assert made(checkpoint, method="visiondrop", tokens=16, batch_size=3, reuse="on").generate_until(asked) == expected


def lists_of(checkpoint, folder, *budgets):
    datasets_small.write_pope(folder / "data", 18)
    places = ["--data", str(folder / "data"), "--out", str(folder / "rows.jsonl"), "--runs", str(folder / "runs")]
    shared = ["--model", str(checkpoint), "--batch-size", "8", *places]
    return [["pope", "--tokens", str(b), "--reuse", "on", *shared] for b in budgets]


def test_runs_of_two_processes_equal_single_ones(checkpoint, tmp_path):
    lists = lists_of(checkpoint, tmp_path, 16, 24, 7000)
    ended = sorted(many.each(lists, 2))
    assert [code for _, code, _ in ended] == [0, 0, 2] and "error: " in ended[2][2]
    assert sorted(many.each(lists[:2], 1))[0][1] == 0  # again: nothing is done twice
    found = {row["tokens"]: row for row in rows.load(tmp_path / "rows.jsonl", strict=True)[0]}
    assert len(rows.load(tmp_path / "rows.jsonl")[0]) == 2
    alone = lists_of(checkpoint, tmp_path / "alone", 16, 24)
    for arguments, budget in zip(alone, (16, 24)):
        assert run.main(arguments) == 0
        row = rows.load(tmp_path / "alone" / "rows.jsonl", strict=True)[0][-1]
        assert {k for k in row if row[k] != found[budget][k]} <= {"date", "duration", "sessions", "checksum", "commit"}
        answers = [
            [s["answer"] for s in RunFiles(folder / "runs" / row["folder"]).samples()]
            for folder in (tmp_path, tmp_path / "alone")
        ]
        assert answers[0] == answers[1]


def test_a_killed_runner_goes_on_without_doubled_rows(checkpoint, tmp_path):
    lists = lists_of(checkpoint, tmp_path, 16, 24, 32)
    code = "import json, sys; from figures.reproduce import many\nif __name__ == '__main__':\n    list(many.each(json.loads(sys.argv[1]), 1))\n"
    (tmp_path / "runner.py").write_text(code)
    path = os.pathsep.join(sys.path)
    runner = subprocess.Popen(
        [sys.executable, str(tmp_path / "runner.py"), json.dumps(lists)], env={**os.environ, "PYTHONPATH": path}
    )
    deadline = time.monotonic() + 240
    while not list((tmp_path / "runs").glob("*/row.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    runner.kill()
    runner.wait()
    time.sleep(3)  # its process notices within a second
    assert all(code == 0 for _, code, _ in many.each(lists, 1))
    found = rows.load(tmp_path / "rows.jsonl", strict=True)[0]
    assert sorted(row["tokens"] for row in found) == [16, 24, 32]


def test_no_processes_is_refused(checkpoint):
    with pytest.raises(reuse.EvaluationError, match="--jobs 0"):
        list(many.each([["pope"]], 0))
