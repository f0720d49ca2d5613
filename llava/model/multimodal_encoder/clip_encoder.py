"""LLaVA's vision tower: CLIP features of the chosen layer."""

import torch
from torch import Tensor, nn

from .modeling_clip import CLIPVisionBackbone


class CLIPVisionTower(nn.Module):
    """The tower of a LLaVA checkpoint (`model.vision_tower`); its CLIP is `.vision_tower.vision_model`.

    Attributes:
        image_processor: set by the loader.
        pruner: the method applied to the model, or None.
    """

    part = "vision_tower"  # name of the module below this one, as in the checkpoints

    def __init__(self, config):
        super().__init__()
        self.select_layer = config.mm_vision_select_layer
        self.select_feature = config.mm_vision_select_feature
        setattr(self, self.part, self.build(config))
        self.image_processor = None
        self.is_loaded = True
        self.pruner = None

    def build(self, config) -> nn.Module:
        """The module with the weights."""
        return CLIPVisionBackbone(config.vision_config)

    @property
    def clip(self) -> nn.Module:
        """The CLIP vision transformer."""
        return self.vision_tower.vision_model

    @property
    def config(self):
        """CLIPVisionConfig of the tower."""
        return self.clip.config

    @property
    def dtype(self) -> torch.dtype:
        """Data type of its weights."""
        return self.clip.pre_layrnorm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return self.clip.pre_layrnorm.weight.device

    @property
    def hidden_size(self) -> int:
        """Width of the features."""
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        """Side of the patch grid, 24 for CLIP-L/14 at 336 px."""
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image, 576 for CLIP-L/14 at 336 px."""
        return self.num_patches_per_side**2

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Unpruned features: [U, 3, H, W] -> [U, n, D] ("patch") or [U, 1 + n, D] ("cls_patch")."""
        features = self.clip.features(pixel_values.to(self.device, self.dtype), self.select_layer)
        return features if self.select_feature == "cls_patch" else features[:, 1:]
