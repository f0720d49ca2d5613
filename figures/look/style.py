"""One look for all figures: readable in greyscale and by colour-blind readers, vector PDF and PNG, text beside each.

Colours are Okabe and Ito's (Color Universal Design, 2008), always with a marker, line style or hatch of their own; maps
use cividis, which is even in lightness.  Files carry no date and no software version, so that equal input gives equal
files on one installation.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from eval.errors import EvaluationError  # noqa: E402
from eval.files import ROOT  # noqa: E402

OUT = ROOT / "results" / "figures"
COLUMN, PAGE = 3.35, 7.0  # inches: one column, full width
MAP = "cividis"

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
GREY = "#7F7F7F"
METHODS = {  # method: (colour, marker, line style)
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
RULES = {  # score rule: (colour, hatch)
    "text-guided": (ORANGE, ""),
    "visual-only": (BLUE, "////"),
    "visual-only, unmasked": (SKY, "...."),
}
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


def use() -> None:
    """Switch the look on."""
    plt.rcdefaults()
    plt.rcParams.update(SETTINGS)


def save(figure: Figure, name: str, text: str, folder: Path = OUT) -> None:
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
