"""docs/findings.md says what the committed comparisons say, and the tables of docs/results.md are those of results/tables."""

import json
import re

import pandas as pd

from eval.files import ROOT
from figures.reproduce import readme

RESULTS = ROOT / "results"
GAP = re.compile(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]")


def measured() -> set[str]:
    """Every paired difference with its interval, worded as in the documents."""
    frame = pd.concat(map(pd.read_csv, sorted((RESULTS / "comparisons").glob("*.csv"))))
    found = {f"{r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}]" for r in frame.itertuples()}
    for file in RESULTS.glob("testbed-*-training/paired.jsonl"):
        for pair in map(json.loads, file.read_text().splitlines()):
            low, high = pair["interval"]
            found.add(f"{pair['difference']:+.2f} [{low:+.2f}, {high:+.2f}]")
    return found


def test_every_difference_in_the_findings_was_measured():
    told = GAP.findall((ROOT / "docs" / "findings.md").read_text(encoding="utf-8"))
    assert len(told) >= 10
    assert set(told) <= measured()


def test_the_speed_page_shows_the_newest_goals():
    lines = (RESULTS / "efficiency" / "cpu-goals.jsonl").read_text().splitlines()
    newest = {row["name"]: row for row in sorted(map(json.loads, lines), key=lambda row: row["date"])}
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    told = []
    for name in ("prefill", "next", "masked"):
        for what, digits in (("ratio", 2), ("share_of_free", 3)):
            middle, low, high = (f"{newest[name][what][end]:.{digits}f}" for end in ("median", "min", "max"))
            told.append(f"| {middle} ({low} – {high}) | {newest[name]['goal'][what]} |")
    told.append(f"| {100 * newest['selection']['share']['median']:.1f} % | 2 % |")
    told.append("| {:.3f}, {:.3f} |".format(*(newest["decode"][what]["median"] for what in ("native", "hooks"))))
    asked = newest["questions"]
    told.append(f"| {asked['over_base']['median']:.1f}, {asked['over_base_reuse']['median']:.2f} | 12, 1 |")
    assert [words for words in told if words not in page] == []


def test_the_results_page_shows_the_committed_tables():
    assert readme.main(["--check"]) == 0
