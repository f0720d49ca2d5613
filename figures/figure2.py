"""Figure 2: PyramidDrop with text-guided against visual-only scores at three budgets, benchmark by benchmark.

    python -m figures.figure2 [--model M] [--protocol P]

Points are scores with 95 % intervals; the dotted line is the unpruned model.  Layers and token counts are the same for
all three scores.
"""

import sys
from pathlib import Path

import pandas as pd

from figures.data.needs import Rows
from figures.data.pages import page
from figures.data.settings import Variant
from figures.look import style, values
from figures.look.style import plt

RULES = {
    "text-guided": (style.ORANGE, "v", "-"),
    "visual-only": (style.BLUE, "o", "--"),
    "visual-only, unmasked": (style.SKY, "^", "-."),
}
SHIFT = 0.13  # of a step on the x-axis, so that error bars stand apart


@page("figure2", Rows("figure2"))
def draw(variant: Variant, lines: pd.DataFrame, name: str, out: Path) -> None:
    """One small panel per column of the table."""
    style.use()
    count = len(variant.columns)
    across = min(4, count)
    down = -(-count // across)
    figure, axes = plt.subplots(down, across, figsize=(style.PAGE, 1.75 * down + 0.35), sharex=True, squeeze=False)
    budgets = sorted({e.tokens for e in variant.entries if not e.is_base}, reverse=True)
    for axis, column in zip(axes.flat, variant.columns):
        mine = lines[lines["column"] == column.key]
        for k, (rule, (color, marker, line)) in enumerate(RULES.items()):
            found = mine[mine["label"] == rule].set_index("tokens").reindex(budgets)
            x = [i + SHIFT * (k - 1) for i in range(len(budgets))]
            axis.errorbar(
                x,
                found["ours"],
                yerr=values.errors(found),
                color=color,
                marker=marker,
                linestyle=line,
                elinewidth=0.8,
                label=rule,
            )
        base = mine[mine["method"] == "none"]["ours"]
        axis.axhline(base.iloc[0], color=style.BLACK, linestyle=":", linewidth=0.9, label="unpruned")
        axis.set_title(column.head)
        axis.set_xticks(range(len(budgets)), [str(b) for b in budgets])
        axis.set_xlim(-0.4, len(budgets) - 0.6)
    for axis in axes.flat[count:]:
        axis.axis("off")
    figure.supxlabel("budget (mean visual tokens per LLM layer)", fontsize=7.5)
    figure.supylabel("score" if variant.kind == "paper" else "accuracy (%)", fontsize=7.5)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles[1:] + handles[:1], labels[1:] + labels[:1], loc="outside upper center", ncols=4)
    style.save(figure, name, text(variant, lines), out)


def text(variant: Variant, lines: pd.DataFrame) -> str:
    """Scores per column, and the difference visual-only minus text-guided (unpaired; eval.compare pairs it)."""
    out = [f"{'column':<12}{'tokens':>7}{'text-guided':>26}{'visual-only':>26}{'unmasked':>26}{'visual - text':>15}"]
    for column in variant.columns:
        for tokens in sorted({e.tokens for e in variant.entries if not e.is_base}, reverse=True):
            mine = lines[(lines["column"] == column.key) & (lines["tokens"] == tokens)].set_index("label")
            shown = [_one(mine.loc[rule]) for rule in RULES]
            gap = mine.loc["visual-only", "ours"] - mine.loc["text-guided", "ours"]
            out.append(
                f"{column.head:<12}{tokens:>7}"
                + "".join(f"{s:>26}" for s in shown)
                + (f"{gap:>+15.2f}" if pd.notna(gap) else f"{'-':>15}")
            )
    return "\n".join(out)


def _one(cell: pd.Series) -> str:
    if pd.isna(cell["ours"]):
        return cell["note"]
    return f"{cell['ours']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"


if __name__ == "__main__":
    sys.exit(draw.main())
