"""LLaVA-NeXT's any-resolution pictures: which crops a picture becomes, and how their tokens are lined up.

Crops and order are bit-identical to the original package (https://github.com/haotian-liu/LLaVA, llava/mm_utils.py and
llava/model/llava_arch.py, release 1.2.2).  Two layouts, named in every result row:

- "anyres": the published one.  The grid follows the picture, padding is removed from the token grid, and every grid row
  is closed by a newline (`mm_patch_merge_type` "spatial_unpad").
- "fixed-2880": the one the token counts of pruning papers presume.  Always a 2 x 2 grid, five crops, no newline and no
  unpadding (`mm_patch_merge_type` "spatial", one pinpoint).

The original's third possibility, "spatial" with other pinpoints, is called "anyres-padded".
"""

import ast
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from visiondrop.errors import UnsupportedError, VisionDropError
from visiondrop.plans.shape import VisualShape, feature_layer
from visiondrop.tower.units import packed_ids

NOMINAL_CROPS = 5  # budgets of LLaVA-NeXT are stated for the base picture and four tiles
LAYOUTS = ("anyres", "fixed-2880")
MERGE_TYPES = ("spatial_unpad", "spatial")
# (width, height), as in the config.json of liuhaotian/llava-v1.6-vicuna-7b.
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@dataclass(frozen=True)
class Crops:
    """How one picture is cut and lined up.

    Attributes:
        shape: for its plan; grid: (W, H) tiles, or None for a picture without tiles.
        ids: [shape.tokens] ids of the unpruned sequence (see `visiondrop.tower.units`).
    """

    shape: VisualShape
    grid: tuple[int, int] | None
    ids: Tensor


def is_anyres(config) -> bool:
    """Whether a configuration asks for crops."""
    return str(getattr(config, "image_aspect_ratio", None)).startswith("anyres")


def layout_name(config) -> str:
    """ "anyres", "fixed-2880" (with another tower: five times its patches) or "anyres-padded"."""
    if config.image_aspect_ratio != "anyres":
        raise VisionDropError(
            f"image_aspect_ratio={config.image_aspect_ratio!r}: of the crop layouts only 'anyres' is supported"
        )
    if config.mm_patch_merge_type not in MERGE_TYPES:
        raise VisionDropError(
            f"mm_patch_merge_type={config.mm_patch_merge_type!r} with image_aspect_ratio='anyres': allowed are "
            "'spatial_unpad' (layout anyres) and 'spatial' (with one image_grid_pinpoint of 2 x 2 tiles, "
            "layout fixed-2880)"
        )
    if config.mm_patch_merge_type == "spatial_unpad":
        return "anyres"
    vision = config.vision_config
    if pinpoints(config) != [(2 * vision.image_size, 2 * vision.image_size)]:
        return "anyres-padded"
    return f"fixed-{NOMINAL_CROPS * (vision.image_size // vision.patch_size) ** 2}"


def check_layout(layout: str, image_aspect_ratio: str | None, newline: bool) -> None:
    """Refuse a layout that a checkpoint was not made for.

    image_aspect_ratio: of its configuration; newline: whether it holds `image_newline`.
    """
    if layout not in LAYOUTS:
        raise VisionDropError(f"layout={layout!r}: allowed are {' and '.join(map(repr, LAYOUTS))}")
    if not str(image_aspect_ratio).startswith("anyres"):
        raise VisionDropError(
            f"layout={layout!r}: image_aspect_ratio is {image_aspect_ratio!r}, so this is no LLaVA-NeXT model; "
            "leave the layout out"
        )
    if layout == "anyres" and not newline:
        raise UnsupportedError(
            "layout='anyres' ends every row of patches with image_newline, a learned vector that this checkpoint lacks "
            "(its mm_patch_merge_type is not 'spatial_unpad'); allowed is 'fixed-2880', or leave the layout out"
        )


def use_layout(model, layout: str) -> None:
    """Switch a loaded LLaVA-NeXT model of ours to "anyres" or "fixed-2880"; its configuration changes in place."""
    check_layout(layout, model.config.image_aspect_ratio, hasattr(model.model, "image_newline"))
    set_layout(model.config, layout)


