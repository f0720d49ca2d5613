"""What has become of every patch, and how it is drawn."""

import numpy as np
import pytest
import torch
from PIL import Image

import visiondrop
from tests.support import models
from visiondrop.demo.fates import INPUT, Step, follow, place_name, standing_for_others
from visiondrop.demo.show import CELL, DIM, UNIT_GAP, colours, draw, paint, stages
from visiondrop.ops.report import Report, StageReport


def stage(layer, dominant, reference, merged, assignment):
    out = StageReport.empty(layer, 1)
    values = {"dominant": dominant, "reference": reference, "merged": merged, "assignment": assignment}
    for name, ids in values.items():
        getattr(out, name)[0] = torch.tensor(ids, dtype=torch.long)
    out.sequence[0] = torch.tensor(sorted(dominant + reference), dtype=torch.long)
    return out


@pytest.fixture
def report():
    """Nine patches and [CLS]: 3 and 4 join 2, 5 joins 8, 6 is discarded; then 2 itself joins 0, and 8 is dropped."""
    first = stage("encoder", [-1, 0, 1, 7], [2, 8], [3, 4, 5, 6], [0, 0, 1, -1])
    second = stage(4, [1], [0], [2, 7], [0, -1])
    return Report(stages=[first, second])


def test_a_patch_is_followed_through_tokens_that_merge_again(report):
    first, second = follow(report)
    assert first.stands_for == {-1: (), 0: (), 1: (), 7: (), 2: (3, 4), 8: (5,)}
    assert second.stands_for == {0: (2, 3, 4), 1: ()}  # 8 was dropped, and 5 with it
    assert (second.dominant, second.contextual, second.place) == (1, 1, "on entry of layer 4")
    assert first.title == "encoder: 4 with [CLS] + 2 merged" and second.title == "layer 4: 1 + 1 merged"
    assert standing_for_others([first, second]) == [0, 2, 8]


def test_places_are_in_the_models_order():
    """Inside the tower, after it, then the decoder's layers."""
    order = [Step(layer, {}, 0, 0).order for layer in ("tower 7", "tower 14", "encoder", 0, 2)]
    assert order == sorted(order) and order[0] > INPUT
    assert [place_name(n) for n in (INPUT, *order[1:4])] == [
        "the input",
        "after tower layer 14",
        "after the encoder",
        "on entry of layer 0",
    ]


def test_every_patch_is_kept_merged_or_dropped_as_the_report_says():
    model = models.native(16)
    given = {"input_ids": torch.tensor([[1, 5, -200, 9]]), "images": models.pixels(3)}
    with visiondrop.apply(model, "visiondrop", 64, report=True) as handle, torch.no_grad():
        model(**given)
        steps = follow(handle.report)
        assert [s.layer for s in steps] == [s.layer for s in handle.report.stages]
        for step, found in zip(steps, handle.report.stages):
            assert list(step.stands_for) == found.kept().tolist()
            members = [m for group in step.stands_for.values() for m in group]
            assert len(members) == len(set(members)) and not set(members) & set(step.stands_for)
        everything = set(steps[0].stands_for) | {m for group in steps[0].stands_for.values() for m in group}
        assert everything == {-1, *range(576)}  # VisionDrop merges all that it does not keep


def mean_of(picture: Image.Image, patch: int, columns: int, unit: int = 0) -> np.ndarray:
    """[3] mean colour inside a patch's frame."""
    left = unit * (columns * CELL + UNIT_GAP) + patch % columns * CELL
    top = patch // columns * CELL
    inner = np.asarray(picture)[top + 3 : top + CELL - 3, left + 3 : left + CELL - 3]
    return inner.reshape(-1, 3).mean(0)


def test_kept_is_bright_dropped_dark_merged_tinted_with_its_tokens_colour(report):
    grey = Image.new("RGB", (3 * CELL, 3 * CELL), (200, 200, 200))
    before, first, second = stages([grey], 3, follow(report))
    assert np.asarray(before).min() == 200
    for patch in (0, 1, 2, 7, 8):
        assert np.allclose(mean_of(first, patch, 3), 200)
    assert np.allclose(mean_of(first, 6, 3), round(200 * DIM))
    assert np.allclose(mean_of(first, 3, 3), mean_of(first, 4, 3))  # both joined token 2
    assert np.abs(mean_of(first, 3, 3) - mean_of(first, 5, 3)).max() > 10  # and 5 joined another
    palette = colours([0, 2, 8])
    assert tuple(np.asarray(first)[0, 2 * CELL]) == palette[2]  # the frame of token 2
    assert tuple(np.asarray(first)[0, 0]) == (200, 200, 200)  # token 0 stands for nobody yet
    assert np.allclose(mean_of(second, 2, 3), mean_of(second, 3, 3))  # merged at different stages, now in one token
    assert np.allclose(mean_of(second, 8, 3), round(200 * DIM)) and np.allclose(mean_of(second, 5, 3), round(200 * DIM))


def test_crops_and_frames_stand_side_by_side_and_need_not_be_square():
    units = [Image.new("RGB", (50, 20), (c, c, c)) for c in (100, 200)]
    kept = Step(2, {0: (), 8 + 7: ()}, 2, 0)  # the first patch of the first unit, the last of the second
    picture = paint(units, (2, 4), kept, {})
    assert picture.size == (2 * 4 * CELL + UNIT_GAP, 2 * CELL)
    bright = {(unit, patch) for unit in (0, 1) for patch in range(8) if mean_of(picture, patch, 4, unit).mean() > 90}
    assert bright == {(0, 0), (1, 7)}


def test_neighbouring_colours_can_be_told_apart():
    found = np.array(list(colours(range(40)).values()), float)
    assert len({tuple(c) for c in found}) == 40
    assert np.abs(np.diff(found, axis=0)).max(1).min() > 60


def test_frames_are_drawn_one_stage_below_the_other(report, tmp_path):
    units = [Image.new("RGB", (3 * CELL, 3 * CELL), (200, 200, 200))] * 2
    draw(units, 3, report, str(tmp_path / "out.png"))
    assert Image.open(tmp_path / "out.png").size[0] == 2 * 3 * CELL + UNIT_GAP
