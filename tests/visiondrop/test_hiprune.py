"""HiPrune's choice: the official function cases (anchors at the edges of the grid), ties, batches, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

import visiondrop
from tests.support import models
from visiondrop.methods.encoder.hiprune import hierarchy

TRACE = Path(__file__).parents[1] / "support" / "golden" / "traces" / "hiprune_function_cases.npz"
CASES = dict(np.load(TRACE))
SHAPE = visiondrop.plan("none").shape


def case(number: int) -> dict:
    return {name[3:]: torch.from_numpy(x) for name, x in CASES.items() if name.startswith(f"c{number}_")}


@pytest.mark.parametrize("number", range(5))
def test_equals_the_official_function(number):
    given = case(number)
    early, deep = given["object_score"][None], given["deep_score"][None]
    got = hierarchy(early, deep, len(given["anchors"]), 24, int(given["tokens"]))
    assert got[0].tolist() == given["kept_grid"].tolist()


def test_a_batch_is_its_singles():
    """Anchors in the middle and in a corner protect different numbers of patches."""
    early, deep = (torch.stack([case(n)[name] for n in (0, 2)]) for name in ("object_score", "deep_score"))
    wanted = [case(n)["kept_grid"].tolist() for n in (0, 2)]
    assert hierarchy(early, deep, 4, 24, 192).tolist() == wanted


def test_equal_scores_go_to_the_smallest_patch():
    flat = torch.full((1, 36), 0.5)
    assert hierarchy(flat, flat, 1, 6, 8)[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert hierarchy(flat, flat, 0, 6, 4)[0].tolist() == [0, 1, 2, 3]


def test_the_plan_names_the_layers_and_what_cannot_be():
    assert visiondrop.plan("hiprune", 192).encoder.probes == (8, 22)
    assert visiondrop.plan("hiprune", 192, object_layer=16).encoder.probes == (15, 22)
    # 12 tokens, all of them for anchors: round(12 / 5) = 2 anchors are 10; of 3 tokens one anchor takes 5.
    assert visiondrop.plan("hiprune", 12, alpha=1).encoder.keep == 12
    with pytest.raises(visiondrop.VisionDropError, match="with gaps|reachable"):
        visiondrop.plan("hiprune", 3, alpha=1)
    with pytest.raises(visiondrop.VisionDropError, match="1 … 23"):
        visiondrop.plan("hiprune", 64, object_layer=24)


def test_another_feature_layer_than_the_models_is_refused_where_it_comes_too_early():
    model = models.hub(2)
    with visiondrop.apply(model, "hiprune", tokens=64, object_layer=3):
        with pytest.raises(visiondrop.UnsupportedError, match="leave vision_feature_layer out"):
            model.model.get_image_features(models.pixels(0), vision_feature_layer=1)


def test_the_object_layer_counts():
    """A mistake by one layer would be seen."""
    model, kept = models.native(2, tower="deep"), []
    for layer in (9, 10):
        with visiondrop.apply(model, "hiprune", tokens=64, alpha=0.5, object_layer=layer, report=True) as handle:
            model(input_ids=torch.tensor([models.prompt()]), images=models.pixels(0))
            kept.append(handle.report.stages[0].kept().tolist())
    assert kept[0] != kept[1]
