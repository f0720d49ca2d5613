"""Fills the numbers of the video sibling's model card and draws its learning curves, from committed rows only.

    python -m eval.testbed.video.card            # the marked blocks of checkpoints/testbed-video/README.md, curves.png
    python -m eval.testbed.video.card --check    # exits with 1 when the card does not say what the rows say

Rows: results/testbed-video.jsonl (eval.run), results/testbed-video-training/paired.jsonl (eval.compare --json) and
log.jsonl (the training log).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval import rows as result_rows
from eval.testbed.card import draw_curves, fill, read_rows, training_block
from eval.testbed.measure import wilson
from eval.testbed.video.questions import KINDS
from eval.testbed.video.sets import SETS, chance_levels
from visiondrop.errors import VisionDropError

ROOT = Path(__file__).parents[3]
CARD = ROOT / "checkpoints" / "testbed-video" / "README.md"
ROWS = ROOT / "results" / "testbed-video.jsonl"
RESULTS = ROOT / "results" / "testbed-video-training"
LABELS = ("patch_color", "patch_shape", "patch_role")


def test_rows() -> list[dict]:
    """Rows of the test set, in the order in which they were measured."""
    return [row for row in result_rows.load(ROWS, strict=True)[0] if row["benchmark"] == "testbed_video"]


def name_of(row: dict) -> str:
    """The condition of a row: method, budget, options."""
    options = " ".join(f"{key}={value}" for key, value in row["options"].items())
    return " ".join(str(part) for part in (row["method"], row["tokens"] or "", options) if part != "")


def accuracy_block(rows: list[dict]) -> str:
    """Accuracy per kind with all visual tokens, with chance."""
    whole = next((row for row in rows if row["method"] == "none"), None)
    if whole is None:
        raise VisionDropError(f"{ROWS} holds no row of method none: run python -m eval.run testbed_video first.")
    chance, each = chance_levels("test"), SETS["test"].questions // len(KINDS)
    lines = ["| kind | n | accuracy % | 95 % interval | chance |", "|---|---|---|---|---|"]
    for kind in KINDS:
        share = whole["metrics"][kind]
        low, high = (100 * end for end in wilson(round(share * each), each))
        lines.append(f"| {kind} | {each} | {100 * share:.1f} | {low:.1f} to {high:.1f} | {100 * chance[kind]:.1f} |")
    low, high = whole["interval"]
    mean = 100 * sum(chance.values()) / len(chance)
    lines.append(f"| all | {whole['n']} | {whole['score']:.1f} | {low:.1f} to {high:.1f} | {mean:.1f} |")
    return "\n".join([*lines, "", _source(whole)])


def methods_block(rows: list[dict], paired: list[dict]) -> str:
    """Accuracy per kind under every condition that was run, and the paired difference to all tokens."""
    gaps = {pair["rows"][0]: pair for pair in paired if pair["labels"][1] == "none"}
    lines = ["| condition | " + " | ".join(KINDS) + " | all | minus all tokens (95 %) | seconds |"]
    lines.append("|---|" + "---|" * (len(KINDS) + 3))
    for row in rows:
        kinds = " | ".join(f"{100 * row['metrics'][kind]:.1f}" for kind in KINDS)
        gap, pair = "", gaps.get(row["checksum"])
        if pair is not None:
            gap = f"{pair['difference']:+.1f} [{pair['interval'][0]:+.1f}, {pair['interval'][1]:+.1f}]"
        lines.append(f"| {name_of(row)} | {kinds} | {row['score']:.1f} | {gap} | {row['duration']:.0f} |")
    return "\n".join([*lines, "", _source(rows[0])])


def _source(row: dict) -> str:
    return (
        f"n = {row['n']}, set {row['task']}, checkpoint {row['model_fingerprint']}, {row['dtype']} on {row['device']}, "
        f"commit {row['commit'][:7]}, {row['date'][:10]}."
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Fill the video testbed's model card from committed rows.")
    parser.add_argument("--check", action="store_true", help="change nothing, fail when the card is out of date")
    args = parser.parse_args(argv)
    try:
        rows, log = test_rows(), read_rows(RESULTS / "log.jsonl")
        paired = read_rows(RESULTS / "paired.jsonl")
        blocks = {"accuracy": accuracy_block(rows), "methods": methods_block(rows, paired)}
        blocks["training"] = training_block(log, (*KINDS, *LABELS))
        card = CARD.read_text()
        filled = fill(card, blocks)
        if args.check:
            print("up to date" if filled == card else "the card differs from the rows: run eval.testbed.video.card")
            return int(filled != card)
        CARD.write_text(filled)
        draw_curves(log, RESULTS / "curves.png", KINDS, LABELS, 2056)
    except (VisionDropError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
