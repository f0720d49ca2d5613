"""Control: average pooling of the visual tokens to a smaller grid, before the LLM, without [CLS]."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedError, VisionDropError
from ...ops.selection import Selection
from ...plans.grids import Grid, centres, factor_pair, grids
from ...plans.plan import Kept, Plan, Stage, View
from ...plans.schedule import nearest, per_unit
from ...plans.shape import VisualShape
from ..method import InDecoder
from ..options import integers, option
from ..registry import register


def read_grid(name: str, value: Any) -> tuple[int, ...]:
    """Rows and columns from "16x12", "16,12" or (16, 12)."""
    return integers(name, value.replace("x", ",") if isinstance(value, str) else value)


@register("pool")
@dataclass(frozen=True, kw_only=True)
class Pool(InDecoder):
    """A grid of cells per unit, the product of whose sides is the unit's budget: 12x16, 8x16, 8x8, 4x8 …

    The sides are the most nearly square ones, wide rather than tall; a budget whose sides would differ by more than a
    factor of two is out of reach.  A canvas of tiles gets cells of the same size as the base picture.
    """

    grid: tuple[int, ...] | None = option(
        None, "rows and columns of cells per unit, 16x12, instead of a budget", amount=True, read=read_grid
    )

    def options(self) -> dict[str, Any]:
        """As in `Method.options`, with the grid as "16x12"."""
        return {} if self.grid is None else {"grid": "x".join(map(str, self.grid))}

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One stage on entry of the first layer.  None: budget out of reach."""
        self.one_way(tokens)
        blocks = grids(shape)
        if blocks is None:
            raise UnsupportedError(
                f"pool needs to know where the patches stand, and {shape.tokens} visual tokens of layout {shape.source!r} "
                "are no square grid; use uniform or random instead"
            )
        base, cells = blocks[0], self.grid
        if cells is not None:
            if len(cells) != 2 or not (1 <= cells[0] <= base.rows and 1 <= cells[1] <= base.columns):
                raise VisionDropError(
                    f"grid={'x'.join(map(str, cells))}: give rows x columns, up to {base.rows}x{base.columns}, e.g. grid=8x16"
                )
        else:
            count = per_unit(tokens, shape)
            cells = None if count is None else factor_pair(count, base.rows, base.columns)
            if cells is None:
                return None
        parts = tuple((block, _cells(block, base, cells)) for block in blocks)
        kept = Kept(0, sum(h * w for _, (h, w) in parts))
        return self.placed(Plan("pool", shape, stages=(Stage(0, kept, partial(select, parts=parts)),)))


def _cells(grid: Grid, base: Grid, cells: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of cells on `grid` when `base` has `cells`."""
    down, across = cells[0] * grid.rows / base.rows, cells[1] * grid.columns / base.columns
    return min(grid.rows, max(1, nearest(down))), min(grid.columns, max(1, nearest(across)))


def select(view: View, kept: Kept, parts: tuple[tuple[Grid, tuple[int, int]], ...]) -> Selection:
    """Means over the cells of every grid in raster order; a cell's representative is its middle patch, none is kept.

    Args:
        parts: grids and their (rows, columns) of cells, `kept.contextual` in all.
    """
    hidden = view.hidden
    index, others, fate = (x.to(hidden.device).expand(len(hidden), -1) for x in _places(parts, hidden.shape[1]))

    def mix(x: Tensor) -> Tensor:
        return torch.cat([pooled(x, grid, cells) for grid, cells in parts], dim=1)

    return Selection(index=index, value=mix(hidden), dominant=0, merged=others, assignment=fate, mix=mix)


@lru_cache(maxsize=64)
def _places(parts: tuple[tuple[Grid, tuple[int, int]], ...], total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Middle patches, all other slots of `total`, and the cells these join (-1: none)."""
    cell = torch.full((total,), -1)
    middles: list[Tensor] = []
    for grid, (height, width) in parts:
        rows = torch.arange(grid.rows)[:, None] * height // grid.rows
        cell[grid.slots()] = (
            sum(len(x) for x in middles) + rows * width + torch.arange(grid.columns) * width // grid.columns
        )
        rows, columns = torch.tensor(centres(grid.rows, height)), torch.tensor(centres(grid.columns, width))
        middles.append(grid.slots()[rows[:, None], columns].flatten())
    index = torch.cat(middles)
    others = torch.ones(total, dtype=torch.bool).scatter_(0, index, 0).nonzero()[:, 0]
    return index, others, cell[others]


def pooled(hidden: Tensor, grid: Grid, cells: tuple[int, int]) -> Tensor:
    """[I, n, D] states of a sequence -> [I, h * w, D] means over the cells (float32 sums; uneven cells overlap)."""
    patches = hidden[:, grid.slots().flatten().to(hidden.device)].transpose(1, 2).float()
    image = patches.unflatten(2, (grid.rows, grid.columns))  # [I, D, rows, columns]
    return torch.nn.functional.adaptive_avg_pool2d(image, cells).flatten(2).transpose(1, 2).to(hidden.dtype)
