"""From a checkpoint on disk or on the hub to a `LlavaConfig` and tensors under the names of our model classes.

Two layouts are read. *Original* (liuhaotian/llava-v1.5-7b and relatives): our own names; the CLIP tower is in a
second folder named by `mm_vision_tower`, or inside, as in v1.6, where the trained tower replaces the published one.
*Hub* (llava-hf/llava-1.5-7b-hf): transformers' names, on disk (`language_model.model.layers...`) or as its classes hold
them (`model.language_model.layers...`).
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import transformers
from transformers import CLIPVisionConfig, MistralConfig

from llava.checkpoints import video as video_checkpoint
from llava.checkpoints.video import is_video
from llava.checkpoints.weights import read_weights
from llava.config import LlavaConfig
from visiondrop.errors import UnsupportedError, VisionDropError
from visiondrop.shipped import shipped

MODEL_TYPES = ("llava", "llava_llama", "llava_mistral", "llava_next", "video_llava")
DECODERS = ("llama", "mistral")  # Mistral without its window computes what LLaMA computes, under the same names
TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."

# Names of either layout -> ours. Original names pass through, except that the level `vision_model.` may be absent
# (transformers 5).
_RENAMES = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"^(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?", TOWER_PREFIX),
        (r"^(?:model\.)?(image|video)_tower\.(?:\1_tower\.)?(?:vision_model\.)?", r"model.\1_tower.\1_tower."),
        (r"^(?:model\.)?multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
        (r"^(?:model\.)?multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
        (r"^(?:model\.)?language_model\.model\.", "model."),
        (r"^(?:model\.)?language_model\.lm_head\.", "lm_head."),
        (r"^model\.language_model\.", "model."),
        (r"^image_newline$", "model.image_newline"),
    )
)
_TOWER_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
# Buffers that old releases saved and new ones compute.
_COMPUTED = ("rotary_emb.inv_freq", "embeddings.position_ids")

# Facts about the towers that LLaVA checkpoints name, for a checkpoint that holds its tower and has no config of it at
# hand (https://huggingface.co/openai/clip-vit-large-patch14-336 and .../clip-vit-large-patch14, config.json).
_CLIP_LARGE = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    projection_dim=768,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
)
_KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14-336": _CLIP_LARGE | {"image_size": 336},
    "openai/clip-vit-large-patch14": _CLIP_LARGE | {"image_size": 224},
}

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Keys of config.json that describe the file or the class that wrote it, not the model.
_BOOKKEEPING = (
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "quantization_config",
)


# What the original assumes for fields that a file lacks.
_ASSUMED = {"mm_projector_type": "linear", "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2}


@dataclass
class Checkpoint:
    """What a model is built from.

    folder: where the tokenizer and generation_config.json lie; config: a LlavaConfig with `vision_config` filled in;
    weights: tensors under our names, on the CPU; processor_folder: where preprocessor_config.json lies, or None;
    stored_dtype: the dtype that config.json names, as a string, or None.
    """

    folder: Path
    config: LlavaConfig
    weights: dict
    processor_folder: Path | None
    stored_dtype: str | None


def read_checkpoint(model_path: str | os.PathLike, config_file: str | os.PathLike | None = None) -> Checkpoint:
    """Read a checkpoint of either layout.

    model_path: a folder or a hub id; config_file: a JSON file to use in place of the checkpoint's config.json.
    Raises VisionDropError for anything missing, half-downloaded or unsupported.
    """
    folder = resolve_folder(model_path, "checkpoint")
    raw = read_json(Path(config_file) if config_file else folder / "config.json")
    check_model_type(raw, folder)
    if is_video(raw):
        config, weights, processor_folder = _read_video(raw, folder)
    elif "text_config" in raw:
        config = hub_config(raw)
        weights = to_our_names(read_weights(folder))
        processor_folder = folder
    else:
        config = original_config(raw)
        weights = to_our_names(read_weights(folder))
        processor_folder = _add_tower(config, weights, folder)
    if not (processor_folder and (processor_folder / "preprocessor_config.json").is_file()):
        processor_folder = None
    stored_dtype = raw.get("dtype") or raw.get("torch_dtype") or (raw.get("text_config") or {}).get("torch_dtype")
    return Checkpoint(folder, config, weights, processor_folder, stored_dtype)


def _read_video(raw, folder):
    """(config, weights, None) of a Video-LLaVA: pictures are prepared by CLIP's own settings at the tower's size."""
    weights = to_our_names(read_weights(folder))
    if "text_config" in raw:
        settings, text = video_checkpoint.hub_settings(raw, folder)
        return LlavaConfig(**_plain(text.to_dict()) | settings), weights, None
    config = LlavaConfig(**_ASSUMED | _plain(raw))

    def find(name, field):
        return _tower_folder(name, folder, may_lack=False, field=field)

    video_checkpoint.add_towers(config, weights, folder, find, read_json, read_weights)
    return config, weights, None


def _plain(raw):
    """The keys of a config.json that describe the model."""
    return {key: value for key, value in raw.items() if key not in _BOOKKEEPING}


def resolve_folder(name: str | os.PathLike, what: str) -> Path:
    """Local folder of `name`, a path or a hub id (downloaded into, or found in, the hub's cache). `what` names it in
    errors.
    """
    path = Path(shipped(name)).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise VisionDropError(f"The {what} {str(name)!r} is a file; give the folder that holds it.")
    if not _HUB_ID.fullmatch(str(name)):
        raise VisionDropError(
            f"There is no folder {str(name)!r} for the {what}; give the path of an existing one, or a hub id such as "
            "'owner/name'."
        )
    return _download(str(name), what)


def _download(hub_id, what):
    """Snapshot folder of a hub repository with its settings, its tokenizer and one format of weights."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=["*.json", "tokenizer.model"]))
        for patterns in (["model.safetensors", "model-*.safetensors"], ["pytorch_model.bin", "pytorch_model-*.bin"]):
            snapshot_download(hub_id, allow_patterns=patterns)
            if any(next(folder.glob(pattern), None) for pattern in patterns):
                break
    # The client raises its own errors, those of one of several http libraries, and OSError for a full disk.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise VisionDropError(
            f"There is no folder {hub_id!r}, and the {what} of that id could not be fetched from the hub "
            f"({reason[0].rstrip('.:')}); "
            f"without a network, copy the repository to this machine and give the path of that folder."
        ) from error
    return folder


