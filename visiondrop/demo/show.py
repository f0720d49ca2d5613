"""Draw what each stage kept: dominant patches bright, contextual ones framed, everything else dimmed."""

from PIL import Image, ImageDraw

from ..errors import VisionDropError
from ..ops.report import Report

CELL = 14  # pixels per patch
MARGIN = 26
GAP = 8  # between panels
DIM = 0.22  # brightness of what was dropped
FRAME = (230, 159, 0)  # orange of the Okabe-Ito palette, visible in greyscale on dimmed ground


def square(image: Image.Image, side: int) -> Image.Image:
    """The image as the tower sees it: centred on a square, resized to `side` pixels."""
    longest = max(image.size)
    canvas = Image.new("RGB", (longest, longest), (122, 116, 104))  # CLIP's mean colour
    canvas.paste(image.convert("RGB"), ((longest - image.width) // 2, (longest - image.height) // 2))
    return canvas.resize((side, side), Image.Resampling.BICUBIC)


def panel(base: Image.Image, dominant: list[int], contextual: list[int], grid: int, title: str) -> Image.Image:
    """One stage: [side + margin, side] picture with a title line.

    Args:
        base: the squared image; dominant, contextual: patch ids 0 … grid**2 - 1 ([CLS], negative, is left out).
    """
    out = Image.new("RGB", (base.width, base.height + MARGIN), "white")
    out.paste(base.point(lambda v: int(v * DIM)), (0, MARGIN))
    for patch in (*dominant, *contextual):
        if patch >= 0:
            x, y = patch % grid * CELL, patch // grid * CELL
            out.paste(base.crop((x, y, x + CELL, y + CELL)), (x, y + MARGIN))
    pen = ImageDraw.Draw(out)
    for patch in contextual:
        if patch >= 0:
            x, y = patch % grid * CELL, patch // grid * CELL + MARGIN
            pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=FRAME, width=2)
    pen.text((4, 6), title, fill="black")
    return out


def beside(panels: list[Image.Image]) -> Image.Image:
    """Panels of one size side by side on a white sheet."""
    sheet = Image.new("RGB", (sum(p.width for p in panels) + GAP * (len(panels) - 1), panels[0].height), "white")
    for i, each in enumerate(panels):
        sheet.paste(each, (i * (each.width + GAP), 0))
    return sheet


def draw(image: Image.Image, report: Report, grid: int, path: str, which: int = 0) -> None:
    """Write one panel per stage, side by side, into `path`.

    Args:
        image: the original picture; report: of a handle applied with report=True; grid: patches per side.
        which: image of the batch.
    """
    base = square(image, grid * CELL)
    panels = [panel(base, list(range(grid * grid)), [], grid, f"input, {grid * grid} patches")]
    for stage in report.stages:
        dominant, contextual = stage.dominant[which].tolist(), stage.reference[which].tolist()
        name = "encoder" if stage.layer == "encoder" else f"layer {stage.layer}"
        cls = " with [CLS]" if any(p < 0 for p in dominant) else ""
        panels.append(
            panel(base, dominant, contextual, grid, f"{name}: {len(dominant)}{cls} + {len(contextual)} merged")
        )
    try:
        beside(panels).save(path)
    except (OSError, ValueError) as error:
        raise VisionDropError(
            f"cannot write the picture {path!r} ({error}); give a writable path ending in .png"
        ) from error
