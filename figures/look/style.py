"""One look for all figures: readable in greyscale and by colour-blind readers, vector PDF and PNG, text beside each.

Colours are Okabe and Ito's (Color Universal Design, 2008), always with a marker, line style or hatch of their own; maps
use cividis, which is even in lightness.  Files carry no date and no software version, so that equal input gives equal
files on one installation.
"""

import hashlib
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from eval.errors import EvaluationError  # noqa: E402
from figures.data.choose import FIGURES  # noqa: E402

COLUMN, PAGE = 3.35, 7.0  # inches: one column, full width
MAP = "cividis"

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
GREY = "#7F7F7F"
CHOSEN = {  # method: (colour, marker, line style)
    "none": (BLACK, "*", ":"),
    "visiondrop": (RED, "o", "-"),
    "vispruner": (BLUE, "s", "-"),
    "visionzip": (SKY, "D", "--"),
    "sparsevlm": (GREEN, "^", "-."),
    "pyramiddrop": (ORANGE, "v", "--"),
    "fastv": (PURPLE, "P", "-."),
    "random": (GREY, "x", ":"),
    "uniform": (GREY, "+", "--"),
    "pool": (GREY, "1", "-."),
}
SPARE = ("<", ">", "p", "h", "X", "d", "8", "H")
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "visiondrop",
    "figure.constrained_layout.use": True,
}


def of_method(method: str) -> tuple[str, str, str]:
    """(colour, marker, line style) of a method: the chosen ones, else a stable choice by its name.

    Such a colour differs in hue, has a contrast of at least 3 to 1 on white (WCAG 2), and comes with one of the
    markers that no chosen method has.
    """
    if method in CHOSEN:
        return CHOSEN[method]
    number = int.from_bytes(hashlib.sha256(method.encode()).digest()[:6], "big")
    hue, number = number % 360 / 360, number // 360
    value = 0.85
    while contrast(to_hex(hsv_to_rgb((hue, 0.8, value)))) < 3:
        value -= 0.05
    return to_hex(hsv_to_rgb((hue, 0.8, value))), SPARE[number % len(SPARE)], ("-", "--", "-.")[number // 8 % 3]


def contrast(color: str) -> float:
    """Contrast of a colour with white, 1 to 21 (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def use() -> None:
    """Switch the look on."""
    plt.rcdefaults()
    plt.rcParams.update(SETTINGS)


def save(figure: Figure, name: str, text: str, folder: Path = FIGURES) -> None:
    """Write name.pdf, name.png and name.txt, and close the figure.

    Raises:
        EvaluationError: the folder cannot be written.
    """
    _settle(figure)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
        (folder / f"{name}.txt").write_text(text.rstrip() + "\n", encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be written: {error.strerror}; choose another --out") from None
    finally:
        plt.close(figure)
    print(f"wrote {folder / name}.{{pdf,png,txt}}")


def _settle(figure: Figure) -> None:
    """Lay out once and round: the solver's last bits differ from run to run, and with them the files."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for part in figure.subfigs:
        part.patch.set_visible(False)
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position([round(v, 3) for v in (box.x0, box.y0, box.width, box.height)])


def bare(axes) -> None:
    """An axes that shows a picture: no ticks, no grid, a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_linewidth(0.4)


def letter(axes, text: str) -> None:
    """Panel letter above the left end of an axes."""
    axes.set_title(f"({text})", loc="left", fontweight="bold")
