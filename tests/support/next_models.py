"""LLaVA-NeXT-shaped models with golden weights, in our class and in transformers', and pictures for them."""

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.anyres import PINPOINTS
from llava.config import LlavaConfig
from llava.mm_utils import process_images
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from tests.support import models
from tests.support.golden import golden_checkpoint as golden

SIDE = 112  # 64 patches a crop: as 336 px, only quicker


def vision(side: int = SIDE, tower: str = "") -> dict:
    """Tower settings."""
    return {**(models.DEEP if tower else golden.VISION), "image_size": side}


def pinpoints(side: int = SIDE) -> list[list[int]]:
    """(width, height) pairs for a tower of that size."""
    return [[w * side // 336, h * side // 336] for w, h in PINPOINTS]


def native(layers: int = 8, side: int = SIDE, tower: str = "", **changes) -> LlavaLlamaForCausalLM:
    """Our class in the layout "anyres"; tower: as in `models.native`."""
    settings = dict(
        image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad", image_grid_pinpoints=pinpoints(side)
    )
    config = LlavaConfig(
        **models.text_settings(layers), vision_config=vision(side, tower), mm_hidden_size=64, **settings | changes
    )
    model = LlavaLlamaForCausalLM(config).eval()
    for name, value in model.state_dict().items():
        value.copy_(
            torch.from_numpy(golden.tensor(name.replace("model.vision_tower.vision_tower.", ""), tuple(value.shape)))
        )
    models.sharpen(model.state_dict(), tower)
    model.generation_config.eos_token_id = None
    return model


def hub(layers: int = 8, side: int = SIDE) -> LlavaNextForConditionalGeneration:
    """transformers' class with the same weights; its pinpoints are (height, width)."""
    vocab = models.HUB_IMAGE_ID + 1
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision(side)),
        text_config=LlamaConfig(**models.text_settings(layers, vocab_size=vocab)),
        image_token_index=models.HUB_IMAGE_ID,
        image_grid_pinpoints=[[h, w] for w, h in pinpoints(side)],
    )
    model = LlavaNextForConditionalGeneration(config).eval()
    for name, value in model.state_dict().items():
        original = (
            name.replace("model.language_model.", "model.")
            .replace("model.multi_modal_projector.linear_1", "model.mm_projector.0")
            .replace("model.multi_modal_projector.linear_2", "model.mm_projector.2")
            .replace("model.vision_tower.", "vision_model.")
        )
        if value.shape[0] == vocab:
            value.zero_()
            value[:-1].copy_(torch.from_numpy(golden.tensor(original, (vocab - 1, *value.shape[1:]))))
        else:
            value.copy_(torch.from_numpy(golden.tensor(original, tuple(value.shape))))
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [models.HUB_IMAGE_ID]
    return model


def processor(side: int = SIDE) -> CLIPImageProcessorPil:
    """CLIP's PIL processor for that tower."""
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blobs on a gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
    for _ in range(8):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.05, 0.3) * max(width, height)
        values[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(0, 255, 3)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def inputs(model: LlavaLlamaForCausalLM, *sizes: tuple[int, int]) -> tuple:
    """(images, image_sizes) of drawn pictures of these (width, height)."""
    pictures = [picture(w, h, seed) for seed, (w, h) in enumerate(sizes)]
    side = model.config.vision_config.image_size
    return process_images(pictures, processor(side), model.config), list(sizes)


def to_hub(model: LlavaLlamaForCausalLM, images, sizes: list[tuple[int, int]], rows: list[list[int]]) -> dict:
    """The same inputs for transformers' class: padded crops, (height, width) sizes, all placeholders."""
    most = max(len(image) for image in images)
    pixels = torch.stack([torch.cat([i, i.new_zeros(most - len(i), *i.shape[1:])]) for i in images])
    lengths = iter([p.shape.tokens for p in model.pictures(images, sizes)])
    expanded = [
        [t for id in row for t in ([models.HUB_IMAGE_ID] * next(lengths) if id == -200 else [id])] for row in rows
    ]
    ids, mask = models.pad(expanded)
    return dict(
        input_ids=ids, attention_mask=mask, pixel_values=pixels, image_sizes=torch.tensor([[h, w] for w, h in sizes])
    )
