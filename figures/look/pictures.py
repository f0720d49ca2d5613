"""Pictures with patches on them, shared by Figures 1, 3 and 4."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from figures.look import style

PALE = 0.82  # how far a pruned patch fades to white


def side(patches: int) -> int:
    """Patches along one side."""
    return int(round(patches**0.5))


def kept(axes: Axes, image: np.ndarray, mask: np.ndarray) -> None:
    """The picture with pruned patches faded: image uint8 [H, W, 3], mask bool [n]."""
    grid = side(len(mask))
    cell = np.kron(mask.reshape(grid, grid), np.ones((image.shape[0] // grid, image.shape[1] // grid)))[..., None]
    shown = image[: cell.shape[0], : cell.shape[1]] / 255
    axes.imshow(shown * cell + (shown * (1 - PALE) + PALE) * (1 - cell), interpolation="nearest")
    style.bare(axes)


def outline(axes: Axes, mask: np.ndarray, pixels: int, color: str = style.RED) -> None:
    """A line around a set of patches, mask bool [n], on a picture of `pixels` per side."""
    grid = side(len(mask))
    field, step = np.pad(mask.reshape(grid, grid), 1), pixels / grid
    lines = []
    for y in range(grid + 1):
        for x in range(grid + 1):
            if y < grid and field[y + 1, x] != field[y + 1, x + 1]:
                lines.append([(x * step, y * step), (x * step, (y + 1) * step)])
            if x < grid and field[y, x + 1] != field[y + 1, x + 1]:
                lines.append([(x * step, y * step), ((x + 1) * step, y * step)])
    shifted = np.array(lines).reshape(-1, 2, 2) - 0.5
    axes.add_collection(LineCollection(shifted, colors="white", linewidths=2.0, capstyle="round"))
    axes.add_collection(LineCollection(shifted, colors=color, linewidths=1.1, capstyle="round"))


def rows_text(mask: np.ndarray) -> str:
    """A mask as text, one character per patch, for the file beside the figure."""
    grid = side(len(mask))
    return "\n".join("".join("#" if x else "." for x in row) for row in mask.reshape(grid, grid))
