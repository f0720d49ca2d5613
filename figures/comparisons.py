"""The paired comparisons behind docs/findings.md, as configs/comparisons.yaml lists them.

    python -m figures.comparisons [--table pretrained] [--model M] [--protocol P] [--runs results/runs]

Needs the single answers of the runs (results/runs), which are not committed; writes results/comparisons/<variant>.csv
and .md, which are.  A run whose answers are gone may be done again: its answers count for the committed row when all
metrics come out the same.  Lines of earlier calls whose rows are still the ones in force, and whose answers are not here,
stay as they are.  Every pair gets a paired bootstrap interval and McNemar's exact test; p-values over all questions are
also corrected for the number of comparisons (Holm).
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
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
DIGITS = 6  # of a p-value
PLACES = 6  # of all other numbers


def entry_of(words: str, tokens: int) -> Entry:
    """ "visiondrop merge=off" at a budget."""
    method, *options = words.split()
    return Entry(method, words, tokens, options_of(options))


def row_of(table: pd.DataFrame, variant: Variant, model: str, entry: Entry, column: Column) -> pd.Series | None:
    """The row in force of an entry, or None where it was not run."""
    found, _ = cells.pick(table, variant, model, entry, column)
    found = found[[o.get("seed", 0) == entry.options.get("seed", 0) for o in found["options"]]]
    return None if found.empty else found.iloc[-1]


class Answers:
    """The single answers below a folder of runs, found by the row that they belong to."""

    SAME = ("benchmark", "protocol", "model_fingerprint", "questions", "method", "options", "metrics")

    def __init__(self, runs: Path):
        self.runs, self.again = runs, defaultdict(list)
        for file in sorted(runs.glob("*/row.json")):
            if (file.parent / "samples.jsonl").is_file():
                self.again[self._key(json.loads(file.read_text(encoding="utf-8")))].append(file.parent)

    def _key(self, row: dict[str, Any] | pd.Series) -> str:
        tokens = None if pd.isna(row["tokens"]) else float(row["tokens"])  # a column with gaps holds floats
        return json.dumps([tokens, *(row[name] for name in self.SAME)], sort_keys=True)

    def of(self, row: pd.Series) -> Path | None:
        """The run's own folder, else that of a run done again with the same metrics, else None."""
        if (self.runs / row["folder"] / "samples.jsonl").is_file():
            return self.runs / row["folder"]
        return next(iter(self.again[self._key(row)]), None)


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


def lines_of(rows: list[pd.Series], folders: list[Path], kinds: list[str]) -> Iterator[dict[str, Any]]:
    """The measured part of a pair's lines: all questions, then each kind."""
    for metric in [None, *kinds]:
        found = compare.compare(*folders, metric)
        yield {
            "questions": metric or "all",
            "n": found["n"],
            "score_a": found["a"],
            "score_b": found["b"],
            "difference": found["difference"],
            "low": found["interval"][0],
            "high": found["interval"][1],
            "p": float(f"{found['p']:.{DIGITS}g}") if "p" in found else None,  # as it is read back
            "row_a": rows[0]["checksum"],
            "row_b": rows[1]["checksum"],
        }


def kept(earlier: pd.DataFrame, rows: list[pd.Series], benchmark: str) -> list[dict[str, Any]]:
    """The measured part of the lines that an earlier call wrote about the same two rows."""
    if earlier.empty:
        return []
    same = (earlier["row_a"] == rows[0]["checksum"]) & (earlier["row_b"] == rows[1]["checksum"])
    found = earlier[same & (earlier["benchmark"] == benchmark)].drop_duplicates("questions")
    return found.drop(columns=["claim", "a", "b", "tokens", "benchmark", "p_holm"]).to_dict("records")


def compute(
    variant: Variant, model: str, table: pd.DataFrame, runs: Path, earlier: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One line per pair, budget, benchmark and kind of question; `earlier`: the frame of an earlier call."""
    raw = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    single = variant.kind == "testbed"
    kinds = [c.metric for c in variant.columns if c.metric] if single else []
    names = [variant.columns[0].benchmark] if single else raw["benchmarks"]
    answers, out = Answers(runs), []
    for claim, a, b, tokens in tqdm(pairs(raw, variant.name), desc="comparisons"):
        for benchmark in names:
            column = Column(benchmark, benchmark)
            rows = [row_of(table, variant, model, entry_of(w, tokens), column) for w in (a, b)]
            if any(row is None for row in rows):
                continue
            folders = [answers.of(row) for row in rows]
            if None in folders:
                lines = kept(earlier if earlier is not None else pd.DataFrame(), rows, benchmark)
            else:
                lines = lines_of(rows, folders, kinds)
            head = {"claim": claim, "a": a, "b": b, "tokens": tokens, "benchmark": benchmark}
            out += [head | line for line in lines]
    if not out:
        raise EvaluationError(
            f"there are no two runs of {model} to compare below {runs}: run bash scripts/reproduce.sh first"
        )
    # Rounded as they are read back, so that both files and a later call say the same.
    frame = pd.DataFrame(out).round(dict.fromkeys(("score_a", "score_b", "difference", "low", "high"), PLACES))
    frame["p_holm"] = holm(frame["p"].astype(float).where(frame["questions"] == "all"))
    return frame


def written(frame: pd.DataFrame) -> str:
    """CSV text; p-values to six digits, so that small ones do not become 0."""
    small = {
        name: [f"{p:.{DIGITS}g}" if pd.notna(p) else "" for p in frame[name].astype(float)] for name in ("p", "p_holm")
    }
    return frame.assign(**small).to_csv(index=False, lineterminator="\n")


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
    parser.add_argument(
        "--table", default="figure2", choices=("figure2", "pretrained", "grounded"), help="whose models and kinds"
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "results" / "runs")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    variant, model = choose.chosen(args.table, args)
    stem = variant.kind if variant.name == "figure2" else variant.name
    file = args.out / f"{stem}.csv"
    earlier = pd.read_csv(file) if file.is_file() else None
    frame = compute(variant, model, cells.load_rows(choose.result_files(args.results)), args.runs, earlier)
    render.save({".csv": written(frame), ".md": markdown(frame, model)}, args.out, stem)
    return 0


if __name__ == "__main__":
    sys.exit(main())
