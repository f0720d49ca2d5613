"""CLIP's vision transformer with the encoder stage: transformers' modules, our loop.

Modifications against `transformers.CLIPVisionModel`:
- `features` stops at the layer LLaVA reads (the 24th layer of CLIP-L is never run);
- while that layer runs, its queries and keys are picked up, so that the encoder stage can score patches by [CLS]
  attention without any attention map.
"""

from contextlib import nullcontext

from torch import Tensor, nn
from transformers import CLIPVisionModel

from visiondrop.encoder import Probe


class CLIPVisionTransformer(CLIPVisionModel):
    """The tower proper; parameter names as in the published CLIP checkpoints below `vision_model.`."""

    def features(self, pixel_values: Tensor, select_layer: int, probe: Probe | None = None) -> Tensor:
        """hidden_states[select_layer] of the stock model, bit for bit.

        Args:
            pixel_values: [U, 3, H, W]; select_layer: LLaVA's `mm_vision_select_layer`, -2.
            probe: picks up queries and keys of the layer whose output is returned.

        Returns:
            [U, 1 + n, D], row 0 = [CLS].
        """
        depth = len(self.encoder.layers)
        last = select_layer if select_layer >= 0 else depth + 1 + select_layer
        hidden = self.pre_layrnorm(self.embeddings(pixel_values))
        for i, layer in enumerate(self.encoder.layers[:last]):
            with probe.watch(layer.self_attn) if probe is not None and i == last - 1 else nullcontext():
                hidden = layer(hidden, None)
        return hidden


class CLIPVisionBackbone(nn.Module):
    """Holds the tower under the name `vision_model`, a level that transformers 5 no longer has."""

    def __init__(self, config):
        super().__init__()
        self.vision_model = CLIPVisionTransformer(config)
