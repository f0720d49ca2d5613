"""An ordinary picture or video of a LLaVA, and the model's dimensions: what its configuration alone says of them."""

from dataclasses import replace
from typing import Any

from visiondrop.plans.flops import ModelDims, model_dims
from visiondrop.plans.shape import VisualShape, feature_layer

from .anyres import NOMINAL_CROPS, describe_crops, is_anyres
from .config import LlavaConfig


def visual_shape(config: LlavaConfig) -> VisualShape:
    """The shape of what a model is made for: an image (LLaVA-NeXT: a square one of 2 x 2 tiles) or a video."""
    return video_shape(config) if config.mm_video_tower else image_shape(config)


def video_shape(config: LlavaConfig) -> VisualShape:
    """The shape of a video: all frames, each with its [CLS]."""
    video, facts = config.video_config, _facts(config, config.video_config)
    return VisualShape(
        units=video.num_frames,
        nominal_units=video.num_frames,
        length=video.num_frames * (facts["patches"] + 1),
        kind="video",
        source="video" if getattr(video, "add_time_attn", False) else "video-without-temporal-attention",
        **facts,
    )


def image_shape(config: LlavaConfig) -> VisualShape:
    """The shape of an ordinary image.  In a model for videos the budget is a video's; an image has one frame's."""
    if is_anyres(config):
        side = 2 * config.vision_config.image_size
        return describe_crops(config, NOMINAL_CROPS, (side, side)).shape
    facts = _facts(config, config.vision_config)
    whole = config.mm_vision_select_feature == "cls_patch"
    return VisualShape(
        nominal_units=config.video_config.num_frames if config.mm_video_tower else 1,
        length=facts["patches"] + 1 if whole else 0,
        **facts,
    )


def dims(config: LlavaConfig, name: str) -> ModelDims:
    """The model's dimensions; of two towers those of the one for videos."""
    tower = config.video_config if config.mm_video_tower else config.vision_config
    return replace(model_dims(name, config, tower), temporal=bool(getattr(tower, "add_time_attn", False)))


def _facts(config: LlavaConfig, vision: Any) -> dict[str, int]:
    layers = vision.num_hidden_layers
    return {
        "layers": config.num_hidden_layers,
        "patches": (vision.image_size // vision.patch_size) ** 2,
        "tower_layers": layers,
        "feature_layer": feature_layer(layers, config.mm_vision_select_layer),
    }
