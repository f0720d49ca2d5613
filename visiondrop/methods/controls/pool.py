"""Control: average pooling of the visual tokens to a smaller grid, before the LLM, without [CLS]."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import UnsupportedError, VisionDropError
from ...ops.selection import Selection
from ...plans.grids import Grid, centres, factor_pair, grids
from ...plans.plan import Plan, Stage
from ...plans.schedule import nearest, per_unit
from ...plans.shape import VisualShape
from ..options import amounts, integers
from ..registry import register


@register("pool")
def plan(tokens: int | None, shape: VisualShape, *, grid: str | tuple[int, int] | None = None) -> Plan | None:
    """A grid of cells per unit, the product of whose sides is the unit's budget: 12x16, 8x16, 8x8, 4x8 …

    The sides are the most nearly square ones, wide rather than tall; a budget whose sides would differ by more than a
    factor of two is out of reach.  A canvas of tiles gets cells of the same size as the base picture.

    Args:
        grid: rows and columns of cells per unit, "16x12", instead of a budget.

    Returns:
        The plan, or None where the budget cannot be met.
    """
    amounts(tokens, grid=grid)
    blocks = grids(shape)
    if blocks is None:
        raise UnsupportedError(
            f"pool needs to know where the patches stand, and {shape.tokens} visual tokens of layout {shape.source!r} "
            "are no square grid; use uniform or random instead"
        )
    base = blocks[0]
    if grid is not None:
        cells = integers("grid", grid.replace("x", ",") if isinstance(grid, str) else grid)
        if len(cells) != 2 or not (1 <= cells[0] <= base.rows and 1 <= cells[1] <= base.columns):
            raise VisionDropError(
                f"grid={grid!r}: give rows x columns, up to {base.rows}x{base.columns}, e.g. grid=8x16"
            )
    else:
        count = per_unit(tokens, shape)
        cells = None if count is None else factor_pair(count, base.rows, base.columns)
        if cells is None:
            return None
    parts = [(block, _cells(block, base, cells)) for block in blocks]
    keep = sum(h * w for _, (h, w) in parts)
    return Plan("pool", shape, stages=(Stage(0, keep, selector(parts, shape.tokens), contextual=keep),))


def _cells(grid: Grid, base: Grid, cells: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of cells on `grid` when `base` has `cells`."""
    down, across = cells[0] * grid.rows / base.rows, cells[1] * grid.columns / base.columns
    return min(grid.rows, max(1, nearest(down))), min(grid.columns, max(1, nearest(across)))


def selector(parts: Sequence[tuple[Grid, tuple[int, int]]], total: int):
    """Means over the cells of every grid in raster order; a cell's representative is its middle patch, none is kept.

    Args:
        parts: grids and their (rows, columns) of cells; total: tokens of the unpruned sequence.
    """
    cell, middles = torch.full((total,), -1), []
    for grid, (height, width) in parts:
        rows = torch.arange(grid.rows)[:, None] * height // grid.rows
        cell[grid.slots()] = sum(map(len, middles)) + rows * width + torch.arange(grid.columns) * width // grid.columns
        rows, columns = torch.tensor(centres(grid.rows, height)), torch.tensor(centres(grid.columns, width))
        middles.append(grid.slots()[rows[:, None], columns].flatten())
    index = torch.cat(middles)
    others = torch.ones(total, dtype=torch.bool).scatter_(0, index, 0).nonzero()[:, 0]

    def select(view) -> Selection:
        hidden = view.hidden
        value = torch.cat([pooled(hidden, grid, cells) for grid, cells in parts], dim=1)
        slots, merged, fate = (x.to(hidden.device).expand(len(hidden), -1) for x in (index, others, cell[others]))
        return Selection(index=slots, value=value, dominant=0, merged=merged, assignment=fate)

    return select


def pooled(hidden: Tensor, grid: Grid, cells: tuple[int, int]) -> Tensor:
    """[I, n, D] states of a sequence -> [I, h * w, D] means over the cells (float32 sums; uneven cells overlap)."""
    patches = hidden[:, grid.slots().flatten().to(hidden.device)].transpose(1, 2).float()
    image = patches.unflatten(2, (grid.rows, grid.columns))  # [I, D, rows, columns]
    return torch.nn.functional.adaptive_avg_pool2d(image, cells).flatten(2).transpose(1, 2).to(hidden.dtype)
