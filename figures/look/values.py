"""What the figures made of rows share: one value with its interval per entry."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from figures.data.settings import Entry, Variant
from figures.look import style


def overall(variant: Variant, lines: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """One value per entry: (frame indexed by entry with ours, low, high; what it is, in words).

    A benchmark that is one question set gives its headline score and interval.  Several benchmarks give the mean of the
    ratios to the unpruned row, over those that have an unpruned row; the intervals of the benchmarks are combined as
    independent ones.
    """
    single = [c.key for c in variant.columns if c.group is None and c.metric is None]
    if single:
        return lines[lines["column"] == single[0]].set_index("entry")[
            ["ours", "low", "high"]
        ], "accuracy, all kinds (%)"
    first = next(i for i, e in enumerate(variant.entries) if e.is_base)
    there = set(lines[(lines["entry"] == first) & lines["ours"].notna()]["column"])
    shown = [c for c in variant.columns if c.key in there and c.group is not None]
    keys = [c.key for c in shown]
    wide = {name: lines.pivot(index="entry", columns="column", values=name)[keys] for name in ("ours", "low", "high")}
    base = wide["ours"].loc[first]
    mean = 100 * (wide["ours"] / base).mean(axis=1, skipna=False)
    half = 50 * np.sqrt((((wide["high"] - wide["low"]) / base) ** 2).sum(axis=1, skipna=False)) / len(keys)
    heads = ", ".join(c.head for c in shown)
    return pd.DataFrame({"ours": mean, "low": mean - half, "high": mean + half}), f"mean ratio to unpruned (%), {heads}"


def errors(frame: pd.DataFrame) -> np.ndarray:
    """[2, n] distances to the interval's ends, 0 where there is none."""
    return np.nan_to_num(np.stack([frame["ours"] - frame["low"], frame["high"] - frame["ours"]])).clip(min=0)


def curve(axis, mine: pd.DataFrame, method: str, label: str) -> None:
    """One method's line with error bars: `mine` has columns x and ours, and what `errors` reads."""
    color, marker, line = style.of_method(method)
    axis.errorbar(
        mine["x"],
        mine["ours"],
        yerr=errors(mine),
        color=color,
        marker=marker,
        linestyle=line,
        elinewidth=0.7,
        label=label,
    )


def numbers(lines: pd.DataFrame, values: pd.DataFrame, what: str) -> str:
    """The values as text."""
    labels = lines.groupby("entry").first()
    out = [what, f"{'entry':<34}{'tokens':>7}{'value':>9}   95 % interval"]
    for entry, value in values.iterrows():
        label = labels.loc[entry]
        shown = (
            "not run" if pd.isna(value["ours"]) else f"{value['ours']:9.2f}   {value['low']:.2f} … {value['high']:.2f}"
        )
        out.append(f"{label['label']:<34}{label['tokens']:>7}{shown:>9}")
    return "\n".join(out)


def of(lines: pd.DataFrame, variant: Variant, pick: Callable[[Entry], bool]) -> list[int]:
    """Numbers of the entries that `pick` says."""
    return [i for i, e in enumerate(variant.entries) if pick(e)]
