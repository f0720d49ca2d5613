"""A picture as the tower sees it, and how its visual tokens lie on it; for drawings."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..compat import Model
from .patches import grid_of
from .table import family_of

View = tuple[list[Image.Image], tuple[int, int]]  # crops or frames, and the (rows, columns) of tokens on each


def pictures(units: Tensor, mean: Any, std: Any) -> list[Image.Image]:
    """[units, 3, H, W] pixels of a tower -> pictures; mean, std: three numbers each, as the pixels were normalised with."""
    units = units.detach().float().cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    arrays = (units.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]


def view(model: Model, processor: Any, inputs: dict[str, Any]) -> View | None:
    """The first picture of `inputs` for a model of the table; ids of a report count its tokens unit after unit, row by row.

    None where tokens lie on no grid (LLaVA-OneVision's are resampled after stitching).
    """
    family, given = family_of(type(model).__name__), processor.image_processor
    if family is None:
        return None
    if family.patches in ("merge", "windows"):
        units, grid = _joined(inputs, given.merge_size, given.patch_size, given.temporal_patch_size)
    elif family.patches in ("shuffle", "connector"):
        units = inputs["pixel_values"].flatten(0, -4)
        tokens = int((inputs["input_ids"][0] == model.config.image_token_id).sum())
        side = round((tokens / len(units)) ** 0.5)
        grid = (side, side)
    else:
        return None
    return pictures(units, given.image_mean, given.image_std), grid


def _joined(inputs: dict[str, Any], merge: int, patch: int, frames: int) -> tuple[Tensor, tuple[int, int]]:
    """Qwen: patches [n, 3 * frames * patch * patch], neighbours that become one token side by side -> [1, 3, H, W]."""
    sizes = grid_of(inputs)
    assert sizes is not None
    times, height, width = (int(n) for n in sizes[0])
    rows, columns = height // merge, width // merge
    x = inputs["pixel_values"][: times * height * width]
    x = x.view(times, rows, columns, merge, merge, 3, frames, patch, patch)[
        :, ..., 0, :, :
    ]  # a still: all frames alike
    x = x.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(times, 3, height * patch, width * patch)
    return x, (rows, columns)
