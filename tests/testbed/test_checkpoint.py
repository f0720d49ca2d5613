"""The committed testbed checkpoint: the one the rows were measured on, small, loadable and still able to answer."""

import torch

from llava.model.builder import load_pretrained_model
from testbed.cards import card
from testbed.cards.measure import measure
from testbed.training.export import load_weights

FOLDER = card.CARD.parent


def test_rows_were_measured_on_the_committed_weights():
    fingerprint = load_weights(FOLDER)[2]
    assert {row["checkpoint"] for row in card.read_rows(card.RESULTS / "measure.jsonl")} == {fingerprint}


def test_the_checkpoint_is_small_and_loads_as_a_llava_of_twelve_layers():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 8_000_000
    _, model, _, _ = load_pretrained_model(str(FOLDER), None, "testbed", device_map="cpu", torch_dtype=torch.float32)
    assert model.config.num_hidden_layers == 12
    assert model.get_vision_tower().num_patches == 576


def test_it_answers_far_above_chance_and_not_without_its_picture():
    weights, sizes, _ = load_weights(FOLDER)
    right, kinds, _ = measure(weights, sizes, "quick", [("full", 0), ("one", 0)], images=10)
    counted = [number for number, kind in enumerate(kinds) if kind != "hop3"]
    full, one = (sum(hits[number] for number in counted) / len(counted) for hits in right.values())
    assert full > 0.8 and one < 0.5
