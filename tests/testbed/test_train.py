"""Training the testbed: a miniature learns, an interrupted run ends as if it had not been, the packing is exact."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from testbed.data.scenes import NO_COLOR
from testbed.data.tokenizer import PREFIX
from testbed.training.base import COURSE
from testbed.training.batches import Stage, normalise, thin_out
from testbed.training.course import begin_from, course_of
from testbed.training.export import export_checkpoint
from testbed.training.model import Layout, Sizes, _UnitRms, decode, decode_dropping, encode, init_heads, init_weights
from testbed.training.train import DEFAULT_CONFIG, Trainer, load_recipe
from visiondrop.errors import VisionDropError

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "vision_width": 32,
    "vision_layers": 3,
    "vision_heads": 2,
    "vision_mlp": 64,
    "width": 32,
    "layers": 4,
    "heads": 2,
    "mlp": 48,
}
RECIPE = {
    "seed": 1,
    "sizes": TINY,
    "stages": [
        {"name": "tower", "grid": 8, "steps": 30, "batch": 16, "rate": 3e-3, "end_rate": 3e-3, "warmup": 5},
        {
            "name": "joint",
            "grid": 8,
            "steps": 4,
            "batch": 4,
            "questions": 4,
            "mix": {"exist": 1, "count": 1},
            "warmup": 2,
            "long_mix": {"hop3": 1},
            "long_every": 2,
        },
    ],
}


@pytest.fixture
def recipe(tmp_path):
    """A recipe file that trains in seconds."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(autouse=True)
def gradients():
    """Training needs them; the suite's conftest turns them off."""
    with torch.enable_grad():
        yield


@pytest.fixture(autouse=True)
def short_validation(monkeypatch):
    """One batch of validation pictures instead of twelve, and a log line every other step."""
    monkeypatch.setattr("testbed.training.base.COURSE", replace(COURSE, validation_scenes=8))
    monkeypatch.setattr("testbed.training.train.LOG_EVERY", 2)


def loss(weights, sizes, batch, stage):
    """The base course's, float32."""
    return COURSE.losses(weights, sizes, batch, stage, torch.float32, torch.device("cpu"))[0]


def trainer(recipe, out):
    return Trainer(load_recipe(recipe), out, torch.device("cpu"), torch.float32, workers=0)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(recipe, tmp_path):
    whole = trainer(recipe, tmp_path / "whole")
    assert whole.run()
    cut = trainer(recipe, tmp_path / "cut")
    update, steps = cut._update, []

    def stop_after_three(stage, batch):
        steps.append(1)
        cut.stopping = len(steps) == 3
        return update(stage, batch)

    cut._update = stop_after_three
    assert not cut.run()
    second = trainer(recipe, tmp_path / "cut")
    assert (second.stage, second.step) == (0, 3)
    with second.log_path.open("a") as file:  # a line of a step that was never saved
        file.write(json.dumps({"what": "train", "stage_number": 1, "step": 2, "loss": 0}) + "\n")
    third = trainer(recipe, tmp_path / "cut")
    assert third.run()
    for name, value in whole.weights.items():
        assert torch.equal(value, third.weights[name]), name
    lines = [[json.loads(line) for line in t.log_path.read_text().splitlines()] for t in (whole, third)]
    places = [[(line["what"], line["stage_number"], line["step"]) for line in each] for each in lines]
    assert places[0] == places[1] and len(set(places[0])) == len(places[0])
    losses = [line["objects_loss"] for line in lines[0] if line["stage"] == "tower"]
    assert losses[-1] < 0.6 * losses[0]


