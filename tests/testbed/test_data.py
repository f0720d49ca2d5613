"""Scenes, questions and sets: reproducible, disjoint, and every answer found again in another way."""

import json
from collections import Counter

import numpy as np
import pytest

from testbed.data import scenes, sets
from testbed.data.questions import KINDS, MAX_COUNT, PLURALS, TRAINING_KINDS, candidates, draw_question
from testbed.data.scenes import COLORS, FULL_GRID, NO_COLOR, PATCH, draw_scene, scene_rng
from testbed.tasks import answers
from visiondrop.errors import VisionDropError

SCENES = [draw_scene("validation", index) for index in range(40)]


def test_a_scene_is_a_function_of_split_index_and_grid():
    again = draw_scene("validation", 3)
    np.testing.assert_array_equal(again.image, SCENES[3].image)
    assert again.things == SCENES[3].things
    for other in (draw_scene("validation", 4), draw_scene("test", 3), draw_scene("validation", 3, grid=14)):
        assert other.image.shape != again.image.shape or (other.image != again.image).mean() > 0.5


def test_splits_share_no_background_texture():
    textures = {split: [scenes._texture(split, n) for n in range(3)] for split in scenes.SPLITS}
    for split, own in textures.items():
        for other, theirs in textures.items():
            same = [(a == b).mean() > 0.2 for a in own for b in theirs]
            assert any(same) == (split == other)


@pytest.mark.parametrize(
    "call, needle",
    [
        (lambda: draw_scene("train", 0, grid=9), "9"),
        (lambda: draw_scene("dev", 0), "dev"),
        (lambda: list(sets.draw_set("big")), "big"),
    ],
)
def test_wrong_requests_are_named(call, needle):
    with pytest.raises(VisionDropError, match=needle):
        call()


def test_objects_do_not_overlap_and_are_drawn_where_they_are_said_to_be():
    for scene in SCENES:
        for n, thing in enumerate(scene.things):
            for other in scene.things[:n]:
                assert max(abs(thing.x - other.x), abs(thing.y - other.y)) >= (thing.side + other.side) / 2
            corner = scene.image[thing.y, thing.x - thing.side // 4].astype(
                int
            )  # beside the digit's ink for most shapes
            if thing.digit is None:
                assert abs(corner - np.array(COLORS[thing.color])).max() <= 20


