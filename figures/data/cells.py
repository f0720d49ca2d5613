"""From result rows to table cells: which row fills a cell, what it says, and why a cell stays empty.

A row fills a cell when model, method, budget and options are the cell's, and when it is a whole run of the protocol's
own task and split, on the layout the table is about, by the checkpoint and the questions of the unpruned row.  Anything
else leaves the cell empty, with the reason; a published number never stands in for ours.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval import benchmarks
from eval.errors import EvaluationError
from eval.results import rows, unpruned
from eval.scoring.scores import wilson
from figures.data import settings
from figures.data.settings import Column, Entry, Variant

NOT_RUN = "not run"
WHOLE = 1e-6  # a share times its n is a whole number of questions up to this
SEEDS = ("seed",)  # options in which rows of one entry may differ: their mean is the cell


def load_rows(files: list[Path]) -> pd.DataFrame:
    """All rows of the given files; a damaged line is refused with its number.

    Raises:
        EvaluationError: a file is missing, damaged, or was edited by hand.
    """
    found = [row for file in files for row in rows.load(file, strict=True)[0]]
    table = pd.DataFrame(found, columns=list(rows.FIELDS))
    table["settings"] = [_canonical(o) for o in table["options"]]
    return table.sort_values("date", kind="stable")


def _canonical(options: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in options.items() if k not in SEEDS}, sort_keys=True)


def checkpoint_of(table: pd.DataFrame, model: str) -> str | None:
    """Fingerprint of the checkpoint that wrote this model's newest row; older checkpoints of that name are left out."""
    mine = table[table["model"] == model]
    return None if mine.empty else mine.iloc[-1]["model_fingerprint"]


def spec_of(benchmark: str, protocol: str) -> benchmarks.Benchmark | None:
    """What the protocol asks of a benchmark, or None where it is not in configs/benchmarks.yaml."""
    return benchmarks.load().get(benchmark, {}).get(protocol)


def with_new_methods(variant: Variant, model: str, table: pd.DataFrame) -> Variant:
    """The variant with an entry more for every method that is not listed and has rows, without options, at its budgets.

    Only where `methods: any` asks for it: a table of all methods grows with the rows, a table of chosen arms does not.
    """
    if variant.methods != "any":
        return variant
    listed = {e.method for e in variant.entries}
    budgets = {e.tokens for e in variant.entries if not e.is_base}
    mine = table[(table["model"] == model) & table["tokens"].isin(budgets) & (table["settings"] == _canonical({}))]
    names = {c.benchmark for c in variant.columns}
    mine = mine[mine["benchmark"].isin(names) & (mine["protocol"] == variant.protocol) & ~mine["method"].isin(listed)]
    pairs = sorted({(method, int(tokens)) for method, tokens in zip(mine["method"], mine["tokens"])})
    new = [Entry(method, settings.label_of(method), tokens) for method, tokens in pairs]
    if not new:
        return variant
    return replace(variant, entries=tuple(sorted((*variant.entries, *new), key=lambda e: -e.tokens)))


def refusal(row: pd.Series, spec: benchmarks.Benchmark, variant: Variant, checkpoint: str) -> str | None:
    """Why this row cannot fill a cell, or None."""
    full = spec.rows
    checks = [
        (row["model_fingerprint"] != checkpoint, "run with another checkpoint of the same name"),
        (row["protocol"] != spec.protocol, f"only run under the {row['protocol']} protocol"),
        (row["task"] != spec.task or row["split"] != spec.split, f"run on {row['task']}, split {row['split']}"),
        (row["partial"], f"partial run (--limit {row['limit']})"),
        (bool(row["missing"]), "the data held no question for " + ", ".join(row["missing"] or [])),
        (full is not None and row["n"] != full, f"n = {row['n']} of the split's {full}"),
        (row["ledger"].get("layout") != variant.layout, f"run with layout {row['ledger'].get('layout')}"),
        (row["score"] is None or pd.isna(row["score"]), f"scored by a server ({row['server']})"),
    ]
    return next((reason for bad, reason in checks if bad), None)