def test_the_script_trains_exports_and_its_checkpoint_loads(recipe, tmp_path):
    builder = pytest.importorskip("llava.model.builder")
    out = tmp_path / "run"
    command = ["bash", str(ROOT / "scripts" / "train_testbed.sh"), "--out", str(out), "--config", str(recipe)]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--steps", "6", "--workers", "0"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    _, model, _, _ = builder.load_pretrained_model(
        str(out / "checkpoint"), None, "testbed", device_map="cpu", torch_dtype=torch.float32
    )
    assert model.config.num_hidden_layers == TINY["layers"]
    state = torch.load(out / "state.pt", weights_only=True)
    torch.testing.assert_close(model.lm_head.weight.detach(), state["weights"]["lm_head.weight"].half().float())
    again = subprocess.run([*command, "--steps", "7"], env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and torch.load(out / "state.pt", weights_only=True)["step"] > state["step"] - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_loses_nothing(recipe, tmp_path, number):
    """As Ctrl-C and job schedulers send it: to the trainer and to its workers at once."""
    command = [sys.executable, "-m", "testbed.training.train", "--out", str(tmp_path / "run"), "--config", str(recipe)]
    child = subprocess.Popen(
        [*command, "--steps", "100000", "--workers", "2"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 240
        while not (tmp_path / "run" / "log.jsonl").exists() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
        os.killpg(child.pid, number)
        said, errors = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 0 and "the same command goes on from there" in said, errors
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] >= 50 and f"step {state['step']} of stage {state['stage']}" in said


def test_bad_configurations_are_one_sentence(recipe, tmp_path):
    for text, needle in (
        ("stages: []\nspeed: 3", "speed"),
        ("stages: [{name: a, grid: 8, steps: 1, batch: 1, size: 2}]", "size"),
    ):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(VisionDropError, match=needle):
            load_recipe(path)
    with pytest.raises(VisionDropError, match="stage x: places are left out of videos only"):
        COURSE.batches(Stage("x", 8, 1, 1, places=80), 0)
    with pytest.raises(VisionDropError, match="absent"):
        load_recipe(tmp_path / "absent.yaml")
    trainer(recipe, tmp_path / "run").save()
    recipe.write_text(yaml.safe_dump(RECIPE | {"seed": 2}))
    with pytest.raises(VisionDropError, match="seed"):
        trainer(recipe, tmp_path / "run")


def test_the_default_recipe_parses_and_scales():
    recipe = load_recipe(DEFAULT_CONFIG)
    assert recipe.sizes.layers == 12
    total = sum(stage.steps for stage in recipe.stages)
    assert sum(stage.steps for stage in load_recipe(DEFAULT_CONFIG, 2 * total).stages) == 2 * total


def test_batches_are_a_function_of_stage_and_step():
    stage = Stage("x", 10, 5, 3, questions=3, mix={"exist": 1, "hop2": 1})
    first, again, other = COURSE.batches(stage, 1)[2], COURSE.batches(stage, 1)[2], COURSE.batches(stage, 2)[2]
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.question_ids, again.question_ids)
    assert not torch.equal(first.pixels, other.pixels)


def test_packed_questions_do_not_see_each_other():
    sizes = Sizes(**TINY)
    weights = init_weights(sizes, 0)
    batch = COURSE.batches(Stage("x", 8, 1, 2, questions=3, mix={"exist": 1, "digit": 1}), 0)[0]
    features = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))

    def states(question_ids):
        return decode(
            weights,
            sizes,
            features,
            Layout(torch.tensor([1, 4, 5]), question_ids, batch.visual_positions, batch.question_start),
        )[0]

    packed = states(batch.question_ids)
    for number in range(3):
        alone = states(batch.question_ids[:, number : number + 1])
        torch.testing.assert_close(packed[:, number : number + 1], alone, atol=1e-5, rtol=1e-4)


def test_long_prefixes_are_attended_causally(monkeypatch):
    sizes = Sizes(**TINY)
    weights = init_weights(sizes, 0)
    features = torch.randn(1, 576, 32, generator=torch.Generator().manual_seed(0))
    layout = Layout(torch.tensor([1, 4, 5]), torch.tensor([[[12, 14, 6]]]), torch.arange(3, 579), 579)
    chunked = decode(weights, sizes, features, layout)[0]
    import testbed.training.model as model

    one_go = model._causal_chunks
    monkeypatch.setattr(model, "_causal_chunks", lambda q, k, v, prefix: one_go(q, k, v, prefix, rows=10_000))
    torch.testing.assert_close(decode(weights, sizes, features, layout)[0], chunked, atol=1e-5, rtol=1e-4)


