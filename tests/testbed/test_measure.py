"""Measurements of the testbed: dropping tokens does what it says, intervals are right, the card repeats the rows."""

import json

import numpy as np
import pytest
import torch

from testbed.cards import card
from testbed.cards.measure import (
    conditions_of,
    kept_tokens,
    measure,
    paired_difference,
    result_rows,
    wilson,
)
from testbed.data.questions import KINDS
from testbed.data.scenes import draw_scene
from testbed.training.export import export_checkpoint, load_weights
from testbed.training.model import Layout, Sizes, decode, decode_dropping, init_weights
from visiondrop.errors import VisionDropError

SIZES = Sizes(vision_width=32, vision_layers=3, vision_heads=2, vision_mlp=64, width=32, layers=4, heads=2, mlp=48)
WEIGHTS = init_weights(SIZES, 0)
for _name, _value in WEIGHTS.items():  # the upper layers are born as the identity: give them something to do
    if not _value.any():
        WEIGHTS[_name] = torch.randn(_value.shape, generator=torch.Generator().manual_seed(len(_name))) * 0.1
QUESTION = torch.tensor([[[12, 14, 7, 11, 45, 6]]])
POSITIONS = torch.arange(3, 67)


def states(features, positions, keep=None):
    layout = Layout(torch.tensor([1, 4, 5]), QUESTION, positions, 67)
    if keep is None:
        return decode(WEIGHTS, SIZES, features, layout)[0]
    first, again = decode_dropping(WEIGHTS, SIZES, features, layout, [(0, None), keep])
    torch.testing.assert_close(first, decode(WEIGHTS, SIZES, features, layout)[0])
    return again


@pytest.fixture(scope="module")
def features():
    return torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", range(4))
def test_keeping_every_token_changes_nothing(features, layer):
    every = torch.randperm(64, generator=torch.Generator().manual_seed(1))[None]
    torch.testing.assert_close(states(features, POSITIONS, (layer, every)), states(features, POSITIONS))


def test_dropping_before_the_decoder_equals_never_having_had_the_tokens(features):
    index = torch.tensor([[40, 3, 17]])
    left = torch.tensor([3, 17, 40])
    expected = states(features[:, left], POSITIONS[left])
    torch.testing.assert_close(states(features, POSITIONS, (0, index)), expected)


def test_tokens_dropped_later_matter_less_and_the_first_layers_see_all_of_them(features):
    whole, index = states(features, POSITIONS), torch.tensor([[5]])
    shifts = [(states(features, POSITIONS, (layer, index)) - whole).abs().max() for layer in range(4)]
    assert shifts[0] > shifts[3] > 0
    changed = features.clone()
    changed[:, 20] += 5  # a token that is dropped after two layers still leaves its trace
    late = states(changed, POSITIONS, (2, index))
    assert not torch.allclose(late, states(features, POSITIONS, (2, index)), atol=1e-4)
    torch.testing.assert_close(states(changed, POSITIONS, (0, index)), states(features, POSITIONS, (0, index)))


def test_conditions_keep_what_they_are_named_after():
    scene, rng = draw_scene("validation", 0), np.random.default_rng(0)
    attention = torch.rand(576, generator=torch.Generator().manual_seed(0))
    objects = kept_tokens("objects", scene, [0], attention, rng)
    needed = kept_tokens("needed", scene, [0], attention, rng)
    assert set(scene.labels.things[needed]) == {0} and set(needed) < set(objects)
    assert -1 not in scene.labels.things[objects]
    assert set(kept_tokens("cls-64", scene, [0], attention, rng)) == set(np.argsort(-attention.numpy())[:64])
    assert len(set(kept_tokens("random-64", scene, [0], attention, rng))) == 64
    assert len(kept_tokens("needed", scene, [], attention, rng)) == 1
    assert kept_tokens("full", scene, [0], attention, rng) is None
    assert conditions_of(["full", "depth"], 4) == [("full", 0), ("one", 1), ("one", 2), ("one", 3)]
    with pytest.raises(VisionDropError, match="half"):
        conditions_of(["half"], 4)


@pytest.mark.parametrize(
    "hits, total, low, high", [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (97, 100, 0.9155, 0.9897)]
)
def test_wilson_intervals_are_the_textbook_ones(hits, total, low, high):
    assert wilson(hits, total) == pytest.approx([low, high], abs=2e-4)


def test_paired_differences_use_pictures_as_units():
    first = {"right": "1" * 40, "images": sorted(list(range(10)) * 4)}
    second = {"right": ("1110" * 10), "images": first["images"]}
    assert paired_difference(first, second) == pytest.approx(
        (25.0, 25.0, 25.0)
    )  # every picture has the same difference
    middle, low, high = paired_difference(first, first | {"right": "1" * 20 + "0" * 20})
    assert middle == 50 and 0 <= low < 50 < high <= 100
    with pytest.raises(VisionDropError, match="different questions"):
        paired_difference(first, {"right": "1", "images": [1]})


def test_a_measured_row_counts_what_the_model_said(tmp_path):
    export_checkpoint(WEIGHTS, SIZES, tmp_path)
    weights, sizes, fingerprint = load_weights(tmp_path)
    assert sizes == SIZES and len(fingerprint) == 16
    right, kinds, owners = measure(weights, sizes, "quick", [("full", 0), ("needed", 0)], images=2)
    rows = result_rows(right, kinds, owners, {"set": "quick"})
    assert [row["n"] for row in rows] == [len(kinds)] * 2 == [len(rows[0]["right"])] * 2
    assert rows[0]["accuracy"] == pytest.approx(rows[0]["right"].count("1") / len(kinds), abs=1e-4)
    assert sum(entry["n"] for entry in rows[0]["kinds"].values()) == len(kinds) and set(rows[0]["kinds"]) <= set(KINDS)
    with pytest.raises(VisionDropError, match="model.safetensors"):
        load_weights(tmp_path / "nowhere")


def test_blocks_of_the_card_are_replaced_and_missing_ones_named():
    text = "a\n<!-- x -->\nold\n<!-- end x -->\nb\n"
    assert card.fill(text, {"x": r"new \1"}) == "a\n<!-- x -->\nnew \\1\n<!-- end x -->\nb\n"
    with pytest.raises(VisionDropError, match="block y"):
        card.fill(text, {"y": ""})


def test_the_committed_card_says_what_the_committed_rows_say():
    if not (card.RESULTS / "measure.jsonl").is_file():
        pytest.skip("no measured rows are committed yet")
    assert card.main(["--check"]) == 0


def test_log_and_rows_are_json_lines():
    for path in card.RESULTS.glob("*.jsonl"):
        assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())


def test_two_models_are_only_compared_on_the_same_pictures():
    log = card.read_rows(card.RESULTS / "default" / "log.jsonl")
    own, committed = (card.read_rows(folder / "measure.jsonl") for folder in (card.RESULTS / "default", card.RESULTS))
    assert "Together 64 minutes" in card.default_block(log, own, committed)
    for bad in ([row | {"images": [1]} for row in own], own[:2], []):
        with pytest.raises(VisionDropError, match="same validation pictures"):
            card.default_block(log, bad, committed)