def set_layout(config, layout: str) -> None:
    """Make a LLaVA-NeXT's configuration ask for one of `LAYOUTS`; it changes in place."""
    side = config.vision_config.image_size
    if layout == "fixed-2880":
        config.mm_patch_merge_type, config.image_grid_pinpoints = "spatial", [[2 * side, 2 * side]]
        return
    if len(pinpoints(config)) == 1:
        config.image_grid_pinpoints = [[w * side // 336, h * side // 336] for w, h in PINPOINTS]
    config.mm_patch_merge_type = "spatial_unpad"


def pinpoints(config) -> list[tuple[int, int]]:
    """(width, height) pairs of `config.image_grid_pinpoints`, a list or its text."""
    value = getattr(config, "image_grid_pinpoints", None)
    try:
        value = ast.literal_eval(value) if isinstance(value, str) else value
        pairs = [(int(w), int(h)) for w, h in value]
    except (ValueError, TypeError, SyntaxError):
        pairs = []
    if not pairs:
        raise VisionDropError(f"image_grid_pinpoints={value!r}: anyres pictures need a list of (width, height) pairs")
    return pairs


def best_resolution(size: tuple[int, int], resolutions: list[tuple[int, int]]) -> tuple[int, int]:
    """The canvas on which a picture keeps most pixels, then wastes fewest; the first of equals.

    size, resolutions: (width, height).
    """
    width, height = size

    def rank(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return -used, canvas[0] * canvas[1] - used

    return min(resolutions, key=rank)


def crop(image: Image.Image, canvas: tuple[int, int], side: int, base_side: int) -> list[Image.Image]:
    """The base picture (squeezed to a square), then the tiles of the padded canvas, row by row.

    canvas: (width, height), a multiple of `side`, the side of a tile; base_side: side of the base picture.
    """
    (width, height), (target_w, target_h) = image.size, canvas
    scale_w, scale_h = target_w / width, target_h / height
    if scale_w < scale_h:
        fitted = target_w, min(math.ceil(height * scale_w), target_h)
    else:
        fitted = min(math.ceil(width * scale_h), target_w), target_h
    padded = Image.new("RGB", canvas, (0, 0, 0))
    padded.paste(image.resize(fitted), ((target_w - fitted[0]) // 2, (target_h - fitted[1]) // 2))
    corners = [(x, y) for y in range(0, target_h, side) for x in range(0, target_w, side)]
    return [image.resize((base_side, base_side)), *(padded.crop((x, y, x + side, y + side)) for x, y in corners)]


def process_anyres_image(image: Image.Image, processor, config) -> Tensor:
    """Pixels of one RGB picture: float32 [crops, 3, S, S], base picture first."""
    canvas = best_resolution(image.size, pinpoints(config))
    parts = crop(image, canvas, processor.crop_size["height"], processor.size["shortest_edge"])
    return torch.stack([processor.preprocess(part, return_tensors="pt")["pixel_values"][0] for part in parts])


def unpadded(size: tuple[int, int], rows: int, columns: int) -> tuple[range, range]:
    """Rows and columns of a token canvas that a picture of `size` (width, height) covers.

    transformers rounds the covered extent to seven digits before cutting it, the original does not; at a few sizes
    (752 x 47 is one) the two therefore differ by a row.  This is the original's rule.
    """
    width, height = size
    if width / height > columns / rows:
        gap = (rows - int(height * (columns / width))) // 2
        return range(gap, rows - gap), range(columns)
    gap = (columns - int(width * (rows / height))) // 2
    return range(rows), range(gap, columns - gap)


def describe_crops(config, units: int | None, size: tuple[int, int] | None) -> Crops:
    """The account of a picture of `size` (width, height) that arrives as `units` crops (None: as many as it has).

    Raises:
        VisionDropError: the size is needed and not given, or asks for another number of crops.
    """
    layout, side = layout_name(config), config.vision_config.image_size
    canvases = pinpoints(config)
    grid = None
    if units != 1:
        if size is None and (len(canvases) > 1 or layout == "anyres"):
            raise VisionDropError(
                "anyres images need image_sizes=[(width, height), ...], one per image, as they were cut"
            )
        canvas = best_resolution(size, canvases) if len(canvases) > 1 else canvases[0]
        grid = canvas[0] // side, canvas[1] // side
        expected = 1 + grid[0] * grid[1]
        if units not in (None, expected):
            raise VisionDropError(
                f"{units} crops for an image of (width, height) {size}, which is cut into {expected}; preprocess it "
                "with llava.mm_utils.process_images under the same configuration"
            )
        units = expected
    tower = config.vision_config.num_hidden_layers
    depths = config.num_hidden_layers, tower, feature_layer(tower, config.mm_vision_select_layer)
    return _crops(depths, side // config.vision_config.patch_size, units, grid, size, layout)


@lru_cache(maxsize=4096)
def _crops(depths: tuple[int, int, int], side: int, units: int, grid, size, layout: str) -> Crops:
    rows, columns = (grid[1] * side, grid[0] * side) if grid else (side, side)
    kept = range(rows), range(columns)
    if layout == "anyres" and grid:
        kept = unpadded(size, rows, columns)
    ids = packed_ids(grid, side, *kept, newline=layout == "anyres")
    shape = VisualShape(
        layers=depths[0],
        patches=side**2,
        units=units,
        nominal_units=NOMINAL_CROPS,
        length=len(ids),
        source=layout,
        canvas=(len(kept[0]), len(kept[1])) if grid and len(kept[0]) * len(kept[1]) else None,
        tower_layers=depths[1],
        feature_layer=depths[2],
    )
    return Crops(shape, grid, ids)
