"""Several units (crops or frames) in one visual sequence: which id a token has, and in which order the LLM sees them.

Ids.  Patch p of unit c is c x patches + p; the [CLS] of unit c is -1 - c; a newline that closes row r of the stitched
canvas of an image with m units is -1 - m - r.  Unit 0 of an anyres image is the base picture; units 1 … m-1 are the
tiles of a W x H grid in row-major order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.selection import Selection
from ..plans.shape import VisualShape


@dataclass(frozen=True)
class Picture:
    """One image, however many crops or frames it has, before it is encoded.

    Attributes:
        shape: for its plan.
        pixels: [U, 3, H, W], or None for an image of an earlier turn, which is in the cache.
        grid: (W, H) tiles of an anyres image, or None.
        ids: [shape.tokens] ids of its unpruned sequence, where that is not 0 … tokens-1.
        question: what its prompt asks about it, where an encoder stage reads it and it was found in the prompt.
    """

    shape: VisualShape
    pixels: Tensor | None = None
    grid: tuple[int, int] | None = None
    ids: Tensor | None = None
    question: str | None = None


def by_shape(pictures: Sequence[Picture]) -> Iterator[tuple[VisualShape, list[int]]]:
    """Ordinals of the pictures of each shape, shapes in order of appearance."""
    groups: dict[VisualShape, list[int]] = {}
    for i, picture in enumerate(pictures):
        groups.setdefault(picture.shape, []).append(i)
    yield from groups.items()


def grids_of(pictures: Sequence[Picture]) -> list[tuple[int, int]] | None:
    """The grids of pictures of one shape, or None where they have none."""
    grids = [p.grid for p in pictures if p.grid is not None]
    return grids or None


def canvas_place(ids: Tensor, patches: int, columns: Tensor | int) -> Tensor:
    """Raster place on the stitched canvas of tile patches.

    Args:
        ids: long, unit x patches + patch with unit >= 1 (other values give a number without meaning).
        columns: W, tiles per row of the grid; broadcast against `ids`.
    """
    side = round(patches**0.5)
    tile, patch = ids // patches - 1, ids % patches
    row = tile // columns * side + patch // side
    return row * (columns * side) + tile % columns * side + patch % side


def sequence_order(ids: Tensor, dominant: int, patches: int, grids: Sequence[tuple[int, int]] | None) -> Tensor:
    """The LLM's order of the rows that leave an encoder stage, as VisionZip and VisPruner put them together.

    With a grid: the base picture's rows as they are, the tiles' dominant patches in raster order of the stitched
    canvas, the tiles' [CLS] in tile order, the tiles' contextual rows tile by tile.  Without one (a single picture, or
    the frames of a video): unit after unit.

    Args:
        ids: [I, U, M] long ids of the rows of each unit, dominant ones first.
        dominant: how many leading rows of a unit are dominant.
        patches: patches per unit.
        grids: per image (W, H), or None.

    Returns:
        [I, U * M] long: at every place of the sequence, unit x M + row.
    """
    images, units, rows = ids.shape
    at = torch.arange(units * rows, device=ids.device).view(1, units, rows).expand(images, -1, -1)
    if grids is None:
        return at.flatten(1)
    widths = [w for w, _ in grids]
    # A number where one will do: nothing is then copied from the host, and the stage can be captured in a graph.
    columns = widths[0] if len(set(widths)) == 1 else torch.tensor(widths, device=ids.device).view(-1, 1, 1)
    canvas = units * patches  # larger than any place on the canvas
    key = at + rows + 2 * canvas  # contextual rows: last, tile by tile
    unit = torch.arange(units, device=ids.device).view(1, -1, 1)
    leading = torch.where(ids < 0, rows + canvas + unit, rows + canvas_place(ids, patches, columns))
    is_dominant = torch.arange(rows, device=ids.device) < dominant
    key = torch.where(is_dominant, leading, key)
    return torch.where(unit == 0, at, key).flatten(1).argsort(dim=1, stable=True)


def pack(kept: Tensor, whole: Tensor, patches: int, newlines: bool) -> tuple[Tensor, Tensor]:
    """Kept patches in the order of an unpruned sequence; those that it does not have (padding) go.

    Args:
        kept: [K] ids 0 … patches-1; whole: [length] ids of the unpruned sequence, newlines negative; patches: of all units.
        newlines: whether they stay.

    Returns:
        (at every place of the sequence, which of `kept` stands there, K = a newline; ids), each [m] long.
    """
    place = torch.full((patches,), -1, device=kept.device).scatter(0, kept, torch.arange(len(kept), device=kept.device))
    at = torch.where(whole < 0, len(kept) if newlines else -1, place[whole.clamp(min=0)])
    stay = at >= 0
    return at[stay], whole[stay]


def join_units(selection: Selection, units: int, rows: int) -> Selection:
    """The selections of an image's units as one selection over all its rows, unit after unit.

    Args:
        selection: tensors with a leading axis of I * U; `index` counts rows of one unit, 0 … R-1.
        rows: R.

    Returns:
        Tensors with a leading axis of I; `index` counts unit x R + row, all dominant rows first; `value` is left out.
    """
    kept = selection.index.shape[1] if selection.dominant is None else selection.dominant
    contextual = selection.index.shape[1] - kept

    def image(x: Tensor | None, step: int) -> Tensor | None:
        if x is None:
            return None
        shift = step * torch.arange(units, device=x.device).view(1, -1, 1)
        x = x.reshape(len(x) // units, units, x.shape[1])  # `x` may be empty, so no -1
        return torch.where(x < 0, x, x + shift).flatten(1)

    index = torch.cat([image(selection.index[:, :kept], rows), image(selection.index[:, kept:], rows)], dim=1)
    scores = None if selection.scores is None else selection.scores.reshape(len(index), -1)
    return Selection(
        index=index,
        dominant=units * kept,
        merged=image(selection.merged, rows),
        assignment=image(selection.assignment, contextual),
        scores=scores,
    )


def packed_ids(grid: tuple[int, int] | None, side: int, rows: range, columns: range, newline: bool) -> Tensor:
    """Ids of the unpruned sequence of an anyres image: base picture, then the canvas in raster order.

    Args:
        grid: (W, H) tiles, or None for a picture without tiles.
        side: patches per side of a unit.
        rows, columns: the part of the canvas that is not padding.
        newline: close every canvas row (without tiles: the picture) with a newline.

    Returns:
        [length] long.
    """
    patches = side * side
    base = torch.arange(patches)
    if grid is None:
        return torch.cat([base, torch.tensor([-2])]) if newline else base
    width, height = grid
    tiles = torch.arange(width * height * patches).view(height, width, side, side)
    canvas = tiles.permute(0, 2, 1, 3).reshape(height * side, width * side) + patches
    canvas = canvas[rows.start : rows.stop, columns.start : columns.stop]
    if newline:
        closing = -2 - width * height - torch.arange(rows.start, rows.stop)
        canvas = torch.cat([canvas, closing[:, None]], dim=1)
    return torch.cat([base, canvas.flatten()])


def tower_ids(units: int, patches: int, cls: bool, device: torch.device | None = None) -> Tensor:
    """[units * (patches + cls)] ids of all rows a tower returns, unit after unit, [CLS] first where there is one."""
    ids = torch.arange(units * patches, device=device).view(units, patches)
    if cls:
        ids = torch.cat([-1 - torch.arange(units, device=device)[:, None], ids], dim=1)
    return ids.flatten()


def whole_ids(pictures: Sequence[Picture]) -> Tensor:
    """[I, n] ids of the patches of each picture in the order of its unpruned sequence, [CLS] and newlines left out."""
    shape = pictures[0].shape
    every = torch.arange(shape.units * shape.patches)
    return torch.stack([every if p.ids is None else p.ids.cpu()[p.ids.cpu() >= 0] for p in pictures])
