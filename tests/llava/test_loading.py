"""`load_pretrained_model` on every checkpoint layout, against the tensors that were written and against stock
transformers.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import StoppingCriteriaList

from eval.results import fingerprint
from llava.checkpoints import read as checkpoint
from llava.config import LlavaConfig
from llava.mm_utils import KeywordsStoppingCriteria, process_images, tokenizer_image_token
from llava.model import builder
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from tests.support.checkpoints import (
    HUB_EXTRA_ROWS,
    HUB_IMAGE_ID,
    TOWER_IN_CHECKPOINT,
    VISION,
    VOCABULARY,
    golden_checkpoint,
    hub_model,
    language_weights,
    tower_weights,
    write_hub,
    write_original,
)
from tests.support.loading import LAYERS, edit, load, refuses
from visiondrop.families import loader
from visiondrop.shipped import CHECKPOINTS, shipped

LAYOUTS = {
    "separate-safetensors-model": (write_original, dict(tower="separate", weights="safetensors", tokenizer="model")),
    "separate-sharded-json": (write_original, dict(tower="separate", weights="sharded", tokenizer="json")),
    "separate-bin-model": (write_original, dict(tower="separate", weights="bin", tokenizer="model")),
    "inside-safetensors-json": (write_original, dict(tower="inside", weights="safetensors", tokenizer="json")),
    "inside-bin-model": (write_original, dict(tower="inside", weights="bin", tokenizer="model")),
    "hub-disk-model": (write_hub, dict(keys="disk", tokenizer="model")),
    "hub-class-json": (write_hub, dict(keys="class", tokenizer="json")),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A read-only original checkpoint."""
    return write_original(tmp_path_factory.mktemp("original"), LAYERS)


@pytest.fixture
def copy(written, tmp_path):
    """The same checkpoint and its tower, free to be damaged."""
    shutil.copytree(written.parent, tmp_path / "copy")
    return tmp_path / "copy" / written.name


@pytest.fixture(scope="module")
def stock_logits():
    """Logits [1, N, V] of transformers' own LlavaForConditionalGeneration on the golden prompt and picture."""
    ids = torch.tensor([golden_checkpoint.input_ids(0)])
    k = int((ids[0] == -200).nonzero())
    expanded = torch.cat([ids[:, :k], torch.full((1, 576), HUB_IMAGE_ID), ids[:, k + 1 :]], dim=1)
    with torch.no_grad():
        return hub_model(LAYERS)(input_ids=expanded, pixel_values=golden_picture()).logits[..., :VOCABULARY]


def golden_picture():
    return torch.from_numpy(golden_checkpoint.pixel_values(0))[None]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(layout, tmp_path, stock_logits):
    write, options = LAYOUTS[layout]
    path = write(tmp_path, LAYERS, **options)
    tokenizer, model, image_processor, context_len = load(path)
    assert isinstance(model, LlavaLlamaForCausalLM) and not model.training and context_len == 2048

    state = model.state_dict()
    expected = language_weights(LAYERS) | {
        f"model.vision_tower.vision_tower.{k}": v for k, v in tower_weights().items()
    }
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name][: len(tensor)], tensor), name
    rows = VOCABULARY + (HUB_EXTRA_ROWS if write is write_hub else 0)
    assert state["lm_head.weight"].shape[0] == model.config.vocab_size == rows

    ids = torch.tensor([golden_checkpoint.input_ids(0)])
    with torch.no_grad():
        logits = model(input_ids=ids, images=golden_picture(), image_sizes=[(336, 336)]).logits[..., :VOCABULARY]
    assert (logits - stock_logits).abs().max() <= 1e-5
    assert model.generate(ids, images=golden_picture(), do_sample=False, max_new_tokens=8).shape == (1, 8)

    assert image_processor is model.get_vision_tower().image_processor
    assert type(image_processor).__name__ == "CLIPImageProcessorPil" and image_processor.crop_size["height"] == 336
    assert model.config.image_aspect_ratio == "pad" and model.config.mm_vision_select_layer == -2
    assert model.generation_config.pad_token_id == 0 or write is write_hub
    assert model.generation_config.max_length is None
    assert model.generation_config.eos_token_id is None and model.config.vision_config.num_hidden_layers == 4
    assert model.name_or_path == str(path) and tokenizer.pad_token_id is not None


