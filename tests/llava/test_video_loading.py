"""Video-LLaVA checkpoints in both file layouts through `load_pretrained_model`."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import load_pretrained_model
from tests.support import checkpoints, video_models
from tests.support.golden import golden_checkpoint as golden
from visiondrop.errors import VisionDropError

LAYERS = 4
IMAGE, VIDEO = "model.image_tower.image_tower.", "model.video_tower.video_tower."


def write_towers(folder, model) -> dict:
    """LanguageBind's two folders beside the checkpoint; returns the fields of config.json that name them."""
    fields = {}
    for kind, prefix, extra in (("image", IMAGE, {}), ("video", VIDEO, {"num_frames": 8, "add_time_attn": True})):
        place = folder / f"LanguageBind_{kind}"
        place.mkdir()
        vision = {"model_type": f"LanguageBind{kind}_vision", **video_models.VISION, "lora_r": 0, **extra}
        checkpoints.write_json(
            place / "config.json", {"model_type": f"LanguageBind{kind}", "vision_config": vision, "text_config": {}}
        )
        tensors = {
            "vision_model." + name.removeprefix(prefix): tensor.clone()
            for name, tensor in model.state_dict().items()
            if name.startswith(prefix)
        }
        tensors |= {
            "text_projection.weight": torch.ones(2, 2),
            "vision_model.embeddings.position_ids": torch.arange(65)[None],
        }
        save_file(tensors, place / "model.safetensors")
        fields[f"mm_{kind}_tower"] = f"../LanguageBind_{kind}"
    return fields


def write_original(folder, model, inside: bool):
    """A checkpoint in the original layout, its towers beside it or (weights only) inside."""
    fields = write_towers(folder, model)
    place = folder / "video-llava-golden"
    place.mkdir()
    config = checkpoints.original_config(LAYERS, None, **fields)
    config.pop("mm_vision_tower")
    checkpoints.write_json(place / "config.json", config)
    tensors = {n: t.clone() for n, t in model.state_dict().items() if inside or not n.startswith((IMAGE, VIDEO))}
    if inside:
        for kind in ("image", "video"):
            (folder / f"LanguageBind_{kind}" / "model.safetensors").unlink()
    save_file(tensors, place / "model.safetensors")
    checkpoints.write_tokenizer(place, "model")
    return place


def load(place):
    return load_pretrained_model(str(place), None, "video-llava", device_map="cpu", torch_dtype=torch.float32)


def logits(model) -> torch.Tensor:
    row = video_models.prompt(4, "image", 5, "video", 12)
    images = [video_models.image(0), video_models.video(1)]
    return model(input_ids=torch.tensor([row]), images=images).logits


@pytest.mark.parametrize("inside", [False, True])
def test_original_layout_has_temporal_attention(tmp_path, inside):
    model = video_models.native(LAYERS)
    _, loaded, processor, _ = load(write_original(tmp_path, model, inside))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.video_shape().source == "video" and processor.crop_size["height"] == video_models.SIDE


@pytest.fixture
def warnings(caplog):
    """The log of warnings, transformers' own among them."""
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        yield caplog
    logging.getLogger("transformers").propagate = False


@pytest.mark.parametrize("extra, surplus", [(None, False), ("more.bias", True)])
def test_one_folder_for_both_towers(tmp_path, warnings, extra, surplus):
    """The image tower takes from the video tower's folder all but attention over time; other surplus is still said."""
    model = video_models.native(LAYERS)
    image = {n: t for n, t in model.state_dict().items() if n.startswith(IMAGE)}
    assert all(torch.equal(t, model.state_dict()[n.replace(IMAGE, VIDEO)]) for n, t in image.items())
    place = write_original(tmp_path, model, inside=False)
    if extra:
        file = tmp_path / "LanguageBind_video" / "model.safetensors"
        save_file(load_file(file) | {f"vision_model.encoder.layers.0.{extra}": torch.zeros(1)}, file)
    fields = dict(mm_image_tower="../LanguageBind_video", mm_video_tower="../LanguageBind_video")
    config = checkpoints.original_config(LAYERS, None, **fields)
    config.pop("mm_vision_tower")
    checkpoints.write_json(place / "config.json", config)
    _, loaded, *_ = load(place)
    assert torch.equal(logits(loaded), logits(model))
    assert ("no place for" in warnings.text) == surplus


@pytest.mark.parametrize("says, surplus", [(False, False), (True, True)])
def test_temporal_weights_of_an_image_tower_of_its_own(tmp_path, warnings, says, surplus):
    """A folder that only the image tower names may hold attention over time, but may not ask for it unheard."""
    model = video_models.native(LAYERS)
    place = write_original(tmp_path, model, inside=False)
    folder = tmp_path / "LanguageBind_image"
    tensors = load_file(tmp_path / "LanguageBind_video" / "model.safetensors")
    save_file(tensors, folder / "model.safetensors")
    vision = {**video_models.VISION, "add_time_attn": says}
    checkpoints.write_json(folder / "config.json", {"model_type": "LanguageBindImage", "vision_config": vision})
    _, loaded, *_ = load(place)
    assert torch.equal(logits(loaded), logits(model))
    assert ("no place for" in warnings.text) == surplus


def test_hub_layout_loads_with_a_warning(tmp_path, warnings):
    hub = video_models.hub(LAYERS)
    place = tmp_path / "hub"
    hub.save_pretrained(place)
    checkpoints.write_tokenizer(place, "model")
    _, loaded, *_ = load(place)
    assert "different model" in warnings.text
    assert loaded.video_shape().source == "video-without-temporal-attention"
    vocabulary = golden.TEXT["vocab_size"]
    found, expected = logits(loaded)[..., :vocabulary], logits(video_models.native(LAYERS, temporal=False))
    assert (found - expected).abs().max() <= 1e-5


def test_a_missing_tower_is_named(tmp_path):
    place = write_original(tmp_path, video_models.native(LAYERS), inside=False)
    (tmp_path / "LanguageBind_video" / "model.safetensors").unlink()
    with pytest.raises(VisionDropError, match="LanguageBind_video"):
        load(place)
    config = checkpoints.original_config(LAYERS, None, mm_video_tower="../LanguageBind_video")
    checkpoints.write_json(place / "config.json", config)
    with pytest.raises(VisionDropError, match="mm_image_tower"):
        load(place)
