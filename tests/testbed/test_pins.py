"""What was drawn and trained when the checkpoints were made: sets and batches to the last bit, losses of a miniature.

The pins are tests/support/golden/testbed_pins.json, written before the three testbeds shared one course.
"""

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from testbed.data import sets as base_sets
from testbed.next import sets as next_sets
from testbed.training.train import Trainer, load_recipe
from testbed.video import sets as video_sets

PINS = json.loads((Path(__file__).parents[1] / "support" / "golden" / "testbed_pins.json").read_text())
SETS = {"base": base_sets, "next": next_sets, "video": video_sets}
VALIDATION = {"base": 8, "next": 2, "video": 2}  # scenes
FIELDS = (
    "pixels",
    "cells",
    "labels",
    "objects",
    "kept",
    "visual_positions",
    "question_start",
    "question_ids",
    "answer_at",
    "answers",
    "kinds",
)


def digest_of(batch) -> str:
    """16 hex digits over a batch's tensors."""
    total = hashlib.sha256()
    for name in FIELDS:
        value = getattr(batch, name)
        for part in value.values() if isinstance(value, dict) else [value]:
            total.update(part.numpy().tobytes() if torch.is_tensor(part) else repr(part).encode())
    return total.hexdigest()[:16]


@pytest.fixture
def trainer(request, tmp_path, monkeypatch):
    """A miniature of one course, with a log line at every step."""
    monkeypatch.setattr("testbed.training.train.LOG_EVERY", 1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(PINS[request.param]["recipe"]))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    made = Trainer(recipe, tmp_path / "run", torch.device("cpu"), torch.float32, workers=0)
    made.course = replace(made.course, validation_scenes=VALIDATION[request.param])
    return made


@pytest.mark.parametrize("trainer, name", [(name, name) for name in PINS], indirect=["trainer"])
def test_batches_are_those_that_were_pinned(trainer, name):
    drawn = [
        digest_of(trainer.course.batches(stage, number)[step])
        for number, stage in enumerate(trainer.recipe.stages)
        for step in range(stage.steps)
    ]
    assert drawn == PINS[name]["batches"]


@pytest.mark.parametrize("trainer, name", [(name, name) for name in PINS], indirect=["trainer"])
def test_a_miniature_trains_as_it_did(trainer, name):
    """Losses to the last bit on the machine that pinned them; another one's matrix products differ a little."""
    with torch.enable_grad():
        assert trainer.run()
    rows = [json.loads(line) for line in trainer.log_path.read_text().splitlines()]
    pinned = PINS[name]["log"]
    assert [row.keys() - {"seconds"} for row in rows] == [row.keys() for row in pinned]
    for row, known in zip(rows, pinned, strict=True):
        for key, value in known.items():
            exact = isinstance(value, (str, int))
            assert row[key] == (value if exact else pytest.approx(value, rel=1e-3, abs=2e-4)), (row["what"], key)
    losses = [row["loss"] for row in rows if row["what"] == "train"]
    assert losses == pytest.approx([float.fromhex(value) for value in PINS[name]["losses"]], rel=1e-3)


@pytest.mark.parametrize("name", PINS)
def test_sets_begin_as_they_did(name):
    for which, known in PINS[name]["sets"].items():
        total = hashlib.sha256()
        for index, scene, asked in itertools.islice(SETS[name].draw_set(which), 40):
            total.update((scene.frames if name == "video" else scene.image).tobytes())
            total.update(json.dumps([index, [[q.kind, q.text, q.answer, q.things] for q in asked]]).encode())
        assert total.hexdigest()[:16] == known, which
    assert SETS[name].chance_levels("quick") == PINS[name]["chance"]
