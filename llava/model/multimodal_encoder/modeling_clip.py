"""CLIP's vision transformer: transformers' modules, the loop of the core.

Modification against `transformers.CLIPVisionModel`: `features` stops at the layer LLaVA reads (the 24th layer of CLIP-L
is never run).  The encoder stage runs the same layers itself (`visiondrop.tower.stage`).
"""

from torch import Tensor, nn
from transformers import CLIPVisionModel

from visiondrop.tower.encoder import tower_features


class CLIPVisionTransformer(CLIPVisionModel):
    """The tower proper; parameter names as in the published CLIP checkpoints below `vision_model.`."""

    def features(self, pixel_values: Tensor, select_layer: int) -> Tensor:
        """See `visiondrop.tower.encoder.tower_features`; [U, 1 + n, D], row 0 = [CLS]."""
        return tower_features(self, pixel_values, select_layer)


class CLIPVisionBackbone(nn.Module):
    """Holds the tower under the name `vision_model`, a level that transformers 5 no longer has."""

    def __init__(self, config):
        super().__init__()
        self.vision_model = CLIPVisionTransformer(config)
