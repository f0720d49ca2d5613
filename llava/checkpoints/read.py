"""From a checkpoint on disk or on the hub to a `LlavaConfig` and tensors under the names of our model classes.

Two layouts are read. *Original* (liuhaotian/llava-v1.5-7b and relatives): our own names; the CLIP tower is in a
second folder named by `mm_vision_tower`, or inside, as in v1.6, where the trained tower replaces the published one.
*Hub* (llava-hf/llava-1.5-7b-hf): transformers' names, on disk (`language_model.model.layers...`) or as its classes hold
them (`model.language_model.layers...`).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from transformers import CLIPVisionConfig

from llava.checkpoints import video as video_checkpoint
from llava.checkpoints.settings import KNOWN_TOWERS, read_json, settings_of, tower_config, tower_place
from llava.checkpoints.video import is_video
from llava.checkpoints.weights import read_weights
from llava.config import LlavaConfig
from visiondrop.errors import UnsupportedError, VisionDropError
from visiondrop.shipped import shipped

MODEL_TYPES = ("llava", "llava_llama", "llava_mistral", "llava_next", "video_llava")
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

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    else:
        config = settings_of(raw, folder)
        weights = to_our_names(read_weights(folder))
        processor_folder = folder if "text_config" in raw else _add_tower(config, weights, folder)
    if not (processor_folder and (processor_folder / "preprocessor_config.json").is_file()):
        processor_folder = None
    stored_dtype = raw.get("dtype") or raw.get("torch_dtype") or (raw.get("text_config") or {}).get("torch_dtype")
    return Checkpoint(folder, config, weights, processor_folder, stored_dtype)


def _read_video(raw, folder):
    """(config, weights, None) of a Video-LLaVA: pictures are prepared by CLIP's own settings at the tower's size."""
    weights = to_our_names(read_weights(folder))
    config = settings_of(raw, folder)
    if "text_config" in raw:
        return config, weights, None

    def find(name, field):
        return _tower_folder(name, folder, may_lack=False, field=field)

    video_checkpoint.add_towers(config, weights, folder, find, read_json, read_weights)
    return config, weights, None


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
        config.vision_config = tower_config(tower_folder)
        weights.update(_tower_weights(tower_folder))
        return tower_folder
    if not config.vision_config:
        if tower_folder:
            config.vision_config = tower_config(tower_folder)
        else:
            config.vision_config = CLIPVisionConfig(**KNOWN_TOWERS[config.mm_vision_tower])
    return folder if (folder / "preprocessor_config.json").is_file() else tower_folder


def _tower_folder(name, checkpoint_folder, may_lack, field="mm_vision_tower"):
    """Folder of the tower: a path, absolute, relative to the checkpoint or to the working directory, or a hub id.

    may_lack: the checkpoint holds the tower's weights, so that for a well-known tower no folder is needed (None is
    returned).
    """
    if place := tower_place(name, checkpoint_folder):
        return place
    if may_lack and name in KNOWN_TOWERS:
        return None
    return resolve_folder(name, f"vision tower ({field} in the config.json of {str(checkpoint_folder)!r})")


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
