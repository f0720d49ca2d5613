"""Builds the vision towers a configuration names."""

from torch import nn

from visiondrop.errors import VisionDropError

from .clip_encoder import CLIPVisionTower
from .languagebind_encoder import LanguageBindImageTower, LanguageBindVideoTower


def build_vision_tower(config) -> nn.Module:
    """The tower for `config.vision_config`, with weights still to be loaded."""
    kind = getattr(config.vision_config, "model_type", None)
    if kind != "clip_vision_model":
        raise VisionDropError(
            f"vision tower of type {kind!r}: our llava/ classes build CLIP towers ('clip_vision_model'); other towers "
            "run through visiondrop.apply on transformers' classes"
        )
    return CLIPVisionTower(config)


def build_video_towers(config) -> tuple[nn.Module, nn.Module]:
    """(image tower, video tower) of a Video-LLaVA configuration, with weights still to be loaded."""
    return LanguageBindImageTower(config), LanguageBindVideoTower(config)
