"""Draw what each stage kept: `ask --show`, the demo's page and the README's picture.

Kept patches are bright, dropped ones dark.  A token that stands for merged patches is framed in a colour, and the patches
that went into it are tinted with it.
"""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..errors import VisionDropError
from ..ops.report import Report
from .fates import Step, follow, standing_for_others

CELL = 14  # pixels per patch
MARGIN = 26
GAP = 8  # between panels
UNIT_GAP = 4  # between crops or frames
DIM = 0.22  # brightness of what was dropped
TINT = 0.3  # share of the colour in a merged patch, over the dimmed picture
TINT_LUMA = 95  # brightness of that colour: below what is kept, for every hue alike
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
LABEL = (20, 20, 20)
Grid = int | tuple[int, int]  # patches per side, or (rows, columns)


def square(image: Image.Image, side: int) -> Image.Image:
    """The image as the tower sees it: centred on a square, resized to `side` pixels."""
    longest = max(image.size)
    canvas = Image.new("RGB", (longest, longest), (122, 116, 104))  # CLIP's mean colour
    canvas.paste(image.convert("RGB"), ((longest - image.width) // 2, (longest - image.height) // 2))
    return canvas.resize((side, side), Image.Resampling.BICUBIC)


def colours(tokens: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """{token: its colour}; neighbours in the list are far apart on the colour wheel."""
    out = {}
    for number, token in enumerate(tokens):
        hue, light = number * 0.618034 % 1, (0.6, 0.5, 0.72)[number % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, light, 0.85)
        out[token] = (round(255 * red), round(255 * green), round(255 * blue))
    return out


def paint(
    units: Sequence[Image.Image], grid: Grid, step: Step | None, palette: Mapping[int, tuple[int, int, int]]
) -> Image.Image:
    """One picture after one stage, its crops or frames side by side.

    Args:
        units: the crops or frames as the tower sees them; grid: patches of each.
        step: None: before any stage, everything bright; palette: of `colours`.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    bright = [np.asarray(_fit(unit, rows, columns)) for unit in units]
    cells = np.stack(bright).reshape(len(units), rows, CELL, columns, CELL, 3).astype(np.float32)
    shown = cells.transpose(0, 1, 3, 2, 4, 5).reshape(-1, CELL, CELL, 3)
    if step is not None:
        shown = _dimmed(shown, step, palette)
    cells = shown.reshape(len(units), rows, columns, CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    pictures = [
        Image.fromarray(np.ascontiguousarray(unit.reshape(rows * CELL, columns * CELL, 3)).round().astype(np.uint8))
        for unit in cells
    ]
    return beside(pictures, UNIT_GAP)


def _fit(unit: Image.Image, rows: int, columns: int) -> Image.Image:
    size = (columns * CELL, rows * CELL)
    unit = unit.convert("RGB")
    return unit if unit.size == size else unit.resize(size, Image.Resampling.BICUBIC)


def _dimmed(shown: np.ndarray, step: Step, palette: Mapping[int, tuple[int, int, int]]) -> np.ndarray:
    """[patches, CELL, CELL, 3] with what is gone darkened, what was merged tinted, and what stands for others framed."""
    out = shown * DIM
    for token, members in step.stands_for.items():
        colour = np.array(palette.get(token, (1, 1, 1)), np.float32)
        colour *= TINT_LUMA / (colour @ LUMA)
        for patch in members:
            if 0 <= patch < len(out):
                out[patch] = shown[patch] * DIM * (1 - TINT) + colour * TINT
    for token, members in step.stands_for.items():
        if not 0 <= token < len(out):  # [CLS] and newlines stand nowhere in the picture
            continue
        out[token] = shown[token]
        if members:
            out[token, :2] = out[token, -2:] = out[token, :, :2] = out[token, :, -2:] = palette[token]
    return out


def titled(picture: Image.Image, title: str) -> Image.Image:
    """The picture under a line of text."""
    out = Image.new("RGB", (picture.width, picture.height + MARGIN), "white")
    out.paste(picture, (0, MARGIN))
    ImageDraw.Draw(out).text((4, 6), title, fill=LABEL)
    return out


def beside(panels: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Panels of one size side by side on a white sheet."""
    sheet = Image.new("RGB", (sum(p.width for p in panels) + gap * (len(panels) - 1), panels[0].height), "white")
    for i, each in enumerate(panels):
        sheet.paste(each, (i * (each.width + gap), 0))
    return sheet


def stages(units: Sequence[Image.Image], grid: Grid, steps: Sequence[Step]) -> list[Image.Image]:
    """The picture before any stage, and after each."""
    palette = colours(standing_for_others(steps))
    return [paint(units, grid, step, palette) for step in (None, *steps)]


def draw(units: Sequence[Image.Image], grid: Grid, report: Report, path: str, which: int = 0) -> None:
    """Write the `sheet` of a picture into `path`."""
    try:
        sheet(units, grid, report, which).save(path)
    except (OSError, ValueError) as error:
        raise VisionDropError(
            f"cannot write the picture {path!r} ({error}); give a writable path ending in .png"
        ) from error


def sheet(units: Sequence[Image.Image], grid: Grid, report: Report, which: int = 0) -> Image.Image:
    """One panel per stage, side by side (of several crops or frames: one below the other).

    Args:
        units: the picture's crops or frames as the tower sees them; grid: patches of each.
        report: of a handle applied with report=True; which: image of the batch.
    """
    steps = follow(report, which)
    patches = len(units) * (grid * grid if isinstance(grid, int) else grid[0] * grid[1])
    titles = [f"input, {patches} patches", *(step.title for step in steps)]
    panels = [titled(picture, title) for picture, title in zip(stages(units, grid, steps), titles)]
    return beside(panels) if len(units) == 1 else below(panels)


def below(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels of one width, one below the other on a white sheet."""
    sheet = Image.new("RGB", (panels[0].width, sum(p.height for p in panels) + GAP * (len(panels) - 1)), "white")
    for i, each in enumerate(panels):
        sheet.paste(each, (0, i * (each.height + GAP)))
    return sheet