def read_json(path: Path) -> dict:
    """The object in a JSON file; raises VisionDropError where it is missing or damaged."""
    if not path.is_file():
        raise VisionDropError(
            f"There is no {path.name} in {str(path.parent)!r}; give the folder of a LLaVA checkpoint."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise VisionDropError(f"{str(path)!r} is not readable JSON ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise VisionDropError(f"{str(path)!r} does not hold a JSON object; download it again.")
    return content


def check_model_type(raw: dict, folder: Path) -> None:
    """Refuse what is not a LLaVA over LLaMA, Mistral or Yi (LLaMA under another name) with a plain CLIP tower."""
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UnsupportedError(
            f"config.json in {str(folder)!r} has model_type {model_type!r}; supported are "
            f"{', '.join(map(repr, MODEL_TYPES))} "
            "(LLaVA over LLaMA or Mistral)."
        )
    if raw.get("mm_use_im_start_end"):
        raise UnsupportedError(
            f"{str(folder)!r} wraps images in <im_start> and <im_end> (mm_use_im_start_end), which is not supported; "
            "use a v1.5 checkpoint."
        )


def original_config(raw: dict) -> LlavaConfig:
    """LlavaConfig of an original config.json; `vision_config` is still whatever the file held, usually nothing."""
    if not raw.get("mm_vision_tower"):
        raise UnsupportedError(
            "config.json names no mm_vision_tower, so this is a plain language model; give a LLaVA checkpoint."
        )
    fields = _ASSUMED | _plain(raw)
    if raw.get("model_type") == "llava_mistral":
        fields = _as_llama(fields, fields.get("sliding_window", MistralConfig.sliding_window))
    return LlavaConfig(**fields)


def _as_llama(fields, window):
    """The settings of a Mistral as those of a LLaMA, asked by Mistral's template unless they name another.

    window: of its attention. Raises UnsupportedError where there is one: the scores' masks and ours are causal only.
    """
    if window is not None:
        raise UnsupportedError(
            f"This checkpoint's decoder is a 'mistral' with a sliding window of {window} tokens, which is not supported; "
            "supported are 'llama' and 'mistral' without one, as in LLaVA's own checkpoints. Where prompts and answers stay "
            'shorter than the window, write "sliding_window": null into its config.json.'
        )
    kept = {key: value for key, value in fields.items() if key != "sliding_window"}
    return {"conversation_template": "mistral_instruct"} | kept


def hub_config(raw: dict) -> LlavaConfig:
    """LlavaConfig with the meaning of a transformers LlavaConfig or LlavaNextConfig.

    LLaVA-1.5's pictures are padded to a square (`image_aspect_ratio` "pad") although the hub's processors crop them,
    because that is how it was trained and evaluated. LLaVA-NeXT's resolutions are (height, width) on the hub and
    (width, height) in the original.
    """
    is_next = raw["model_type"] == "llava_next"
    hub_class = transformers.LlavaNextConfig if is_next else transformers.LlavaConfig
    hub = hub_class(**{key: value for key, value in raw.items() if key not in _BOOKKEEPING})
    text, vision = hub.text_config, hub.vision_config
    if text.model_type not in DECODERS or vision.model_type != "clip_vision_model":
        raise UnsupportedError(
            f"This checkpoint joins {text.model_type!r} with {vision.model_type!r}; supported is 'llama' or "
            "'mistral' with 'clip_vision_model'."
        )
    if (
        not isinstance(hub.vision_feature_layer, int)
        or not hub.multimodal_projector_bias
        or hub.projector_hidden_act != "gelu"
    ):
        raise UnsupportedError(
            "This checkpoint's projector (several feature layers, no bias, or another activation than gelu) is not "
            "that of LLaVA-1.5 "
            "and LLaVA-NeXT, which is the one supported."
        )
    kept = {key: value for key, value in text.to_dict().items() if key not in _BOOKKEEPING}
    if raw.get("conversation_template"):
        kept["conversation_template"] = raw["conversation_template"]
    if text.model_type == "mistral":
        kept = _as_llama(kept, text.sliding_window)
    pictures = {"image_aspect_ratio": "pad"}
    if is_next:
        pinpoints = [[width, height] for height, width in hub.image_grid_pinpoints]
        pictures = {
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": pinpoints,
        }
    return LlavaConfig(
        **kept
        | pictures
        | {
            "tie_word_embeddings": hub.tie_word_embeddings,
            "mm_hidden_size": vision.hidden_size,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": hub.vision_feature_layer,
            "mm_vision_select_feature": {"default": "patch", "full": "cls_patch"}[hub.vision_feature_select_strategy],
            "vision_config": vision,
        }
    )


def to_our_names(weights: dict) -> dict:
    """The same tensors under our parameter names, without buffers that are computed."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, target in _RENAMES:
            name, replaced = pattern.subn(target, name)
            if replaced:
                break
        if not name.endswith(_COMPUTED):
            renamed[name] = tensor
    return renamed


def _add_tower(config, weights, folder):
    """Complete `weights` and `config.vision_config` with the CLIP tower that an original checkpoint means; both change
    in place.

    Returns the folder in which the tower's preprocessor_config.json may lie, or None.
    """
    inside = any(name.startswith(TOWER_PREFIX) for name in weights)
    tower_folder = _tower_folder(config.mm_vision_tower, folder, may_lack=inside)
    if not inside:
        config.vision_config = _tower_config(tower_folder)
        weights.update(_tower_weights(tower_folder))
        return tower_folder
    if not config.vision_config:
        if tower_folder:
            config.vision_config = _tower_config(tower_folder)
        else:
            config.vision_config = CLIPVisionConfig(**_KNOWN_TOWERS[config.mm_vision_tower])
    return folder if (folder / "preprocessor_config.json").is_file() else tower_folder


def _tower_folder(name, checkpoint_folder, may_lack, field="mm_vision_tower"):
    """Folder of the tower: a path, absolute, relative to the checkpoint or to the working directory, or a hub id.

    may_lack: the checkpoint holds the tower's weights, so that for a well-known tower no folder is needed (None is
    returned).
    """
    for candidate in (checkpoint_folder / name, Path(name).expanduser()):
        if candidate.is_dir():
            return candidate
    if may_lack and name in _KNOWN_TOWERS:
        return None
    return resolve_folder(name, f"vision tower ({field} in the config.json of {str(checkpoint_folder)!r})")


def _tower_config(folder):
    """The CLIPVisionConfig of a tower's folder; a full CLIP checkpoint gives its vision part."""
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in ("clip", "clip_vision_model"):
        raise UnsupportedError(
            f"The vision tower {str(folder)!r} has model_type {model_type!r}; supported are 'clip' and "
            "'clip_vision_model'."
        )
    return CLIPVisionConfig.from_pretrained(folder)


def _tower_weights(folder):
    """The vision tensors of a CLIP checkpoint (with or without its text half) under our names."""
    weights = {}
    for name, tensor in read_weights(folder).items():
        name = name.removeprefix("vision_model.")
        if name.startswith(_TOWER_PARTS) and not name.endswith(_COMPUTED):
            weights[TOWER_PREFIX + name] = tensor
    return weights


def check_complete(expected: dict, weights: dict, folder: Path) -> None:
    """Raise VisionDropError unless `weights` holds every parameter in its shape; nothing may be left to random
    initialisation.

    expected: name -> shape of the model built from the config; folder: for the message.
    """
    missing = sorted(expected.keys() - weights.keys())
    if missing:
        raise VisionDropError(
            f"The weights of {str(folder)!r} lack {len(missing)} of the {len(expected)} tensors the model needs "
            f"({_some(missing)}); download the checkpoint again, or check that config.json belongs to it."
        )
    wrong = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if weights[name].shape != shape
    ]
    if wrong:
        raise VisionDropError(
            f"{len(wrong)} tensors in {str(folder)!r} do not have the shape that config.json says ({_some(wrong)}); "
            "check that config.json and the weights belong together."
        )


def _some(names):
    """The first three names, and a sign that there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
