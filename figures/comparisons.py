"""The paired comparisons behind docs/findings.md, as configs/comparisons.yaml lists them.

    python -m figures.comparisons [--table pretrained] [--model M] [--protocol P] [--runs results/runs]

Needs the single answers of the runs (results/runs), which are not committed; writes results/comparisons/<variant>.csv
and .md, which are.  Every pair gets a paired bootstrap interval and McNemar's exact test; p-values over all questions
are also corrected for the number of comparisons (Holm).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from statsmodels.stats.multitest import multipletests
from tqdm import tqdm

from eval import compare
from eval.errors import EvaluationError
from eval.files import ROOT
from figures.data import cells, choose
from figures.data.settings import Column, Entry, Variant, options_of
from figures.look import render
from visiondrop.errors import command_line

FILE = ROOT / "configs" / "comparisons.yaml"
OUT = ROOT / "results" / "comparisons"


def entry_of(words: str, tokens: int) -> Entry:
    """ "visiondrop merge=off" at a budget."""
    method, *options = words.split()
    return Entry(method, words, tokens, options_of(options))


def folder_of(
    table: pd.DataFrame, variant: Variant, model: str, entry: Entry, column: Column, runs: Path
) -> Path | None:
    """The run behind an entry, or None where it was not run or its answers are not here."""
    found, _ = cells.pick(table, variant, model, entry, column)
    found = found[[o.get("seed", 0) == entry.options.get("seed", 0) for o in found["options"]]]
    if found.empty or not (runs / found.iloc[-1]["folder"] / "samples.jsonl").is_file():
        return None
    return runs / found.iloc[-1]["folder"]


def pairs(raw: dict[str, Any], table: str) -> list[tuple[str, str, str, int]]:
    """(claim, a, b, tokens) of all comparisons of an entry of configs/tables.yaml."""
    claims = [c for c in raw["claims"] if c.get("only", table) == table]
    return [(c["claim"], p["a"], p["b"], t) for c in claims for p in c["pairs"] for t in p["tokens"]]


def holm(values: pd.Series) -> pd.Series:
    """Holm's step-down correction of p-values; missing ones stay missing."""
    known = values.dropna()
    if known.empty:
        return values.astype(float)
    return pd.Series(multipletests(known, method="holm")[1], index=known.index).reindex(values.index)


def compute(variant: Variant, model: str, table: pd.DataFrame, runs: Path) -> pd.DataFrame:
    """One line per pair, budget, benchmark and kind of question."""
    raw = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    single = variant.kind == "testbed"
    kinds = [c.metric for c in variant.columns if c.metric] if single else []
    names = [variant.columns[0].benchmark] if single else raw["benchmarks"]
    out = []
    for claim, a, b, tokens in tqdm(pairs(raw, variant.name), desc="comparisons"):
        for benchmark in names:
            column = Column(benchmark, benchmark)
            folders = [folder_of(table, variant, model, entry_of(w, tokens), column, runs) for w in (a, b)]
            if None in folders:
                continue
            for metric in [None, *kinds]:
                found = compare.compare(*folders, metric)
                line = {
                    "claim": claim,
                    "a": a,
                    "b": b,
                    "tokens": tokens,
                    "benchmark": benchmark,
                    "questions": metric or "all",
                }
                line |= {
                    "n": found["n"],
                    "score_a": found["a"],
                    "score_b": found["b"],
                    "difference": found["difference"],
                }
                line |= {"low": found["interval"][0], "high": found["interval"][1], "p": found.get("p")}
                out.append(line | {"row_a": found["rows"][0], "row_b": found["rows"][1]})
    if not out:
        raise EvaluationError(
            f"there are no two runs of {model} to compare below {runs}: run bash scripts/reproduce.sh first"
        )
    frame = pd.DataFrame(out)
    frame["p_holm"] = holm(frame["p"].astype(float).where(frame["questions"] == "all"))
    return frame


def markdown(frame: pd.DataFrame, model: str) -> str:
    """A table per claim, all questions; kinds of questions are in the CSV."""
    count = int((frame["questions"] == "all").sum())
    lines = [
        f"# Paired comparisons, {model}",
        "",
        f"{count} comparisons over all questions; brackets are paired bootstrap 95 % intervals of A - B over images;",
    ]
    lines.append("p is McNemar's exact test, p (Holm) corrects for all of them. Kinds of questions are in the CSV.")
    for claim, block in frame[frame["questions"] == "all"].groupby("claim", sort=False):
        body = []
        for row in block.itertuples():
            p = ["—" if pd.isna(x) else f"{x:.2g}" for x in (row.p, row.p_holm)]
            gap = f"{row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
            scores = [f"{row.score_a:.2f}", f"{row.score_b:.2f}"]
            body.append([row.a, row.b, str(row.tokens), row.benchmark, str(row.n), *scores, gap, *p])
        head = ["A", "B", "tokens", "benchmark", "n", "A", "B", "A - B", "p", "p (Holm)"]
        lines += ["", f"## {claim}", "", *render.markdown_table(head, body)]
    return "\n".join(lines) + "\n"


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m figures.comparisons", description=__doc__.split("\n")[0])
    choose.add_arguments(parser)
    parser.add_argument("--table", default="figure2", choices=("figure2", "pretrained"), help="whose models and kinds")
    parser.add_argument("--runs", type=Path, default=ROOT / "results" / "runs")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    variant, model = choose.chosen(args.table, args)
    frame = compute(variant, model, cells.load_rows(choose.result_files(args.results)), args.runs)
    csv = frame.round(6).to_csv(index=False, lineterminator="\n")
    render.save(
        {".csv": csv, ".md": markdown(frame, model)},
        args.out,
        variant.kind if variant.name == "figure2" else variant.name,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
