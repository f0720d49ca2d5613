"""The identity of a checkpoint: what can change an answer is in it, the model card is not."""

import json
from dataclasses import replace

import pytest
import torch

from eval.results import fingerprint
from llava.model.builder import load_pretrained_model
from tests.support import checkpoints
from visiondrop.families import adapter_for
from visiondrop.plans.flops import LLAVA_7B
from visiondrop.plans.shape import VisualShape


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tower").mkdir()
    for name, text in (("config.json", "{}"), ("model.bin", "abc"), ("tower/config.json", "{}"), ("README.md", "card")):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_model_card_is_no_part_of_the_checkpoint(folder):
    before = fingerprint.checkpoint(str(folder)).fingerprint
    (folder / "README.md").write_text("another card")
    (folder / "tower" / "NOTES.md").write_text("new")
    assert fingerprint.checkpoint(str(folder)).fingerprint == before


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tower/config.json", "new.json"])
def test_every_other_file_is(folder, name):
    before = fingerprint.checkpoint(str(folder)).fingerprint
    (folder / name).write_text('{"a": 1}')
    assert fingerprint.checkpoint(str(folder)).fingerprint != before


def test_a_data_folder_is_hashed_whole(folder):
    before = fingerprint.of_folder(folder)
    (folder / "README.md").write_text("tells datasets which files there are")
    assert fingerprint.of_folder(folder) != before


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("family", ["Llava", "LlavaNext"])
def test_a_hub_folder_is_described_as_its_loaded_model_is(tmp_path, family, strategy):
    folder = checkpoints.write_hub(tmp_path, family=family)
    file = folder / "config.json"
    held = json.loads(file.read_text()) | {"vision_feature_select_strategy": strategy}
    file.write_text(json.dumps(held))
    _, model, *_ = load_pretrained_model(str(folder), None, "llava", device_map="cpu", torch_dtype=torch.float32)
    found = fingerprint.checkpoint(str(folder))
    assert found.visual_shape() == model.visual_shape()
    assert found.dims == replace(adapter_for(model).dims(), name=found.name)


def test_what_a_hub_folder_leaves_out_is_the_default_of_its_class(tmp_path):
    """As in llava-hf/llava-1.5-7b-hf, whose config.json says neither layers nor dimensions of the decoder."""
    vision = dict(hidden_size=1024, image_size=336, intermediate_size=4096, model_type="clip_vision_model")
    vision |= dict(num_attention_heads=16, num_hidden_layers=24, patch_size=14)
    text = {"model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 32064}
    config = {"model_type": "llava", "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = fingerprint.checkpoint(str(tmp_path))
    assert found.visual_shape() == VisualShape(32, 576, tower_layers=24, feature_layer=22)
    assert found.dims == replace(LLAVA_7B, name=found.name, vocab=32064)
