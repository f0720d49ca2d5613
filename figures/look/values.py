"""What the figures made of rows share: one value with its interval per entry, and their command line."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from eval.errors import EvaluationError
from figures import tables
from figures.data import cells
from figures.data.settings import Entry, Variant
from figures.look import style
from visiondrop.errors import command_line


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
    color, marker, line = style.METHODS[method]
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


@command_line
def command(name: str, table: str, doc: str, draw: Callable, argv: list[str] | None = None) -> int:
    """`--model`, `--protocol`, `--results`, `--out` for a figure made of rows; exit code 0, or 2 with one sentence.

    Args:
        name: the figure; table: whose entries it shows (configs/tables.yaml).
        draw: called with (variant, lines, file name, folder).
    """
    parser = argparse.ArgumentParser(prog=f"python -m figures.{name}", description=doc.split("\n")[0])
    tables.add_arguments(parser)
    parser.add_argument("--out", type=Path, default=style.OUT)
    args = parser.parse_args(argv)
    variant, model = tables.chosen(table, args)
    lines = cells.long_table(variant, model, cells.load_rows(tables.result_files(args.results)))
    if lines[lines["method"] != "none"]["ours"].isna().all() or lines[lines["method"] == "none"]["ours"].isna().all():
        reasons = ", ".join(sorted({n for n in lines["note"] if n}))
        script = name.replace("_", "-")
        raise EvaluationError(
            f"there are no rows of {model} for this figure, unpruned and pruned ({reasons}): "
            f"run bash scripts/figures/{script}.sh"
        )
    style.use()
    draw(variant, lines, tables.stem(variant).replace(table, script_name(name)), args.out)
    return 0


def script_name(module: str) -> str:
    """accuracy_tokens -> accuracy-tokens."""
    return module.replace("_", "-")
