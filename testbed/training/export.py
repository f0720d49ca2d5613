"""Writes trained weights in the original LLaVA-1.5 layout, float16, with tokenizer and CLIP tower of its own; reads them.

export_checkpoint(weights, sizes, "checkpoints/testbed")
python -m testbed.training.export runs/testbed/state.pt checkpoints/testbed

FOLDER/config.json, model.safetensors, tokenizer.json, tokenizer_config.json, generation_config.json
FOLDER/vision_tower/config.json, model.safetensors, preprocessor_config.json      (mm_vision_tower: "vision_tower")
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from testbed.data.scenes import FULL_GRID, PATCH
from testbed.data.tokenizer import BOS, EOS, IDS, PAD, build_tokenizer
from testbed.training.batches import CLIP_MEAN, CLIP_STD
from testbed.training.model import Sizes, Weights
from visiondrop.errors import VisionDropError, command_line

TOWER_FOLDER = "vision_tower"
SPECIAL_IDS = {"bos_token_id": IDS[BOS], "eos_token_id": IDS[EOS], "pad_token_id": IDS[PAD]}
_TOWER_PREFIX = "model.vision_tower.vision_tower."
_SIDE = FULL_GRID * PATCH


def export_checkpoint(
    weights: Weights, sizes: Sizes, folder: Path, settings: dict | None = None, tower_inside: bool = False
) -> None:
    """Saves the model into `folder` (made if missing); the readouts of the auxiliary losses are left out.

    settings: entries of config.json that are added or replaced; tower_inside: the tower's weights go into
    model.safetensors, as in LLaVA 1.6, and its folder keeps only the two JSON files.
    """
    folder = Path(folder)
    tower, model = {}, {}
    for name, value in weights.items():
        half = value.detach().to("cpu", torch.float16).contiguous()
        if name.startswith(_TOWER_PREFIX) and not tower_inside:
            tower[name.removeprefix(_TOWER_PREFIX)] = half
        elif not name.startswith("aux."):
            model[name] = half
    texts = {
        "config.json": _llava_config(sizes) | (settings or {}),
        "generation_config.json": SPECIAL_IDS,
        f"{TOWER_FOLDER}/config.json": _tower_config(sizes),
        f"{TOWER_FOLDER}/preprocessor_config.json": _processor_config(),
    }
    save(folder, {"": model, TOWER_FOLDER: tower}, texts, build_tokenizer())


def save(folder: Path, parts: dict[str, Weights], texts: dict[str, dict], tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes a checkpoint: weights by folder below `folder` (none, no file), JSON files by name, the tokenizer."""
    try:
        for name, weights in parts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            if weights:
                save_file(weights, folder / name / "model.safetensors", {"format": "pt"})
        for name, values in texts.items():
            (folder / name).write_text(json.dumps(values, indent=2) + "\n")
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise VisionDropError(f"cannot write the checkpoint to {folder}: {error.strerror or error}.") from error


def load_weights(folder: Path) -> tuple[Weights, Sizes, str]:
    """Float32 weights of an exported checkpoint, its sizes, and a fingerprint of the files."""
    folder = Path(folder)
    files = [folder / "model.safetensors", folder / TOWER_FOLDER / "model.safetensors"]
    configs = [folder / "config.json", folder / TOWER_FOLDER / "config.json"]
    for path in (*files, *configs):
        if not path.is_file():
            raise VisionDropError(
                f"{folder} is not a testbed checkpoint: {path} is missing; give a folder that train_testbed.sh wrote."
            )
    text, vision = (json.loads(path.read_text()) for path in configs)
    weights = {name: value.float() for name, value in load_file(files[0]).items()}
    weights |= {_TOWER_PREFIX + name: value.float() for name, value in load_file(files[1]).items()}
    sizes = Sizes(
        vision["hidden_size"],
        vision["num_hidden_layers"],
        vision["num_attention_heads"],
        vision["intermediate_size"],
        text["hidden_size"],
        text["num_hidden_layers"],
        text["num_attention_heads"],
        text["intermediate_size"],
        text["vocab_size"],
        text["rope_theta"],
        text["rms_norm_eps"],
    )
    return weights, sizes, hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _llava_config(sizes: Sizes) -> dict:
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
        "max_position_embeddings": 2048,
        "vocab_size": sizes.vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        **SPECIAL_IDS,
        "mm_vision_tower": TOWER_FOLDER,
        "mm_hidden_size": sizes.vision_width,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 2048,
    }


def _tower_config(sizes: Sizes) -> dict:
    return {
        "model_type": "clip_vision_model",
        "architectures": ["CLIPVisionModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": sizes.vision_width,
        "intermediate_size": sizes.vision_mlp,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.vision_heads,
        "num_channels": 3,
        "image_size": _SIDE,
        "patch_size": PATCH,
        "layer_norm_eps": sizes.epsilon,
        "projection_dim": sizes.vision_width,
        "attention_dropout": 0.0,
        "torch_dtype": "float16",
    }


def _processor_config() -> dict:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"shortest_edge": _SIDE},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "crop_size": {"height": _SIDE, "width": _SIDE},
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exports a training state, finished or not."""
    parser = argparse.ArgumentParser(description="Export a training state to the LLaVA layout.")
    parser.add_argument("state", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    if not args.state.is_file():
        raise VisionDropError(f"there is no training state {args.state}: give the state.pt of a training folder.")
    state = torch.load(args.state, map_location="cpu", weights_only=True)
    export_checkpoint(state["weights"], Sizes(**state["sizes"]), args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