def test_the_upper_half_of_a_fresh_decoder_is_the_identity():
    sizes = Sizes(**TINY)
    weights = init_weights(sizes, 0) | init_heads(sizes, 0)
    stage = Stage("x", 8, 1, 2, questions=3, mix={"exist": 1}, bridge=0.0)
    batch = COURSE.batches(stage, 0)[0]
    half = loss(weights, sizes, batch, Stage("x", 8, 1, 2, questions=3, bridge=0.0, depth=2))
    torch.testing.assert_close(loss(weights, sizes, batch, stage), half)


def test_the_written_out_backward_pass_of_the_norm_is_right():
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    grad = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (ours,) = torch.autograd.grad(_UnitRms.apply(x, 1e-5), x, grad)
    (theirs,) = torch.autograd.grad(x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt(), x, grad)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)  # the length is kept in float32


def test_thinned_out_batches_read_the_kept_tokens_at_their_positions():
    """One sparse batch, by hand: the gathered features at the kept positions give the same states."""
    sizes = Sizes(**TINY)
    weights = init_weights(sizes, 0) | init_heads(sizes, 0)
    stage = Stage("x", 24, 1, 2, questions=2, mix={"exist": 1}, bridge=0.0)
    plain = COURSE.batches(stage, 0)[0]
    seen = set()
    for seed in range(8):
        thin = thin_out(plain, COURSE.views, stage, np.random.default_rng(seed))
        objects = plain.labels["color"] != NO_COLOR
        assert 48 <= thin.kept.shape[1] <= 288 and (thin.kept.diff(dim=1) > 0).all()
        if thin.kept.shape[1] > 1.2 * objects.sum(1).max():
            shares = objects.gather(1, thin.kept).sum(1) / objects.sum(1)
            assert (shares > 0.7).all()
        features, _, _ = encode(weights, sizes, normalise(thin.pixels, torch.float32), thin.cells)
        picked = torch.stack([row[index] for row, index in zip(features, thin.kept, strict=True)])
        if thin.visual_positions.ndim == 1:  # numbered anew
            seen.add("short")
            layout = Layout(
                torch.tensor(PREFIX), thin.question_ids, torch.arange(3, 3 + thin.kept.shape[1]), 3 + thin.kept.shape[1]
            )
            expected = decode(weights, sizes, picked, layout)[0]
        else:
            seen.add("long")
            layout = Layout(torch.tensor(PREFIX), thin.question_ids, torch.arange(3, 579), 579)
            expected = decode_dropping(weights, sizes, features, layout, [(0, thin.kept)])[0]
        layout = Layout(torch.tensor(PREFIX), thin.question_ids, thin.visual_positions, thin.question_start)
        torch.testing.assert_close(decode(weights, sizes, picked, layout)[0], expected, atol=1e-5, rtol=1e-4)
    assert seen == {"short", "long"}


def test_a_frozen_tower_gets_no_gradient():
    sizes = Sizes(**TINY)
    weights = {n: w.requires_grad_() for n, w in (init_weights(sizes, 0) | init_heads(sizes, 0)).items()}
    stage = Stage("x", 8, 1, 2, questions=2, mix={"exist": 1}, bridge=0.0, frozen=True)
    loss(weights, sizes, COURSE.batches(stage, 0)[0], stage).backward()
    assert all(w.grad is None for n, w in weights.items() if "vision_tower" in n)
    assert weights["model.mm_projector.0.weight"].grad is not None


def test_a_recipe_may_begin_from_a_checkpoint_with_fewer_words(tmp_path):
    sizes = Sizes(**TINY)
    export_checkpoint(init_weights(sizes, 0), sizes, tmp_path / "start")
    more = Sizes(**TINY, vocabulary=sizes.vocabulary + 3)
    fresh = init_weights(more, 5)
    begun = begin_from(fresh, tmp_path / "start")
    start = init_weights(sizes, 0)
    table = "model.embed_tokens.weight"
    torch.testing.assert_close(begun[table][: sizes.vocabulary], start[table].half().float())
    assert torch.equal(begun[table][sizes.vocabulary :], fresh[table][sizes.vocabulary :])
    torch.testing.assert_close(begun["model.norm.weight"], start["model.norm.weight"])
    with pytest.raises(VisionDropError, match="course"):
        course_of("other")
