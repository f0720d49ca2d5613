"""The exported testbed checkpoint is a LLaVA checkpoint: stock classes and our loader give the trainer's own logits."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from testbed.data.questions import draw_question
from testbed.data.scenes import draw_scene, scene_rng
from testbed.data.tokenizer import IDS, PREFIX, SUFFIX, build_tokenizer, question_ids
from testbed.training.base import COURSE
from testbed.training.batches import normalise
from testbed.training.export import export_checkpoint
from testbed.training.model import Layout, Sizes, decode, encode, init_weights

SIZES = Sizes(vision_width=32, vision_layers=3, vision_heads=2, vision_mlp=64, width=32, layers=3, heads=2, mlp=48)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
RENAMES = (
    (r"^model\.(layers|embed_tokens|norm)\.", r"model.language_model.\1."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of a random small model whose weights are exact in float16, and those weights."""
    weights = {name: value.half().float() for name, value in init_weights(SIZES, 3).items()}
    folder = tmp_path_factory.mktemp("testbed") / "checkpoint"
    export_checkpoint(weights, SIZES, folder)
    return folder, weights


@pytest.fixture(scope="module")
def asked():
    """Two scenes with two questions each, packed."""
    scenes = [draw_scene("validation", index) for index in range(2)]
    questions = [
        [draw_question(kind, scene, scene_rng("validation", i, 1)) for kind in ("exist", "digit")]
        for i, scene in enumerate(scenes)
    ]
    return questions, COURSE.whole(scenes, questions)


def trainer_logits(weights, batch):
    """Next-token logits at the end of every prompt, float32 [B, Q, vocabulary]."""
    features, _, _ = encode(weights, SIZES, normalise(batch.pixels, torch.float32), batch.cells)
    layout = Layout(torch.tensor(PREFIX), batch.question_ids, batch.visual_positions, batch.question_start)
    states, _ = decode(weights, SIZES, features, layout)
    rows = batch.answer_at[..., None, None].expand(-1, -1, 1, SIZES.width)
    return states.gather(2, rows)[:, :, 0] @ weights["lm_head.weight"].T


def test_stock_transformers_classes_give_the_same_logits(exported, asked):
    folder, weights = exported
    questions, batch = asked
    text = json.loads((folder / "config.json").read_text())
    vision = json.loads((folder / "vision_tower" / "config.json").read_text())
    config = LlavaConfig(
        text_config=text | {"model_type": "llama"}, vision_config=vision, image_token_index=len(IDS) - 1
    )
    stock = LlavaForConditionalGeneration(config).float().eval()
    renamed = {}
    for name, value in load_file(folder / "model.safetensors").items():
        for pattern, target in RENAMES:
            name = re.sub(pattern, target, name)
        renamed[name] = value.float()
    tower = load_file(folder / "vision_tower" / "model.safetensors")
    renamed |= {
        f"model.vision_tower.{name.removeprefix('vision_model.')}": value.float() for name, value in tower.items()
    }
    stock.load_state_dict(renamed, strict=True)
    expected = trainer_logits(weights, batch)
    for i, row in enumerate(questions):
        for j, question in enumerate(row):
            ids = torch.tensor([[*PREFIX, *[len(IDS) - 1] * 576, *question_ids(question.text)]])
            with torch.no_grad():
                got = stock(input_ids=ids, pixel_values=normalise(batch.pixels[i : i + 1], torch.float32)).logits[0, -1]
            torch.testing.assert_close(got, expected[i, j], atol=2e-5, rtol=1e-4)


def test_ordinary_loader_prompt_and_image_processor_give_the_same_logits(exported, asked):
    builder = pytest.importorskip("llava.model.builder")
    from PIL import Image

    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token

    folder, weights = exported
    questions, batch = asked
    tokenizer, model, processor, _ = builder.load_pretrained_model(
        str(folder), None, "llava-v1.5-testbed", device_map="cpu", torch_dtype=torch.float32
    )
    expected = trainer_logits(weights, batch)
    for i, row in enumerate(questions):
        image = Image.fromarray(batch.pixels[i].permute(1, 2, 0).numpy())
        pixels = process_images([image], processor, model.config)
        torch.testing.assert_close(
            pixels[0].float(), normalise(batch.pixels[i : i + 1], torch.float32)[0], atol=1e-5, rtol=1e-5
        )
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], f"<image>\n{row[0].text}")
        conversation.append_message(conversation.roles[1], None)
        ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        with torch.no_grad():
            got = model(input_ids=ids[None], images=pixels, image_sizes=[image.size]).logits[0, -1]
        torch.testing.assert_close(got, expected[i, 0], atol=2e-5, rtol=1e-4)


def test_tokenizer_gives_the_ids_the_model_was_trained_on():
    tokenizer = build_tokenizer()
    assert tuple(tokenizer(f"{SYSTEM} USER: ").input_ids) == PREFIX
    for text in (
        "Is there a red star?",
        "What digit has the same shape as the object with the same color as the star?",
    ):
        assert tokenizer(f"\n{text} ASSISTANT:").input_ids[1:] == question_ids(text)
        assert question_ids(text)[-1:] == list(SUFFIX)
    assert tokenizer("unheard").input_ids[1:] == [tokenizer.unk_token_id]
    assert tokenizer.decode([IDS["red"], tokenizer.eos_token_id], skip_special_tokens=True) == "red"


def test_float16_checkpoint_of_the_default_sizes_stays_below_8_megabytes(tmp_path):
    export_checkpoint(init_weights(Sizes(), 0), Sizes(), tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 8_000_000
