"""Writes the video sibling in the original Video-LLaVA layout, float16, with a tokenizer and a tower of its own.

    export_checkpoint(weights, sizes, "checkpoints/testbed-video")

FOLDER/config.json, model.safetensors, tokenizer.json, tokenizer_config.json, generation_config.json
FOLDER/video_tower/config.json, model.safetensors    (mm_video_tower and mm_image_tower: "video_tower")

The tower for images has the same files: it is the video tower without its attention over time.
"""

from __future__ import annotations

from pathlib import Path

import torch

from testbed.data.scenes import PATCH
from testbed.training.export import SPECIAL_IDS, save
from testbed.training.model import TOWER, Sizes, Weights
from testbed.video.scenes import FRAMES, SIDE
from testbed.video.tokenizer import CONTEXT, VOCABULARY, build_tokenizer
from testbed.video.tower import window_positions

TOWER_FOLDER = "video_tower"


def export_checkpoint(weights: Weights, sizes: Sizes, folder: Path) -> None:
    """Saves the model into `folder` (made if missing); the readouts of the auxiliary losses are left out."""
    folder = Path(folder)
    tower, model = {}, {}
    for name, value in weights.items():
        value = window_positions(value) if name.endswith("position_embedding.weight") else value
        half = value.detach().to("cpu", torch.float16).contiguous()
        if name.startswith(TOWER):
            tower["vision_model." + name.removeprefix(TOWER)] = half
        elif not name.startswith("aux."):
            model[name] = half
    texts = {
        "config.json": _video_llava_config(sizes) | SPECIAL_IDS,
        "generation_config.json": SPECIAL_IDS,
        f"{TOWER_FOLDER}/config.json": _tower_config(sizes),
    }
    save(folder, {"": model, TOWER_FOLDER: tower}, texts, build_tokenizer())


def _video_llava_config(sizes: Sizes) -> dict:
    return {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "hidden_size": sizes.width,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "hidden_act": "silu",
        "rms_norm_eps": sizes.epsilon,
        "rope_theta": sizes.rope_theta,
        "max_position_embeddings": CONTEXT,
        "vocab_size": len(VOCABULARY),
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "mm_image_tower": TOWER_FOLDER,
        "mm_video_tower": TOWER_FOLDER,
        "mm_hidden_size": sizes.vision_width,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": CONTEXT,
        "max_sequence_length": CONTEXT,
    }


def _tower_config(sizes: Sizes) -> dict:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_act": "quick_gelu",
        "hidden_size": sizes.vision_width,
        "intermediate_size": sizes.vision_mlp,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.vision_heads,
        "num_channels": 3,
        "image_size": SIDE,
        "patch_size": PATCH,
        "layer_norm_eps": sizes.epsilon,
        "projection_dim": sizes.vision_width,
        "attention_dropout": 0.0,
        "add_time_attn": True,
        "num_frames": FRAMES,
    }
    return {"model_type": "LanguageBindVideo", "torch_dtype": "float16", "vision_config": vision}
