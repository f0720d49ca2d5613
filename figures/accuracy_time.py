"""Accuracy against measured LLM prefill time, all methods (beyond the paper).

    python -m figures.accuracy_time [--model M] [--protocol P]

Accuracies are the rows of Table 1; times are those of results/efficiency/methods-*.jsonl at batch size 1: the LLM's
prefill with the selection inside it, random weights, on the machine and at the size that the x-axis names.
"""

import sys
from pathlib import Path

import pandas as pd

from eval.errors import EvaluationError
from figures.data.needs import Rows, Timings
from figures.data.pages import page
from figures.data.settings import Variant
from figures.look import style, values
from figures.look.style import plt


def clock(times: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """(prefill ms by method and budget, where they were measured) of the newest machine.

    Raises:
        EvaluationError: nothing was measured.
    """
    if times.empty:
        raise EvaluationError("there are no timings of the methods: run bash scripts/figures/accuracy-time.sh")
    times = times[(times["batch"] == 1) & (times["units"] == 1)]
    last = times.sort_values("date", kind="stable").iloc[-1]
    same = times[
        (times["device"] == last["device"]) & (times["hidden"] == last["hidden"]) & (times["layers"] == last["layers"])
    ]
    size = f"width {last['hidden']}, {last['layers']} layers"
    return same.assign(tokens=same["tokens"].fillna(0).astype(int)).set_index(
        ["method", "tokens"]
    ), f"{last['device']}, {size}, {last['dtype']}"


@page("accuracy-time", Rows("table1"), Timings("methods"))
def draw(variant: Variant, lines: pd.DataFrame, timed: pd.DataFrame, name: str, out: Path) -> None:
    """One line per method; the unpruned model as a point of its own."""
    style.use()
    found, what = values.overall(variant, lines)
    times, where = clock(timed)
    figure, axis = plt.subplots(figsize=(style.PAGE * 0.75, 2.9))
    text = [f"{what}; LLM prefill in ms on {where}", f"{'entry':<22}{'tokens':>7}{'ms':>9}{'value':>9}"]
    for method in dict.fromkeys(e.method for e in variant.entries):
        numbers = [
            i
            for i in values.of(lines, variant, lambda e: e.method == method)
            if (method, _budget(variant, i)) in times.index
        ]
        mine = (
            found.loc[numbers]
            .assign(x=[times.loc[(method, _budget(variant, i)), "prefill"] for i in numbers])
            .dropna(subset=["ours"])
        )
        if mine.empty:
            continue
        label = variant.entries[numbers[0]].label if method != "none" else "unpruned"
        values.curve(axis, mine, method, label)
        text += [
            f"{label:<22}{variant.entries[i].tokens:>7}{mine.loc[i, 'x']:>9.1f}{mine.loc[i, 'ours']:>9.2f}"
            for i in mine.index
        ]
    axis.set_xlim(left=0)
    axis.set_xlabel(f"LLM prefill (ms)\n{where}")
    axis.set_ylabel(what if len(what) < 30 else "mean ratio to unpruned (%)")
    figure.legend(loc="outside right center")
    style.save(figure, name, "\n".join(text), out)


def _budget(variant: Variant, number: int) -> int:
    """The budget as it stands in timings: 0 for the unpruned model."""
    return 0 if variant.entries[number].is_base else variant.entries[number].tokens


if __name__ == "__main__":
    sys.exit(draw.main())