def pick(table: pd.DataFrame, variant: Variant, model: str, entry: Entry, column: Column) -> tuple[pd.DataFrame, str]:
    """The rows that fill a cell (one; several where they differ in the seed), or none and the reason."""
    spec = spec_of(column.benchmark, variant.protocol)
    if spec is None:
        return table.iloc[:0], f"{column.benchmark} has no {variant.protocol} protocol here"
    budgets = [entry.tokens, None] if entry.is_base else [entry.tokens]
    right_budget = table["tokens"].isin([b for b in budgets if b is not None])
    if None in budgets:
        right_budget |= table["tokens"].isna()
    mine = table[
        (table["model"] == model)
        & (table["benchmark"] == column.benchmark)
        & (table["method"] == entry.method)
        & right_budget
        & (table["settings"] == _canonical(entry.options))
    ]
    if mine.empty:
        return mine, entry.absent or NOT_RUN
    checkpoint = checkpoint_of(table, model)
    reasons = [refusal(row, spec, variant, checkpoint) for _, row in mine.iterrows()]
    good = mine[[reason is None for reason in reasons]]
    if good.empty:
        return good, reasons[-1]
    seeds = [json.dumps({k: o[k] for k in SEEDS if k in o}) for o in good["options"]]
    return good.assign(drawn=seeds).drop_duplicates("drawn", keep="last"), ""


def value_of(row: pd.Series, column: Column) -> tuple[float, float, float, int, str]:
    """(value, low, high, n, how the interval was made) of one row; low and high are nan where there is no interval."""
    if column.metric is None:
        low, high = row["interval"] or (np.nan, np.nan)
        return float(row["score"]), low, high, int(row["n"]), row["interval_method"]
    if column.metric not in row["metrics"]:
        raise EvaluationError(f"run {row['run']} of {column.benchmark} has no metric {column.metric!r}")
    share = row["metrics"][column.metric]
    n = column.n or int(row["n"])
    if column.factor != 100:  # a share of n questions becomes per cent; other means have no binomial interval
        return column.factor * share, np.nan, np.nan, n, "none"
    hits = round(share * n)
    if abs(share * n - hits) > WHOLE:
        raise EvaluationError(
            f"run {row['run']} of {column.benchmark}: {column.metric} = {share!r} is no share of {n} questions; give the "
            "column its own n, or a factor other than 100"
        )
    low, high = wilson(hits, n)
    return 100 * share, 100 * low, 100 * high, n, f"Wilson over {n} questions"


def cell(table: pd.DataFrame, variant: Variant, model: str, entry: Entry, column: Column, base: dict[str, Any]) -> dict:
    """One cell in long form; `base` is that of the unpruned row, {} where there is none yet."""
    found, reason = pick(table, variant, model, entry, column)
    if not found.empty and "questions" in base:
        judge, judged = base["server"], spec_of(column.benchmark, variant.protocol).judged
        if (found["questions"] != base["questions"]).any():
            found, reason = found.iloc[:0], "asked other questions or prompts than the unpruned row"
        elif judged and (found["server"] != judge).any():
            found, reason = found.iloc[:0], f"judged by {found.iloc[-1]['server']}, the unpruned row by {judge}"
    out: dict[str, Any] = {
        "ours": np.nan,
        "low": np.nan,
        "high": np.nan,
        "n": None,
        "interval": "",
        "run": "",
        "note": reason,
    }
    if not found.empty:
        values = [value_of(row, column) for _, row in found.iterrows()]
        ours, low, high = (float(np.mean([v[i] for v in values])) for i in range(3))
        doubts = {unpruned.suspicion(row) for _, row in found.iterrows()} - {None}
        several = "; ".join([*([f"mean of {len(found)} seeds"] if len(found) > 1 else []), *sorted(doubts)])
        out |= {"ours": ours, "low": low, "high": high, "n": values[0][3], "interval": values[0][4], "note": several}
        out |= {"run": " ".join(found["run"]), "mean_tokens": found.iloc[-1]["ledger"]["mean"]}
        out |= {"questions": found.iloc[-1]["questions"], "server": found.iloc[-1]["server"]}
    return out


def comparable(column: Column, protocol: str) -> str | None:
    """Why our number under `protocol` cannot be set against the paper's, or None: same task, split and prompt."""
    if protocol == "paper":
        return None
    ours, theirs = spec_of(column.benchmark, protocol), spec_of(column.benchmark, "paper")
    if ours is None or theirs is None:
        return f"{column.benchmark} has no paper protocol here"
    if (ours.task, ours.split, ours.headline, ours.server) != (
        theirs.task,
        theirs.split,
        theirs.headline,
        theirs.server,
    ):
        asked = f"the {protocol} protocol asks {ours.task}, split {ours.split}"
        return f"{asked}; the paper's is {theirs.task}, split {theirs.split}"
    return None


