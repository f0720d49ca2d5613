"""Video-LLaVA's two towers, named as in its checkpoints: `model.{image,video}_tower.{image,video}_tower`.

A video is eight frames; every frame keeps its [CLS] among the features, whatever `mm_vision_select_feature` says (as in
https://github.com/PKU-YuanGroup/Video-LLaVA, languagebind/__init__.py).  Images follow the configuration.
"""

from torch import Tensor, nn

from .clip_encoder import CLIPVisionTower
from .modeling_clip import CLIPVisionTransformer
from .modeling_languagebind import VideoVisionTransformer


class LanguageBindImageTower(CLIPVisionTower):
    """The tower for images: CLIP's architecture."""

    part = "image_tower"

    def build(self, config) -> nn.Module:
        """The transformer of `config.vision_config`."""
        return CLIPVisionTransformer(config.vision_config)

    @property
    def clip(self) -> nn.Module:
        """The vision transformer."""
        return self.image_tower


class LanguageBindVideoTower(CLIPVisionTower):
    """The tower for videos, with temporal attention where `config.video_config.add_time_attn` says so."""

    part = "video_tower"

    def build(self, config) -> nn.Module:
        """The transformer of `config.video_config`."""
        return VideoVisionTransformer(config.video_config)

    @property
    def clip(self) -> nn.Module:
        """The vision transformer."""
        return self.video_tower

    @property
    def frames(self) -> int:
        """Frames of a video."""
        return self.config.num_frames

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Unpruned features: [videos * frames, 3, H, W] -> [videos * frames, 1 + n, D], [CLS] first."""
        return self.clip.features(pixel_values.to(self.device, self.dtype), self.select_layer)
