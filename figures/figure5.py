"""Figure 5: the pipeline, drawn from the plan that runs: stages, the layers they act before, and their token counts.

    python -m figures.figure5 [--tokens 64] [--method visiondrop] [--layers 32] [--option NAME=VALUE]

Heights of the token bars are to scale.  Any method's plan can be drawn.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import visiondrop
from figures.data.needs import Need
from figures.data.pages import page
from figures.data.settings import options_of
from figures.look import style
from figures.look.style import plt
from visiondrop.plans.plan import Plan

STEP, BAR, TALL = 2.2, 0.62, 3.0  # distance of columns, width and full height of a token bar, in drawing units
FLOOR = 1.0  # where bars stand
WORDS = {
    "visual": "visual-to-visual\nattention",
    "row": "last text token's\nattention",
    "rows": "rater tokens'\nattention",
    "": "no attention",
}


ENCODER_WORDS = {"cls": "[CLS]\nattention", "": "reduction\nbefore the LLM"}


def columns(plan: Plan) -> list[dict]:
    """What stands in each column: kept tokens, their parts, the box below and the reduction before it."""
    edges = [0, *(s.layer for s in plan.stages), plan.shape.layers]
    out = [{"box": "vision encoder", "count": plan.shape.tokens, "contextual": 0, "why": ""}]
    first = plan.encoder
    counts = plan.counts
    for i, (start, stop) in enumerate(zip(edges, edges[1:])):
        if i == 0:
            parts = first.contextual * plan.shape.units if first else 0
            why = ENCODER_WORDS[first.scoring] if first else ""
        else:
            stage = plan.stages[i - 1]
            parts, why = stage.contextual, WORDS[stage.scoring]
        out.append({"box": f"LLM layers\n{start} – {stop - 1}", "count": counts[i], "contextual": parts, "why": why})
    return out


@dataclass(frozen=True)
class OnePlan(Need):
    """The plan that the command line names."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """--method, --tokens, --layers, --option."""
        parser.add_argument("--method", default="visiondrop")
        parser.add_argument("--tokens", type=int, default=64)
        parser.add_argument("--layers", type=int, default=32, help="decoder layers")
        parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")

    def inputs(self, page: str, args: argparse.Namespace) -> tuple[Plan]:
        """(plan,); VisionDropError where the method cannot meet the budget."""
        return (visiondrop.plan(args.method, args.tokens, layers=args.layers, options=options_of(args.option)),)

    def stem(self, page: str, args: argparse.Namespace) -> str:
        """figure5, or figure5-METHOD-TOKENS-LAYERS where it is not the usual plan."""
        usual = (args.method, args.tokens, args.layers, args.option) == ("visiondrop", 64, 32, [])
        return page if usual else f"{page}-{args.method}-{args.tokens}-{args.layers}"


@page("figure5", OnePlan())
def draw(plan: Plan, name: str, out: Path) -> None:
    """Boxes on the lower line, the tokens that enter them above, the reduction between two columns."""
    style.use()
    found = columns(plan)
    figure, axes = plt.subplots(figsize=(style.PAGE, 2.75))
    unit = TALL / plan.shape.tokens
    for i, column in enumerate(found):
        x, colour = i * STEP, style.GREY if i == 0 else style.SKY
        box = FancyBboxPatch(
            (x - 0.72, 0),
            1.44,
            0.62,
            boxstyle="round,pad=0.02,rounding_size=0.12",
            linewidth=0.7,
            edgecolor="black",
            facecolor="#EFEFEF" if i == 0 else "#DCECF7",
        )
        axes.add_patch(box)
        axes.text(x, 0.31, column["box"], ha="center", va="center")
        _bar(axes, x, column, unit, colour)
        if i:
            axes.add_patch(
                FancyArrowPatch(
                    (x - STEP + 0.76, 0.31),
                    (x - 0.76, 0.31),
                    arrowstyle="-|>",
                    mutation_scale=8,
                    linewidth=0.8,
                    color="black",
                )
            )
            _stage(axes, x - STEP / 2, i, column)
    axes.text(STEP / 2, 0.14, "projector", ha="center", va="center", fontsize=6.5)
    axes.set_xlim(-0.85, (len(found) - 1) * STEP + 0.85)
    axes.set_ylim(-0.12, FLOOR + TALL + 0.5)
    axes.set_aspect("auto")
    axes.axis("off")
    _legend(axes, plan)
    style.save(figure, name, str(plan.ledger()), out)


def _bar(axes, x: float, column: dict, unit: float, colour: str) -> None:
    """Tokens of one column: dominant below, contextual hatched on top, the count above."""
    dominant, contextual = (column["count"] - column["contextual"]) * unit, column["contextual"] * unit
    axes.add_patch(Rectangle((x - BAR / 2, FLOOR), BAR, dominant, facecolor=colour, edgecolor="black", linewidth=0.5))
    if contextual:
        axes.add_patch(
            Rectangle(
                (x - BAR / 2, FLOOR + dominant),
                BAR,
                contextual,
                facecolor="white",
                edgecolor="black",
                hatch="//////",
                linewidth=0.5,
            )
        )
    axes.text(
        x,
        FLOOR + dominant + contextual + 0.08,
        f"{column['count']} tokens",
        ha="center",
        va="bottom",
        fontweight="bold",
    )
    if column["contextual"]:
        parts = f"{column['count'] - column['contextual']} + {column['contextual']}"
        axes.text(x, FLOOR + dominant + contextual + 0.42, parts, ha="center", va="bottom", fontsize=6.5)


def _stage(axes, x: float, number: int, column: dict) -> None:
    """What happens between two columns."""
    if not column["why"]:
        return
    axes.plot([x, x], [0.42, FLOOR + 1.28], color=style.RED, linewidth=0.9, linestyle=(0, (3, 2)))
    axes.text(
        x, FLOOR + 1.78, f"stage {number}", ha="center", va="bottom", color=style.RED, fontweight="bold", fontsize=7
    )
    axes.text(x, FLOOR + 1.72, column["why"], ha="center", va="top", fontsize=6, linespacing=1.0)


def _legend(axes, plan: Plan) -> None:
    ledger = plan.ledger()
    handles = [Rectangle((0, 0), 1, 1, facecolor=style.SKY, edgecolor="black", linewidth=0.5)]
    labels = ["dominant tokens: highest score"]
    if any(c["contextual"] for c in columns(plan)):
        handles.append(Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="black", hatch="//////", linewidth=0.5))
        labels.append("contextual tokens: the rest, merged by similarity")
    mean = f"mean {ledger.mean:.1f} of {plan.shape.tokens} tokens per LLM layer"
    title = f"{plan.method}, budget {plan.tokens}: {mean}, {ledger.flops / 1e12:.2f} TFLOPs"
    legend = axes.legend(handles, labels, loc="upper right", title=title, title_fontsize=7)
    legend._legend_box.align = "left"


if __name__ == "__main__":
    sys.exit(draw.main())