def long_table(variant: Variant, model: str, table: pd.DataFrame) -> pd.DataFrame:
    """All cells in long form: one line per entry and column.

    Columns: tokens, method, label, options, control, column, head, group, paper, ours, low, high, delta, n, interval,
    mean_tokens, rank (1 best, 2 second of a budget), note, run.
    """
    lines = []
    told = {} if variant.published is None else dict(zip(variant.published_at, variant.published.to_dict("records")))
    for column in variant.columns:
        base = cell(table, variant, model, variant.base, column, {})
        barrier = comparable(column, variant.protocol) if variant.published is not None else None
        for number, entry in enumerate(variant.entries):
            line = cell(table, variant, model, entry, column, base)
            line |= {
                "paper": np.nan,
                "entry": number,
                "tokens": entry.tokens,
                "method": entry.method,
                "label": entry.label,
            }
            line |= {
                "options": json.dumps(entry.options, sort_keys=True) if entry.options else "",
                "control": entry.control,
            }
            line |= {"column": column.key, "head": column.head, "group": column.group}
            if number in told:
                if barrier is None:
                    line["paper"] = float(told[number][column.paper_key])
                else:
                    line["note"] = "; ".join(filter(None, [line["note"], f"no delta: {barrier}"]))
            lines.append(line)
    out = pd.DataFrame(lines).reindex(columns=[*LINE])
    out["delta"] = out["ours"] - out["paper"]
    out["rank"] = _ranks(out)
    return out.sort_values("entry", kind="stable", ignore_index=True)


LINE = (
    "entry tokens method label options control column head group paper ours low high delta n interval mean_tokens "
    "rank note run"
).split()


def _ranks(lines: pd.DataFrame) -> pd.Series:
    """1 for the best and 2 for the second of our values within a budget and column; ties share a place."""
    ranked = lines[(lines["method"] != "none") & ~lines["control"]]
    places = ranked.groupby(["tokens", "column"])["ours"].rank(ascending=False, method="min")
    return places.where(places <= 2).reindex(lines.index)


def averages(variant: Variant, lines: pd.DataFrame) -> pd.DataFrame:
    """The Avg. columns: one line per entry and group, with paper, ours, delta, rank, note and the number of cells."""
    out = []
    for group in dict.fromkeys(c.group for c in variant.columns if c.group is not None):
        mine = lines[lines["group"] == group]
        keys = [c.key for c in variant.columns if c.group == group]
        ours = mine.pivot(index="entry", columns="column", values="ours")[keys]
        base = next(i for i, e in enumerate(variant.entries) if e.is_base)
        mean = ours / ours.loc[base] * 100 if variant.average == "ratios" else ours
        told = _published_average(variant, group, lines)
        for number, entry in enumerate(variant.entries):
            present = int(mean.loc[number].notna().sum())
            note = "" if present == len(keys) else f"{present} of {len(keys)} columns: no average"
            ours_here = mean.loc[number].mean(skipna=False)
            out.append(
                {
                    "entry": number,
                    "tokens": entry.tokens,
                    "method": entry.method,
                    "label": entry.label,
                    "control": entry.control,
                    "column": f"avg:{group}" if group else "avg",
                    "group": group,
                    "head": f"Avg. {group}".strip(),
                    "paper": told[number],
                    "ours": ours_here,
                    "note": note,
                }
            )
    table = pd.DataFrame(out).reindex(columns=[*LINE])
    table["delta"] = table["ours"] - table["paper"]
    table["rank"] = _ranks(table)
    return table


def _published_average(variant: Variant, group: str, lines: pd.DataFrame) -> list[float]:
    """The paper's printed average of every entry, where each cell it averages can be compared with ours."""
    nothing = [np.nan] * len(variant.entries)
    if variant.published is None:
        return nothing
    printed = variant.published["avg" + (f"_{group}" if group else "")].astype(float)
    shown = lines[(lines["group"] == group) & lines["entry"].isin(variant.published_at)]
    if shown["paper"].isna().any():
        return nothing
    at = dict(zip(variant.published_at, printed))
    return [at.get(number, np.nan) for number in range(len(variant.entries))]
