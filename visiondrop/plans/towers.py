"""Prefill FLOPs of vision towers that take pictures of any size, and of what makes tokens of their patches."""

from dataclasses import dataclass

from .shape import VisualShape


@dataclass(frozen=True)
class GridTower:
    """Widths of a tower whose tokens each stand for a square of `merge` x `merge` patches.

    Attributes:
        hidden, intermediate, layers: as in its configuration; gated: its MLP has three matrices instead of two.
        patch_inputs: numbers in a patch (channels x frames x height x width).
        merge: patches per side of a token.
        cls: rows beside the patches in every frame or tile.
        window: tokens per side of an attention window, 0 = none; whole: layers that see the whole picture.
        merger: (rows of patches or tokens, inputs, outputs) of every matrix after the tower: "patch" or "token".
        tile: patches of one tile, where pictures are cut into tiles; 0 = the grid is the picture.
    """

    hidden: int
    intermediate: int
    layers: int
    patch_inputs: int
    merge: int = 2
    gated: bool = False
    cls: int = 0
    window: int = 0
    whole: int = 0
    merger: tuple[tuple[int, int], ...] = ()
    tile: int = 0

    def flops(self, shape: VisualShape) -> int:
        """The patch embedding, all layers and the merger or projector on one picture or video (multiply-add = 2)."""
        frames, patches = self._frames(shape)
        rows = frames * (patches + self.cls)
        weights = 4 * self.hidden**2 + (3 if self.gated else 2) * self.hidden * self.intermediate
        whole = frames * (patches + self.cls) ** 2
        pairs = whole * (self.whole if self.window else self.layers)
        if self.window:
            pairs += (self.layers - self.whole) * self._windowed(shape)
        embedding = frames * patches * self.patch_inputs * self.hidden
        tokens = frames * patches // self.merge**2
        behind = tokens * sum(inputs * outputs for inputs, outputs in self.merger)
        return 2 * (embedding + self.layers * rows * weights + 2 * self.hidden * pairs + behind)

    def _frames(self, shape: VisualShape) -> tuple[int, int]:
        """(frames or tiles, patches of each)."""
        if self.tile:
            tiles = shape.tiles or (shape.grid[0] if shape.grid else 1)
            return tiles, self.tile
        frames, rows, columns = shape.grid or (1, 1, shape.tokens)
        return frames, rows * columns * self.merge**2

    def _windowed(self, shape: VisualShape) -> int:
        """Pairs of patches that see each other inside windows; those at the right and lower edge are smaller."""
        frames, *sides = shape.grid or (1, 1, shape.tokens)

        def squares(side: int) -> int:
            full, rest = divmod(side, self.window)
            return full * self.window**2 + rest**2

        return frames * squares(sides[0]) * squares(sides[1]) * self.merge**4
