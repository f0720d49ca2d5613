"""Accuracy against mean visual tokens per LLM layer, all methods (beyond the paper).

    python -m figures.accuracy_tokens [--model M] [--protocol P]

The x-axis is the mean that the ledger recorded, not the budget that was asked for; methods with equal means are drawn
beside each other (up to 5 % apart).
"""

import sys
from pathlib import Path

import pandas as pd

from figures.data.needs import Rows
from figures.data.pages import page
from figures.data.settings import Variant
from figures.look import style, values
from figures.look.style import plt


@page("accuracy-tokens", Rows("table1"))
def draw(variant: Variant, lines: pd.DataFrame, name: str, out: Path) -> None:
    """One line per method, logarithmic in tokens; the unpruned model as a dotted line."""
    style.use()
    found, what = values.overall(variant, lines)
    means = lines.groupby("entry")["mean_tokens"].mean()
    figure, axis = plt.subplots(figsize=(style.PAGE * 0.75, 2.9))
    methods = list(dict.fromkeys(e.method for e in variant.entries if not e.is_base))
    for k, method in enumerate(methods):
        numbers = values.of(lines, variant, lambda e: e.method == method)
        mine = (
            found.loc[numbers]
            .assign(x=means.loc[numbers] * 1.011 ** (k - len(methods) / 2))
            .dropna(subset=["ours"])
            .sort_values("x")
        )
        if mine.empty:
            continue
        label = variant.entries[numbers[0]].label
        values.curve(axis, mine, method, label)
    base = found.loc[values.of(lines, variant, lambda e: e.is_base)[0], "ours"]
    axis.axhline(base, color=style.BLACK, linestyle=":", linewidth=0.9, label="unpruned")
    axis.set_xscale("log", base=2)
    budgets = sorted({e.tokens for e in variant.entries if not e.is_base})
    axis.set_xticks(budgets, [str(b) for b in budgets])
    axis.minorticks_off()
    axis.set_xlabel("mean visual tokens per LLM layer")
    axis.set_ylabel(what if len(what) < 30 else "mean ratio to unpruned (%)")
    figure.legend(loc="outside right center")
    style.save(figure, name, values.numbers(lines, found, what), out)


if __name__ == "__main__":
    sys.exit(draw.main())