def test_a_question_is_answered_from_text_and_a_file(written):
    tokenizer, model, image_processor, _ = load(written)
    images = [Image.fromarray(np.full((30, 50, 3), 90, np.uint8)), Image.fromarray(np.full((50, 30, 3), 30, np.uint8))]
    pixels = process_images(images, image_processor, model.config)
    ids = tokenizer_image_token("USER: <image> <image>\nWhat? ASSISTANT:", tokenizer, return_tensors="pt")[None]
    new = model.generate(
        ids, images=pixels.half(), image_sizes=[i.size for i in images], do_sample=False, max_new_tokens=6
    )
    assert new.shape == (1, 6)
    assert isinstance(tokenizer.batch_decode(new, skip_special_tokens=True)[0], str)
    keyword = tokenizer.decode(new[0, 2:3])
    first = next(i for i in range(6) if keyword in tokenizer.decode(new[0, : i + 1]))
    stop = StoppingCriteriaList([KeywordsStoppingCriteria([keyword], tokenizer, ids)])
    stopped = model.generate(ids, images=pixels, do_sample=False, max_new_tokens=6, stopping_criteria=stop)
    assert stopped.tolist() == new[:, : first + 1].tolist()


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_a_loaded_model_does_not_depend_on_its_files(tmp_path, weights):
    path = write_original(tmp_path, LAYERS, weights=weights)
    model = load(path)[1]
    for file in [*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.bin")]:
        with open(file, "r+b") as stream:
            stream.write(b"\0" * file.stat().st_size)
    state, expected = model.state_dict(), language_weights(LAYERS)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert torch.equal(
        state[TOWER_IN_CHECKPOINT + "vision_model.pre_layrnorm.weight"],
        tower_weights()["vision_model.pre_layrnorm.weight"],
    )


def test_transformers_name_llava_stays_its_own(written):
    from transformers import AutoConfig

    assert LlavaConfig.model_type == "llava_llama"
    assert load(written)[1].config.model_type == "llava_llama"
    assert type(AutoConfig.for_model("llava")).__module__.startswith("transformers.")


@pytest.mark.parametrize("size", [(500, 200), (340, 360), (70, 40)])
def test_llava_next_equals_stock_transformers(tmp_path, size):
    """Both layouts; where both sides are below 336 the hub's class itself cuts otherwise than the original."""
    grid = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    fields = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": grid}
    paths = [write_hub(tmp_path / keys, LAYERS, keys=keys, family="LlavaNext") for keys in ("disk", "class")]
    if max(size) >= 336:
        paths.append(write_original(tmp_path, LAYERS, tower="inside", **fields))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ids, logits = torch.tensor([[1, 20, -200, 30, 40]]), []
    for path in paths:
        _, model, processor, _ = load(path)
        pixels = process_images([image], processor, model.config)
        with torch.no_grad():
            logits.append(model(input_ids=ids, images=pixels, image_sizes=[size]).logits[..., :VOCABULARY])
    rows = logits[0].shape[1] - 4
    expanded = torch.cat([ids[:, :2], torch.full((1, rows), HUB_IMAGE_ID), ids[:, 3:]], dim=1)
    stock = hub_model(LAYERS, family="LlavaNext")
    with torch.no_grad():
        expected = stock(input_ids=expanded, pixel_values=pixels, image_sizes=torch.tensor([size[::-1]])).logits
    for found in logits:
        assert (found - expected[..., :VOCABULARY]).abs().max() <= 1e-5


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, dtype",
    [
        (dict(torch_dtype=None), torch.float16),
        (dict(torch_dtype="bfloat16"), torch.bfloat16),
        (dict(torch_dtype=None, dtype=torch.bfloat16), torch.bfloat16),
        (dict(torch_dtype="auto"), torch.float32),
        (dict(torch_dtype=None, device_map="auto", multimodal=True, attn_implementation="sdpa"), torch.float16),
        (dict(device_map={"": "cpu"}, attn_implementation="eager"), torch.float32),
        (dict(device_map="auto", device="cpu"), torch.float32),
        (dict(device_map=torch.device("cpu"), low_cpu_mem_usage=True), torch.float32),
    ],
)
def test_dtype_device_and_attention(written, arguments, dtype):
    if arguments.get("device_map") == "auto" and "device" not in arguments and torch.accelerator.is_available():
        pytest.skip("device_map='auto' means the accelerator on this machine")
    _, model, _, _ = load(written, **arguments)
    assert model.device.type == "cpu"
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    attention = arguments.get("attn_implementation", "sdpa")
    assert model.config._attn_implementation == attention
    assert model.get_vision_tower().config._attn_implementation == attention


def test_float16_images_are_cast_to_the_tower(written):
    _, model, _, _ = load(written, torch_dtype=torch.bfloat16)
    ids = torch.tensor([golden_checkpoint.input_ids(0)])
    assert model.generate(ids, images=golden_picture().half(), do_sample=False, max_new_tokens=2).shape == (1, 2)


def test_context_length_and_customized_config(written, tmp_path):
    fields = json.loads((written / "config.json").read_text())
    fields |= {"max_sequence_length": 777, "mm_vision_tower": str(written.parent / "clip-golden")}
    (tmp_path / "other.json").write_text(json.dumps(fields))
    assert load(written, customized_config=tmp_path / "other.json")[3] == 777


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(attn_implementation="flash"), ["'flash'", "sdpa, eager, flash_attention_2"]),
        (dict(torch_dtype=torch.int8), ["torch.int8", "bfloat16"]),
        (dict(device_map="gpu"), ["'gpu'", "'cpu'"]),
        (dict(device_map={"": "cuda:99"}), ["'cuda:99'", "device_map='cpu'"]),
        (dict(device="xla:7"), ["'xla:7'"]),
        (dict(load_8bit=True, load_4bit=True), ["choose one"]),
        (dict(revision="main"), ["revision"]),
    ],
)
def test_wrong_arguments(written, arguments, words):
    refuses(words, lambda: load(written, **arguments))


