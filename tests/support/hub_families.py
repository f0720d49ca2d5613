"""Tiny random models of the table's families, and prompts with pictures and videos for them, without any processor."""

from dataclasses import dataclass
from unittest import mock

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

LAYERS = 8
IMAGE, VIDEO, START, END = 200, 201, 202, 203
VOCAB = 204
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
    max_position_embeddings=4096,
)
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
TOKENS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)


def qwen2_vl():
    vision = dict(depth=3, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2, patch_size=14, spatial_merge_size=2)
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config={**TEXT, **MROPE}, vision_config=vision, **TOKENS))


def qwen2_5_vl():
    vision = dict(
        depth=3,
        hidden_size=32,
        out_hidden_size=64,
        intermediate_size=48,
        num_heads=2,
        patch_size=14,
        spatial_merge_size=2,
        window_size=56,
        fullatt_block_indexes=[1],
        tokens_per_second=2,
    )
    config = Qwen2_5_VLConfig(text_config={**TEXT, **MROPE}, vision_config=vision, **TOKENS)
    return Qwen2_5_VLForConditionalGeneration(config)


VISION3 = dict(
    depth=4,
    hidden_size=32,
    out_hidden_size=64,
    intermediate_size=48,
    num_heads=2,
    patch_size=14,
    spatial_merge_size=2,
    num_position_embeddings=64,
    deepstack_visual_indexes=[0, 1, 2],
)
TEXT3 = {**TEXT, **MROPE, "head_dim": 24}
TEXT3["rope_parameters"] = {**MROPE["rope_parameters"], "mrope_section": [4, 4, 4]}


def qwen3_vl():
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=TEXT3, vision_config=VISION3, **TOKENS))


def qwen3_vl_moe():
    text = {**TEXT3, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=VISION3, **TOKENS))


def onevision():
    vision = dict(
        model_type="siglip_vision_model",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config=vision,
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        video_token_index=VIDEO,
        video_token_id=VIDEO,
        image_grid_pinpoints=[[56, 56], [56, 112], [112, 56], [112, 112], [112, 168]],
        vision_aspect_ratio="anyres_max_9",
    )
    return LlavaOnevisionForConditionalGeneration(config)


def internvl():
    vision = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=[56, 56],
        patch_size=[14, 14],
    )
    config = InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2"}, vision_config=vision, image_token_id=IMAGE, image_seq_length=4
    )
    return InternVLForConditionalGeneration(config)


def glm4v():
    vision = dict(
        depth=3,
        hidden_size=32,
        out_hidden_size=64,
        intermediate_size=48,
        num_heads=2,
        patch_size=14,
        image_size=112,
        spatial_merge_size=2,
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
    tokens = {**TOKENS, "image_start_token_id": START, "image_end_token_id": END}
    config = Glm4vConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, **tokens)
    return Glm4vForConditionalGeneration(config)


def idefics3():
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=112, patch_size=14
    )
    config = Idefics3Config(
        text_config={**TEXT, "model_type": "llama"}, vision_config=vision, image_token_id=IMAGE, scale_factor=2
    )
    return Idefics3ForConditionalGeneration(config)


BUILDERS = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "onevision": onevision,
    "internvl": internvl,
    "glm4v": glm4v,
    "idefics3": idefics3,
}
GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v")  # a grid per picture, positions of three axes
STAMPED = ("qwen3_vl", "qwen3_vl_moe", "glm4v")  # text stands between a video's frames
PICTURES_ONLY = ("internvl", "idefics3")


def build(name: str, dtype=torch.float32, attn: str = "sdpa", **ids: int):
    """A random model of family `name`, its weights large enough that attention is not flat.

    Args:
        ids: other values of IMAGE, VIDEO and VOCAB.
    """
    torch.manual_seed(7)
    with mock.patch.dict(globals(), ids), mock.patch.dict(TEXT, vocab_size=ids.get("VOCAB", VOCAB)):
        tokens = {"image_token_id": ids.get("IMAGE", IMAGE), "video_token_id": ids.get("VIDEO", VIDEO)}
        with mock.patch.dict(TOKENS, tokens), mock.patch.dict(TEXT3, vocab_size=TEXT["vocab_size"]):
            model = BUILDERS[name]().eval()
    model.set_attn_implementation(attn)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * 1.5 / value.shape[-1] ** 0.5)
        model.lm_head.weight.mul_(0.5)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    # Placeholders must never be answers.
    model.generation_config.suppress_tokens = [IMAGE, VIDEO, START, END]
    return model.to(dtype)


@dataclass
class Picture:
    """Pixels of one picture or video, its grid or size, and the placeholders it needs, with what stands around them."""

    kind: str
    pixels: torch.Tensor
    size: tuple[int, ...]
    ids: list[int]


