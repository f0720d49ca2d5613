"""Video-LLaVA checkpoints: their two towers, in the original layout and in the hub's.

The original (LanguageBind/Video-LLaVA-7B) names its towers by `mm_image_tower` and `mm_video_tower`; they are in
folders of their own (LanguageBind's repositories, with `add_time_attn` and `num_frames` in `vision_config`) or inside
the checkpoint.
The hub conversion (LanguageBind/Video-LLaVA-7B-hf) has dropped the temporal attention of the video tower, so it is a
different model, and loading it says so.
"""

import transformers
from transformers import CLIPVisionConfig
from transformers.utils import logging

from visiondrop.errors import UnsupportedError

logger = logging.get_logger(__name__)

FRAMES = 8
TOWERS = ("image", "video")
_TOWER_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
_COMPUTED = "embeddings.position_ids"
_TEMPORAL = ".temporal_"


def is_video(raw) -> bool:
    """Whether a config.json is that of a Video-LLaVA."""
    return raw.get("model_type") == "video_llava" or bool(raw.get("mm_video_tower"))


def tower_prefix(kind: str) -> str:
    """Where our model holds the "image" or "video" tower."""
    return f"model.{kind}_tower.{kind}_tower."


def hub_settings(raw, folder) -> tuple[dict, object]:
    """(our settings of the vision part, the text configuration) of a hub config.json."""
    hub = transformers.VideoLlavaConfig(**{k: v for k, v in raw.items() if k not in ("model_type", "architectures")})
    text, vision = hub.text_config, hub.vision_config
    if text.model_type != "llama" or vision.model_type != "clip_vision_model":
        raise UnsupportedError(
            f"{str(folder)!r} joins {text.model_type!r} with {vision.model_type!r}; supported is 'llama' with "
            "'clip_vision_model'."
        )
    logger.warning(
        "%s is the hub conversion of Video-LLaVA, whose video tower lacks the temporal attention of the original "
        "(LanguageBind/Video-LLaVA-7B): it is a different model, and its scores are not those of the paper's.",
        folder,
    )
    settings = {
        "mm_image_tower": "inside",
        "mm_video_tower": "inside",
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": hub.vision_feature_layer,
        "mm_vision_select_feature": {"default": "patch", "full": "cls_patch"}[hub.vision_feature_select_strategy],
        "image_aspect_ratio": "pad",
        "vision_config": vision,
        "video_config": {**vision.to_dict(), "num_frames": FRAMES, "add_time_attn": False},
        "tie_word_embeddings": hub.tie_word_embeddings,
    }
    return settings, text


def add_towers(config, weights, folder, find, read_json, read_weights) -> None:
    """Complete an original checkpoint with its towers; `config` and `weights` change in place.

    Args:
        find: (name, field of config.json) -> the tower's folder; read_json, read_weights: of a path, of a folder.
    """
    for kind, field in zip(TOWERS, ("vision_config", "video_config")):
        name, prefix = getattr(config, f"mm_{kind}_tower"), tower_prefix(kind)
        if not name:
            raise UnsupportedError(
                f"config.json of {str(folder)!r} names no mm_{kind}_tower; a Video-LLaVA has one for images and one "
                "for videos."
            )
        inside = any(weight.startswith(prefix) for weight in weights)
        if not inside or not getattr(config, field):
            source = find(name, f"mm_{kind}_tower")
            if not getattr(config, field):
                setattr(config, field, tower_config(read_json(source / "config.json"), kind, source))
            if not inside:
                weights.update(_tower_weights(read_weights(source), prefix, _over_time(config, kind)))
    video = config.video_config
    if getattr(video, "num_frames", None) is None:
        raise UnsupportedError(f"the video tower of {str(folder)!r} does not say num_frames in its vision_config.")


def tower_config(raw, kind: str, folder) -> CLIPVisionConfig:
    """The vision part of a LanguageBind or CLIP config.json."""
    vision = raw.get("vision_config", raw)
    if "patch_size" not in vision:
        raise UnsupportedError(
            f"the {kind} tower {str(folder)!r} has no vision_config; give a LanguageBind or CLIP tower."
        )
    return CLIPVisionConfig(**{k: v for k, v in vision.items() if k != "model_type"})


def _over_time(config, kind: str) -> bool:
    """Whether weights of attention over time are wanted: for pictures only where the image tower's own settings ask
    for it (and loading then warns); those of a folder that serves both towers are the video's.
    """
    if kind == "video":
        return True
    return config.mm_image_tower != config.mm_video_tower and getattr(config.vision_config, "add_time_attn", False)


def _tower_weights(weights, prefix: str, over_time: bool) -> dict:
    """The vision tensors of a tower's folder under our names, those of attention over time only if `over_time`."""
    out = {}
    for name, tensor in weights.items():
        name = name.removeprefix("vision_model.")
        if name.startswith(_TOWER_PARTS) and not name.endswith(_COMPUTED) and (over_time or _TEMPORAL not in name):
            out[prefix + name] = tensor
    return out
