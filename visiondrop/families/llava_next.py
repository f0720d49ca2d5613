"""transformers' `LlavaNextForConditionalGeneration`: as `hub_llava`, with crops.

Its images are always in the layout "anyres" (unpadded, one newline per row).  Which token comes from which crop is
found by sending numbers through the model's own `pack_image_features`.
"""

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from ..plans.shape import VisualShape
from ..tower.units import Picture
from .llava import HubLlavaAdapter
from .registry import register

NOMINAL_CROPS = 5  # budgets are stated for the base picture and four tiles
NEWLINE = -1


@register("LlavaNextForConditionalGeneration")
class HubLlavaNextAdapter(HubLlavaAdapter):
    """Attaches a pruner to one `LlavaNextForConditionalGeneration`."""

    def shape(self) -> VisualShape:
        """An ordinary image: a square one of two by two tiles."""
        side = 2 * self.model.config.vision_config.image_size
        return self.describe((side, side)).shape

    def pictures(self, arguments: dict) -> list[Picture]:
        """The images of a call of `get_image_features`: crops without the padding of the batch."""
        pixels, out, cursor = arguments["pixel_values"], [], 0
        for i, size in enumerate(arguments["image_sizes"]):
            height, width = (int(n) for n in size)
            picture = self.describe((height, width))
            crops = (
                pixels[i, : picture.shape.units] if pixels.ndim == 5 else pixels[cursor : cursor + picture.shape.units]
            )
            cursor += picture.shape.units
            out.append(Picture(picture.shape, crops, picture.grid, picture.ids))
        return out

    def describe(self, size: tuple[int, int]) -> Picture:
        """Shape, grid and ids of an image of `size` (height, width), before it is encoded."""
        config = self.model.config
        vision = config.vision_config
        height, width = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, vision.image_size)
        units, side = 1 + height * width, vision.image_size // vision.patch_size
        numbers = torch.arange(units * side**2).view(units, side**2, 1)
        packed, _ = self.inner.pack_image_features([numbers], [size], "default", torch.tensor([NEWLINE]))
        ids = _name_newlines(packed[0][:, 0], units, width, side)
        rows = int((ids < 0).sum())
        columns = (len(ids) - side**2) // rows - 1 if rows else 0
        shape = VisualShape(
            layers=config.text_config.num_hidden_layers,
            patches=side**2,
            units=units,
            nominal_units=NOMINAL_CROPS,
            length=len(ids),
            cls=self.has_cls,
            source="anyres",
            canvas=(rows, columns) if columns else None,
            **self.tower_facts(),
        )
        return Picture(shape, grid=(width, height), ids=ids)


def _name_newlines(packed: Tensor, units: int, columns: int, side: int) -> Tensor:
    """Ids with every newline named by the canvas row it closes, i.e. that of the patch before it."""
    before = packed.roll(1)
    row = (before // side**2 - 1) // columns * side + before % side**2 // side
    return torch.where(packed == NEWLINE, -1 - units - row, packed)
