"""The number blocks of a sibling's model card and its learning curves, from committed rows only.

Rows: results/<name>.jsonl (eval.run), results/<name>-training/paired.jsonl (what eval.compare says of the runs; made by
`--pairs` from their answers, which are not committed) and log.jsonl (the training log). A block of
checkpoints/<name>/README.md is what stands between `<!-- NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from eval.compare import compare, label
from eval.results import rows as result_rows
from testbed.cards.card import cell, draw_curves, fill, read_rows, training_block
from testbed.cards.measure import wilson
from visiondrop.errors import VisionDropError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SiblingCard:
    """What the card of a sibling is about.

    name: of its checkpoint's folder; benchmark: its test set; kinds: of question, equally many of each; labels:
    patch labels in the training log; tokens: visual tokens unpruned; chance: guessing's accuracy by kind, of a set.
    """

    name: str
    benchmark: str
    kinds: tuple[str, ...]
    labels: tuple[str, ...]
    tokens: int
    chance: Callable[[str], dict[str, float]]

    @property
    def card(self) -> Path:
        """The model card."""
        return ROOT / "checkpoints" / self.name / "README.md"

    @property
    def training(self) -> Path:
        """Folder of the training log, the curves and the paired comparisons."""
        return ROOT / "results" / f"{self.name}-training"

    def rows(self) -> list[dict]:
        """Rows of the test set, in the order in which they were measured."""
        found = result_rows.load(ROOT / "results" / f"{self.name}.jsonl", strict=True)[0]
        return [row for row in found if row["benchmark"] == self.benchmark]

    def blocks(self) -> dict[str, str]:
        """Every block of the card."""
        rows, paired = self.rows(), read_rows(self.training / "paired.jsonl")
        return {
            "accuracy": self.accuracy_block(rows),
            "methods": self.methods_block(rows, paired),
            "training": training_block(read_rows(self.training / "log.jsonl"), (*self.kinds, *self.labels)),
        }

    def accuracy_block(self, rows: list[dict]) -> str:
        """Accuracy per kind with all visual tokens, with chance."""
        whole = next((row for row in rows if row["method"] == "none"), None)
        if whole is None:
            raise VisionDropError(
                f"results/{self.name}.jsonl holds no row of method none: run python -m eval.run {self.benchmark} first."
            )
        chance, each = self.chance("test"), whole["n"] // len(self.kinds)
        lines = ["| kind | n | accuracy % | 95 % interval | chance |", "|---|---|---|---|---|"]
        for kind in self.kinds:
            found = self.accuracy(whole, kind)
            share, (low, high) = 100 * found["accuracy"], (100 * end for end in found["interval"])
            lines.append(f"| {kind} | {each} | {share:.1f} | {low:.1f} to {high:.1f} | {100 * chance[kind]:.1f} |")
        low, high = whole["interval"]
        mean = 100 * sum(chance.values()) / len(chance)
        lines.append(f"| all | {whole['n']} | {whole['score']:.1f} | {low:.1f} to {high:.1f} | {mean:.1f} |")
        return "\n".join([*lines, "", source_of(whole)])

    def methods_block(self, rows: list[dict], paired: list[dict]) -> str:
        """Accuracy per kind under every condition that was run, and the paired difference to all tokens."""
        gaps = {pair["rows"][0]: pair for pair in paired if pair["labels"][1] == "none"}
        lines = ["| condition | " + " | ".join(self.kinds) + " | all | minus all tokens (95 %) | seconds |"]
        lines.append("|---|" + "---|" * (len(self.kinds) + 3))
        for row in rows:
            kinds = " | ".join(cell(self.accuracy(row, kind)) for kind in self.kinds)
            whole = "{:.1f} [{:.1f}, {:.1f}]".format(row["score"], *row["interval"])
            gap, pair = "", gaps.get(row["checksum"])
            if pair is not None:
                gap = f"{pair['difference']:+.1f} [{pair['interval'][0]:+.1f}, {pair['interval'][1]:+.1f}]"
            lines.append(f"| {label(row)} | {kinds} | {whole} | {gap} | {row['duration']:.0f} |")
        return "\n".join([*lines, "", source_of(rows[0])])

    def accuracy(self, row: dict, kind: str) -> dict:
        """Share of right answers of a kind and its interval; kinds have equally many questions."""
        each, share = row["n"] // len(self.kinds), row["metrics"][kind]
        return {"accuracy": share, "interval": wilson(round(share * each), each)}

    def compared(self, runs: Path) -> list[dict]:
        """`eval.compare` of every run with none, and of VisionDrop with the others at its budget.

        Args:
            runs: folder of the run folders that the rows name.
        """
        rows = [row for row in self.rows() if not row["partial"]]
        none = next(row for row in rows if row["method"] == "none")
        pairs = [(row, none) for row in rows if row is not none]
        for a in rows:
            if a["method"] == "visiondrop" and not a["options"]:
                pairs += [(a, b) for b in rows if b["tokens"] == a["tokens"] and rival(b)]
        return [compare(runs / a["folder"], runs / b["folder"]) for a, b in tqdm(pairs, desc="pairs")]

    def main(self, argv: list[str] | None = None) -> int:
        """Command line; returns the exit status."""
        parser = argparse.ArgumentParser(description=f"Fill the model card of {self.name} from committed rows.")
        parser.add_argument("--check", action="store_true", help="change nothing, fail when the card is out of date")
        parser.add_argument("--pairs", type=Path, metavar="RUNS", help="first compare the runs in this folder again")
        args = parser.parse_args(argv)
        try:
            if args.pairs is not None:
                lines = [json.dumps(pair) + "\n" for pair in self.compared(args.pairs)]
                (self.training / "paired.jsonl").write_text("".join(lines))
            card = self.card.read_text()
            filled = fill(card, self.blocks())
            if args.check:
                print("up to date" if filled == card else "the card differs from the rows: run this without --check")
                return int(filled != card)
            self.card.write_text(filled)
            log = read_rows(self.training / "log.jsonl")
            draw_curves(log, self.training / "curves.png", self.kinds, self.labels, self.tokens)
        except (VisionDropError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0


def rival(row: dict) -> bool:
    """Whether VisionDrop is compared with a run: every other method and control, of several seeds the first."""
    return row["method"] != "visiondrop" and row["options"].get("seed", 0) == 0


def source_of(row: dict) -> str:
    """Where and on what a row was measured, in one sentence."""
    return (
        f"n = {row['n']}, set {row['task']}, checkpoint {row['model_fingerprint']}, {row['dtype']} on {row['device']}, "
        f"commit {row['commit'][:7]}, {row['date'][:10]}."
    )