def test_missing_extras(written, monkeypatch):
    monkeypatch.setattr(builder, "is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr(builder, "is_flash_attn_2_available", lambda: False)
    refuses(["load_4bit", "pip install bitsandbytes"], lambda: load(written, load_4bit=True))
    refuses(["load_8bit", "pip install bitsandbytes"], lambda: load(written, load_8bit=True))
    refuses(["flash-attn", "'sdpa'"], lambda: load(written, use_flash_attn=True))
    monkeypatch.setattr(builder, "is_flash_attn_2_available", lambda: True)
    refuses(["float16 or bfloat16"], lambda: load(written, attn_implementation="flash_attention_2"))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_decoder(written, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    ids = torch.tensor([golden_checkpoint.input_ids(0)])
    _, model, _, _ = load(written, torch_dtype=torch.bfloat16, **{f"load_{bits}bit": True})
    for name, module in model.named_modules():
        if hasattr(module, "in_features"):
            assert ("bit" in type(module).__name__) == name.startswith("model.layers."), name
    with torch.no_grad():
        logits = [m(input_ids=ids, images=golden_picture()).logits[0, -1].float() for m in (model, load(written)[1])]
    assert torch.corrcoef(torch.stack(logits))[0, 1] > 0.98


def test_model_base_is_refused(written):
    refuses(["model_base", "merge"], lambda: load_pretrained_model(written, "lmsys/vicuna-7b-v1.5", "llava-lora"))


# Towers ---------------------------------------------------------------------------------------------------------------


def test_tower_inside_wins_over_the_named_one(tmp_path):
    path = write_original(tmp_path / "a", LAYERS, tower="inside")
    other = write_original(tmp_path / "b", LAYERS).parent / "clip-golden"
    changed = {name: tensor + 1 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(changed, other / "model.safetensors")
    edit(path / "config.json", mm_vision_tower=str(other))
    state = load(path)[1].state_dict()
    for name, tensor in tower_weights().items():
        assert torch.equal(state[TOWER_IN_CHECKPOINT + name], tensor), name


@pytest.mark.parametrize("name", ["absolute", "relative to the checkpoint", "relative to the working directory"])
def test_tower_names(copy, name, monkeypatch):
    tower = copy.parent / "clip-golden"
    if name == "absolute":
        edit(copy / "config.json", mm_vision_tower=str(tower))
    elif name == "relative to the checkpoint":
        shutil.move(tower, copy / "tower")
        edit(copy / "config.json", mm_vision_tower="tower")
    else:
        shutil.copytree(tower, tower.parent / "elsewhere" / "clip")
        monkeypatch.chdir(tower.parent)
        edit(copy / "config.json", mm_vision_tower="elsewhere/clip")
    assert load(copy)[1].get_vision_tower().num_patches == 576


def test_tower_saved_without_its_text_half_or_its_level(copy):
    tower = copy.parent / "clip-golden"
    edit(tower / "config.json", replace={"model_type": "clip_vision_model", **VISION})
    save_file({k.removeprefix("vision_model."): v for k, v in tower_weights().items()}, tower / "model.safetensors")
    state = load(copy)[1].state_dict()
    assert all(torch.equal(state[TOWER_IN_CHECKPOINT + name], tensor) for name, tensor in tower_weights().items())


def test_known_tower_inside_needs_no_folder_and_no_network():
    """v1.6 checkpoints hold the tower and name a hub id, whose config the loader knows."""
    config = LlavaConfig(mm_vision_tower="openai/clip-vit-large-patch14-336")
    name = checkpoint.TOWER_PREFIX + "pre_layrnorm.weight"
    folder = checkpoint._add_tower(config, {name: torch.ones(1)}, Path("/nonexistent"))
    vision = config.vision_config
    assert folder is None
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.image_size) == (
        1024,
        24,
        16,
        336,
    )


def test_missing_preprocessor_config_means_clip_settings(copy):
    reference = load(copy)[2]
    (copy.parent / "clip-golden" / "preprocessor_config.json").unlink()
    processor = load(copy)[2]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8))
    config = LlavaConfig(image_aspect_ratio="pad")
    assert torch.equal(process_images([image], processor, config), process_images([image], reference, config))


def test_a_short_name_is_the_shipped_checkpoint_unless_a_folder_here_has_it(tmp_path, monkeypatch):
    assert shipped("testbed-next") == str(CHECKPOINTS / "testbed-next") and shipped("testbed-old") == "testbed-old"
    assert shipped("../checkpoints") == "../checkpoints" and shipped("liuhaotian/testbed") == "liuhaotian/testbed"
    monkeypatch.chdir(tmp_path)
    assert fingerprint.checkpoint("testbed").path == str(CHECKPOINTS / "testbed")
    assert loader().shape_of("testbed-next").nominal == 2880
    (tmp_path / "testbed-next").mkdir()
    assert shipped("testbed-next") == "testbed-next"
    monkeypatch.chdir(CHECKPOINTS.parent)  # where testbed/ is a package of ours
    assert shipped("testbed") == str(CHECKPOINTS / "testbed")