def picture(name: str, seed: int, rows: int = 8, columns: int = 12) -> Picture:
    """A picture of about rows x columns patches."""
    generator = torch.Generator().manual_seed(seed)
    if name in GRIDS:
        pixels = torch.randn(rows * columns, 3 * 2 * 14 * 14, generator=generator)
        return Picture("image", pixels, (1, rows, columns), [START, *[IMAGE] * (rows * columns // 4), END])
    if name == "idefics3":  # every tile is a run of placeholders of its own
        tiles = max(1, rows * columns // 96)
        ids = [token for _ in range(tiles) for token in (START, *[IMAGE] * 16)]
        return Picture("image", torch.randn(tiles, 3, 112, 112, generator=generator), (), [*ids, END])
    if name == "internvl":
        tiles = max(1, rows * columns // 16)
        pixels = torch.randn(tiles, 3, 56, 56, generator=generator)
        return Picture("image", pixels, (), [START, *[IMAGE] * (4 * tiles), END])
    height, width = rows * 14, columns * 14
    count, tiles = onevision_tokens(height, width)
    pixels = torch.randn(tiles, 3, 56, 56, generator=generator)
    return Picture("image", pixels, (height, width), [IMAGE] * count)


def onevision_tokens(height: int, width: int) -> tuple[int, int]:
    """(tokens, tiles) of an OneVision picture, from the model's own functions."""
    from visiondrop.families.patches import PATCHES, tiles_of

    inner = onevision().model
    sizes = torch.tensor([[height, width]])
    tiles = tiles_of(inner, sizes, None)[0]
    packed = PATCHES["tiles"](inner, torch.zeros(tiles * 16, 2), {"image_sizes": sizes})
    return len(packed), tiles


def video(name: str, seed: int, frames: int = 2, rows: int = 8, columns: int = 8) -> Picture:
    """A video of `frames` frames (of temporal patches, for Qwen)."""
    generator = torch.Generator().manual_seed(seed)
    if name in GRIDS:
        pixels = torch.randn(frames * rows * columns, 3 * 2 * 14 * 14, generator=generator)
        each = [IMAGE if name == "glm4v" else VIDEO] * (rows * columns // 4)
        if name in STAMPED:  # a time stamp before every frame
            ids = [token for frame in range(frames) for token in (17 + frame, START, *each, END)]
        else:
            ids = [START, *each * frames, END]
        return Picture("video", pixels, (frames, rows, columns), ids)
    pixels = torch.randn(frames, 3, 56, 56, generator=generator)
    return Picture("video", pixels, (), [VIDEO] * (frames * 4 + 1))


def text(seed: int, count: int) -> list[int]:
    """Ids of words."""
    return torch.randint(3, 190, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def inputs(name: str, rows: list[list], side: str = "left") -> dict:
    """Arguments of the model for rows of words (lists of ids) and pictures, padded on one side."""
    ids = [[t for part in row for t in (part.ids if isinstance(part, Picture) else part)] for row in rows]
    width = max(map(len, ids))
    blank = [[0] * (width - len(row)) for row in ids]
    join = (lambda pad, row: pad + row) if side == "left" else (lambda pad, row: row + pad)
    out = {
        "input_ids": torch.tensor([join(pad, row) for pad, row in zip(blank, ids)]),
        "attention_mask": torch.tensor([join([0] * len(pad), [1] * len(row)) for pad, row in zip(blank, ids)]),
    }
    pictures = {
        kind: [p for row in rows for p in row if isinstance(p, Picture) and p.kind == kind]
        for kind in ("image", "video")
    }
    names = {"image": "pixel_values", "video": "pixel_values_videos"}
    for kind, found in pictures.items():
        if not found:
            continue
        if name in GRIDS:
            out[names[kind]] = torch.cat([p.pixels for p in found])
            out[f"{kind}_grid_thw"] = torch.tensor([p.size for p in found])
        elif kind == "video":
            out[names[kind]] = torch.stack([p.pixels for p in found])
        elif name == "internvl":
            out[names[kind]] = torch.cat([p.pixels for p in found])
        elif name == "idefics3":
            tiles = [
                torch.cat([p.pixels for p in row if isinstance(p, Picture)] or [torch.zeros(0, 3, 112, 112)])
                for row in rows
            ]
            most = max(map(len, tiles))
            out[names[kind]] = torch.stack([torch.cat([t, t.new_zeros(most - len(t), 3, 112, 112)]) for t in tiles])
        else:
            most = max(len(p.pixels) for p in found)
            blanks = [p.pixels.new_zeros(most - len(p.pixels), *p.pixels.shape[1:]) for p in found]
            out[names[kind]] = torch.stack([torch.cat([p.pixels, b]) for p, b in zip(found, blanks)])
            out["image_sizes"] = torch.tensor([p.size for p in found])
    if name in GRIDS:
        out["mm_token_type_ids"] = (out["input_ids"] == IMAGE).int() + 2 * (out["input_ids"] == VIDEO).int()
        if name == "glm4v" and not pictures["image"]:
            out["mm_token_type_ids"] *= 2
        if name == "qwen2_5_vl" and pictures["video"]:
            out["second_per_grid_ts"] = torch.tensor([0.5] * len(pictures["video"]))
    return out
