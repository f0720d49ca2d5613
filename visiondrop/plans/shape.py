"""What a plan must know about one image and the model that sees it."""

from dataclasses import dataclass


def feature_layer(layers: int, select_layer: int) -> int:
    """The 0-based one of a tower's layers whose output is hidden_states[select_layer]; -1 = the embeddings."""
    return select_layer - 1 if select_layer >= 0 else layers + select_layer


@dataclass(frozen=True)
class VisualShape:
    """What a plan must know about the model's depth and one image.

    Attributes:
        layers: decoder layers.
        patches: patches of one unit (576 for CLIP-L/14 at 336 px).
        units: crops or frames of this image.
        nominal_units: number of units for which budgets are stated (1; 5 for LLaVA-NeXT; 8 for video).
        cls: the tower has a [CLS] token.
        length: visual tokens at LLM entry when nothing is pruned, newlines and [CLS] included; 0 = units x patches.
        kind: "image" or "video" (the first stage keeps 1.5 or 3 budgets).
        source: the layout in words, e.g. "anyres"; part of every result row.
        canvas: (rows, columns) of patches of the stitched tiles that follow the base picture; None = no tiles.
        tower_layers: layers of the vision tower; feature_layer: the 0-based one whose output is read.
        grid: (frames, rows, columns) of visual tokens where a model takes pictures of any size; None = a square.
        tiles: tiles or frames that the tower sees, where the model has stitched or pooled them into `patches` tokens; or 0.
    """

    layers: int = 32
    patches: int = 576
    units: int = 1
    nominal_units: int = 1
    cls: bool = True
    length: int = 0
    kind: str = "image"
    source: str = "pad"
    canvas: tuple[int, int] | None = None
    tower_layers: int = 24
    feature_layer: int = 22
    grid: tuple[int, int, int] | None = None
    tiles: int = 0

    @property
    def tokens(self) -> int:
        """Unpruned visual tokens at LLM entry."""
        return self.length or self.units * self.patches

    @property
    def newlines(self) -> int:
        """Newlines in the unpruned sequence of an unpadded anyres image: one per row of its canvas."""
        if self.source != "anyres":
            return 0
        rows, columns = self.canvas or (0, 0)
        return self.tokens - self.patches - rows * columns

    @property
    def nominal(self) -> int:
        """The unpruned token count that budgets are stated for."""
        return self.nominal_units * self.patches

    @property
    def scale(self) -> float:
        """This image's share of the nominal number of units."""
        return self.units / self.nominal_units
