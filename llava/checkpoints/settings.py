"""The `LlavaConfig` that a config.json means, in either layout, without its weights."""

import json
from pathlib import Path

import transformers
from transformers import CLIPVisionConfig, MistralConfig

from llava.checkpoints import video
from llava.config import LlavaConfig
from visiondrop.errors import UnsupportedError, VisionDropError

DECODERS = ("llama", "mistral")  # Mistral without its window computes what LLaMA computes, under the same names

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
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14-336": _CLIP_LARGE | {"image_size": 336},
    "openai/clip-vit-large-patch14": _CLIP_LARGE | {"image_size": 224},
}

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


def settings_at_hand(raw: dict, folder: Path) -> LlavaConfig | None:
    """The configuration with its towers' settings; None where a tower is neither in the file, nor here, nor well known.

    raw: of config.json; folder: the checkpoint's, which towers are named relative to.
    Raises VisionDropError for what `read_checkpoint` refuses in a configuration.
    """
    config = settings_of(raw, folder)
    towers = {"vision_config": config.mm_vision_tower}
    if config.mm_video_tower:
        towers = {"vision_config": config.mm_image_tower, "video_config": config.mm_video_tower}
    for part, name in towers.items():
        if not getattr(config, part):
            setattr(config, part, _tower_at_hand(str(name), folder, None if len(towers) == 1 else part))
    return config if all(getattr(config, part) for part in towers) else None


def settings_of(raw: dict, folder: Path) -> LlavaConfig:
    """The configuration that a config.json of any layout means; towers' settings only where the file holds them."""
    if video.is_video(raw) and "text_config" in raw:
        settings, text = video.hub_settings(raw, folder)
        return LlavaConfig(**_plain(text.to_dict()) | settings)
    if video.is_video(raw):
        return LlavaConfig(**_ASSUMED | _plain(raw))
    return hub_config(raw) if "text_config" in raw else original_config(raw)


def _tower_at_hand(name: str, folder: Path, video_part: str | None) -> CLIPVisionConfig | None:
    place = tower_place(name, folder)
    if place is None:
        return CLIPVisionConfig(**KNOWN_TOWERS[name]) if name in KNOWN_TOWERS else None
    if video_part is None:
        return tower_config(place)
    return video.tower_config(read_json(place / "config.json"), video_part.removesuffix("_config"), place)


def tower_place(name: str, folder: Path) -> Path | None:
    """The local folder of a tower that a checkpoint in `folder` names: relative to it, or a path; None where there is none."""
    return next((place for place in (folder / name, Path(name).expanduser()) if place.is_dir()), None)


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


def tower_config(folder: Path) -> CLIPVisionConfig:
    """The CLIPVisionConfig of a tower's folder; a full CLIP checkpoint gives its vision part."""
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in ("clip", "clip_vision_model"):
        raise UnsupportedError(
            f"The vision tower {str(folder)!r} has model_type {model_type!r}; supported are 'clip' and "
            "'clip_vision_model'."
        )
    return CLIPVisionConfig.from_pretrained(folder)


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


def _plain(raw):
    """The keys of a config.json that describe the model."""
    return {key: value for key, value in raw.items() if key not in _BOOKKEEPING}
