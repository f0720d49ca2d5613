"""The grounded sibling: boxes against pixels, scores by hand, chance by trying, answers of several words in training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from testbed.data.scenes import PATCH, draw_scene, scene_rng
from testbed.grounded import boxes, questions, sets
from testbed.grounded.course import COURSE
from testbed.grounded.tokenizer import IDS, VOCABULARY, build_tokenizer
from testbed.tasks.grounded import process_results
from testbed.training.batches import IGNORE, Stage
from testbed.training.train import Trainer, load_recipe

RECIPE = Path(__file__).parents[2] / "configs" / "testbed" / "grounded.yaml"


@pytest.mark.parametrize("index", range(4))
def test_a_box_holds_its_objects_patches_and_no_more(index):
    """Every patch that shows an object reaches into its box, and a patch's width beyond each edge there is none of it."""
    scene = draw_scene("train", index)
    for number in range(len(scene.things)):
        x1, y1, x2, y2 = questions.box_in_patches(scene, number)
        rows, columns = np.divmod(np.flatnonzero(scene.labels.things == number), 24)
        assert columns.min() >= int(x1) and columns.max() <= x2 and rows.min() >= int(y1) and rows.max() <= y2
        assert columns.min() <= x1 + 1.5 and columns.max() + 1 >= x2 - 1.5 and rows.max() + 1 >= y2 - 1.5
        assert (x2 - x1) * PATCH <= 60 and x1 < x2 and y1 < y2


def test_overlap_by_counting_cells():
    rng = np.random.default_rng(0)

    def cells(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    for _ in range(200):
        box, other = (sorted(rng.integers(0, 6, 2)) + sorted(rng.integers(0, 6, 2)) for _ in range(2))
        box, other = ([b[0], b[2], b[1], b[3]] for b in (box, other))
        a, b = cells(box), cells(other)
        if b:
            assert boxes.overlap(box, other) == pytest.approx(len(a & b) / len(a | b))


@pytest.mark.parametrize(
    ("said", "fit"),
    [("2 3 6 7", 1.0), ("2 3 6 5", 0.5), ("2 3 4 5", 0.25), ("2 3 6", 0.0), ("", 0.0), ("6 7 2 3", 0.0)],
)
def test_a_row_is_scored(said, fit):
    assert process_results({"box": [2.0, 3.0, 6.0, 7.0]}, [said]) == {"iou": fit, "acc_50": float(fit >= 0.5)}


def test_chance_is_what_the_best_fixed_box_gets():
    truth = [[0, 0, 4, 4], [0, 0, 4, 4], [10, 10, 14, 14]]
    assert boxes.chance(truth) == {"iou": pytest.approx(2 / 3), "acc_50": pytest.approx(2 / 3)}


def test_sets_are_the_committed_ones():
    known = json.loads(Path(sets.__file__).with_name("digests.json").read_text())
    assert sets.digest("quick") == known["quick"]
    rounded = [q.answer for _, _, asked in sets.draw_set("quick") for q in asked]
    assert len(rounded) == 96 and all(len(answer.split()) == 4 for answer in rounded)


def test_the_tokenizer_reads_and_writes_boxes():
    tokenizer = build_tokenizer()
    ids = [IDS[word] for word in "3 17 6 20".split()]
    assert (
        tokenizer.decode(ids) == "3 17 6 20"
        and len(tokenizer) == len(VOCABULARY) == load_recipe(RECIPE).sizes.vocabulary
    )
    assert tokenizer("Where is the red star?").input_ids[1:] == [IDS[w] for w in "where is the red star".split()]


def test_answers_of_one_and_of_four_words_are_packed_together():
    scene, rng = draw_scene("train", 5), scene_rng("train", 5, 1)
    asked = [[questions.draw_question(kind, scene, rng) for kind in ("box", "color")]]
    batch = COURSE.whole([scene], asked)
    for j, question in enumerate(asked[0]):
        words = [IDS[word] for word in question.answer.split()]
        at = int(batch.answer_at[0, j])
        assert batch.question_ids[0, j, at + 1 : at + 1 + len(words)].tolist() == words
        assert batch.answers[0, j].tolist() == words + [IGNORE] * (4 - len(words))


def test_losses_count_every_word(tmp_path):
    """The answer's loss is the mean over all its words, by hand from single questions."""
    recipe = load_recipe(RECIPE, steps=3)
    trainer = Trainer(recipe, tmp_path, torch.device("cpu"), torch.float32, workers=0)
    stage = Stage("x", 24, 1, 1, questions=1, bridge=0.0, labels=0.0, frozen=True)
    scene, rng = draw_scene("train", 5), scene_rng("train", 5, 1)
    asked = [questions.draw_question(kind, scene, rng) for kind in ("box", "color", "hop2")]

    def loss(some):
        batch = COURSE.whole([scene], [some])
        return COURSE.losses(trainer.weights, recipe.sizes, batch, stage, torch.float32, torch.device("cpu"))[1]

    single = [float(loss([question])["answer_loss"]) for question in asked]
    weights = [len(question.answer.split()) for question in asked]
    together = float(loss(asked)["answer_loss"])
    assert together == pytest.approx(np.average(single, weights=weights), rel=1e-4)


def test_a_miniature_trains_and_exports(tmp_path):
    recipe = load_recipe(RECIPE)
    stages = tuple(replace(s, steps=1, batch=2, questions=min(s.questions, 3)) for s in recipe.stages)
    trainer = Trainer(replace(recipe, stages=stages), tmp_path, torch.device("cpu"), torch.float32, workers=0)
    trainer.course = replace(trainer.course, validation_scenes=8, per_kind=1)
    with torch.enable_grad():
        assert trainer.run()
    trainer.course.export(trainer.weights, recipe.sizes, tmp_path / "checkpoint")
    assert json.loads((tmp_path / "checkpoint" / "config.json").read_text())["vocab_size"] == len(VOCABULARY)
