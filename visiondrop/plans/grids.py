"""Where the patches of an image stand in its unpruned sequence, and how to spread a number of tokens over a grid.

Used by the controls that know about places (`uniform`, `pool`).
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from .schedule import nearest
from .shape import VisualShape

KEPT = "kept"  # the layout of a sequence of which an encoder stage has taken tokens away
PACKED = "packed"  # the layout of tiles that a model has stitched, cut and resampled
ELONGATION = 2  # a cell may be this much longer than a patch's shape: 128 = 8 x 16 on a square, but not 4 x 32


@dataclass(frozen=True)
class Grid:
    """A rectangle of patches: the one in row r, column c is slot `first + r * stride + c` of the sequence."""

    first: int
    rows: int
    columns: int
    stride: int

    def slots(self) -> Tensor:
        """[rows, columns] long."""
        down = torch.arange(self.rows)[:, None] * self.stride
        return self.first + down + torch.arange(self.columns)


def grids(shape: VisualShape) -> list[Grid] | None:
    """The grids of an unpruned sequence: a picture, each frame, or base picture and canvas; None where not known.

    [CLS] rows and newlines, where the sequence has any, belong to no grid.
    """
    if shape.source in (KEPT, PACKED):
        return None
    if shape.grid is not None:
        frames, rows, columns = shape.grid
        return [Grid(frame * rows * columns, rows, columns, columns) for frame in range(frames)]
    side = math.isqrt(shape.patches)
    if side * side != shape.patches:
        return None
    if shape.canvas is not None:
        rows, columns = shape.canvas
        return [Grid(0, side, side, side), Grid(shape.patches, rows, columns, (shape.tokens - shape.patches) // rows)]
    step = shape.tokens // shape.units
    if shape.units * step != shape.tokens or not 0 <= step - shape.patches <= 1:
        return None
    if shape.units > 1 and shape.kind != "video":
        return None
    cls = 0 if shape.source == "anyres" else step - shape.patches  # an untiled anyres picture ends with a newline
    return [Grid(unit * step + cls, side, side, side) for unit in range(shape.units)]


def left_over(shape: VisualShape, kept: int) -> VisualShape:
    """The image as the language model gets it from an encoder stage that keeps `kept` tokens of it: no grid."""
    each = nearest(kept / shape.units)
    length = 0 if each * shape.units == kept else kept
    return replace(shape, patches=each, length=length, canvas=None, grid=None, source=KEPT)


def cls_slots(shape: VisualShape) -> list[int]:
    """Slots of [CLS] in an unpruned sequence: before each grid that does not follow another one directly."""
    if shape.canvas is not None or shape.grid is not None:
        return []
    return [grid.first - 1 for grid in grids(shape) or [] if grid.first % (shape.tokens // shape.units)]


def kept_of(tokens: int, shape: VisualShape) -> int:
    """Tokens a control keeps: the budget by units; where the picture is unpadded, the same share of its own tokens."""
    share = shape.tokens / shape.nominal if shape.canvas or grids(shape) is None else shape.scale
    return nearest(tokens * share)


def factor_pair(count: int, rows: int, columns: int) -> tuple[int, int] | None:
    """(h, w) with h * w == count that suits a rows x columns grid best, wide rather than tall; None if none suits."""
    pairs = [(h, count // h) for h in range(1, min(rows, count) + 1) if count % h == 0 and count // h <= columns]

    def strain(pair: tuple[int, int]) -> Fraction:
        ratio = Fraction(pair[0] * columns, pair[1] * rows)
        return max(ratio, 1 / ratio)

    best = min(pairs, key=strain, default=None)  # of equals the first: fewer rows
    return best if best is not None and strain(best) <= ELONGATION else None


def centres(size: int, cells: int) -> list[int]:
    """The middle of each of `cells` equal parts of 0 … size-1; distinct, as cells <= size."""
    return [(2 * i + 1) * size // (2 * cells) for i in range(cells)]


def spread(rows: int, columns: int, count: int) -> Tensor:
    """`count` places spread evenly over a rows x columns grid, as row * columns + column, ascending: [count] long.

    A regular sub-grid where `factor_pair` finds one, else rows of nearly equal numbers.
    """
    pair = factor_pair(count, rows, columns)
    lines = pair[0] if pair else min(rows, max(-(-count // columns), round(math.sqrt(count * rows / columns))))
    places = []
    for i, row in enumerate(centres(rows, lines)):
        here = (i + 1) * count // lines - i * count // lines
        places += [row * columns + column for column in centres(columns, here)]
    return torch.tensor(places, dtype=torch.long)