def test_patch_labels_follow_the_objects():
    for scene in SCENES[:10]:
        owner = scene.labels.things.reshape(FULL_GRID, FULL_GRID)
        for number, thing in enumerate(scene.things):
            assert owner[thing.y // PATCH, thing.x // PATCH] == number
            rows, columns = np.nonzero(owner == number)
            assert abs(rows * PATCH + PATCH / 2 - thing.y).max() <= thing.side / 2 + PATCH
            assert abs(columns * PATCH + PATCH / 2 - thing.x).max() <= thing.side / 2 + PATCH
        assert set(scene.labels.colors[scene.labels.things < 0]) == {NO_COLOR}


def referred(text, things):
    """Objects that a phrase such as "the star", "the red object" or "the red star" fits, read from the words alone."""
    words = text.rstrip("?").split()
    return [n for n, t in enumerate(things) if all(word in (t.color, t.shape, "object", "the") for word in words)]


def solve(text, things):
    """Answers a question by its words only, without the code that made it."""
    words = text.rstrip("?")
    if words.startswith("Is there a "):
        name = words.removeprefix("Is there a ")
        return "yes" if referred(name, things) else "no"
    if words.startswith("How many objects are "):
        name = words.removeprefix("How many objects are ")
        singular = {plural: one for one, plural in PLURALS.items()}.get(name, name)
        return str(sum(singular in (t.color, t.shape) for t in things))
    asked = words.split()[1]
    if " on the " in words:
        found = referred(words.split(" on ")[1], things)
    elif "same" not in words:
        found = referred(words.split(" is ")[1], things)
    else:
        chain = words.split(" the same ")[1:]  # "color as the object with", ..., "color as the star"
        found = referred(chain[-1].split(" as ")[1], things)
        for part in reversed(chain):
            attribute = part.split(" as ")[0]
            assert len(found) == 1
            (start,) = found
            found = [
                n
                for n, t in enumerate(things)
                if n != start and getattr(t, attribute) == getattr(things[start], attribute)
            ]
    assert len(found) == 1
    return str(getattr(things[found[0]], asked))


@pytest.mark.parametrize("kind", TRAINING_KINDS)
def test_every_answer_is_found_again_from_the_words(kind):
    number = 0
    for scene in SCENES:
        for question in candidates(kind, scene)[:12]:
            assert solve(question.text, scene.things) == question.answer, question
            number += 1
    assert number > 15


def test_hard_negatives_are_half_of_the_negatives_and_truly_hard():
    rng = np.random.default_rng(0)
    negatives = [q for scene in SCENES for _ in range(20) if (q := draw_question("exist", scene, rng)).answer == "no"]
    assert 0.4 < np.mean([q.hard for q in negatives]) < 0.6
    for scene in SCENES[:5]:
        for question in candidates("exist", scene):
            color, shape = question.text.rstrip("?").split()[-2:]
            both = any(t.color == color for t in scene.things) and any(t.shape == shape for t in scene.things)
            assert question.hard == (question.answer == "no" and both)


def test_sets_are_balanced_and_chance_is_what_counting_says():
    drawn = [question for _, _, asked in sets.draw_set("quick") for question in asked]
    assert len(drawn) == 500
    kinds = Counter(question.kind for question in drawn)
    assert set(kinds) == set(KINDS) and max(kinds.values()) - min(kinds.values()) <= 1
    exist = Counter(q.answer for q in drawn if q.kind == "exist")
    assert abs(exist["yes"] - exist["no"]) <= 1
    count = Counter(q.answer for q in drawn if q.kind == "count")
    assert set(count) == {str(n) for n in range(1, MAX_COUNT + 1)}
    chance = sets.chance_levels("quick")
    assert chance["count"] == max(count.values()) / kinds["count"]
    assert chance["hop2"] < 0.25


def test_written_sets_load_with_datasets_and_keep_their_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    home = sets.write_sets(tmp_path, ("quick",), progress=False)
    before = (home / "quick").iterdir().__next__().stat().st_mtime_ns
    sets.write_sets(tmp_path, ("quick",), progress=False)  # finished sets are kept
    assert (home / "quick").iterdir().__next__().stat().st_mtime_ns == before
    loaded = datasets.load_dataset(str(home), "quick", cache_dir=str(tmp_path / "cache"))["test"]
    assert len(loaded) == 500 and len(set(loaded["question_id"])) == 500
    row = loaded[7]
    (picture,) = answers.doc_to_visual(row)
    scene = draw_scene(row["split"], row["scene"])
    np.testing.assert_array_equal(np.asarray(picture), scene.image)
    assert solve(answers.doc_to_text(row), scene.things) == row["answer"]
    assert set(row["needed_patches"]) <= set(row["object_patches"]) <= set(range(FULL_GRID**2))


@pytest.mark.parametrize(
    "reply, right", [("red", 1.0), (" Red. ", 1.0), ("red red", 1.0), ("blue", 0.0), ("", 0.0), ("reddish", 0.0)]
)
def test_scoring_reads_the_first_word(reply, right):
    assert answers.process_results({"answer": "red", "kind": "color"}, [reply]) == {
        "exact_match": right,
        "color": right,
    }


def test_digest_does_not_change_unnoticed():
    assert sets.digest("quick") == json.loads((sets.Path(sets.__file__).parent / "digests.json").read_text())["quick"]


def test_scene_rng_streams_are_independent():
    draws = {
        scene_rng(split, index, purpose).integers(2**62)
        for split in scenes.SPLITS
        for index in range(3)
        for purpose in range(3)
    }
    assert len(draws) == 27
