"""Fills the numbers of the model card and draws the learning curves, from committed rows only.

    python -m testbed.cards.card            # rewrites the marked blocks of checkpoints/testbed/README.md and curves.png
    python -m testbed.cards.card --check    # exits with 1 when the card does not say what the rows say

Rows: results/testbed-training/measure.jsonl (testbed.cards.measure) and log.jsonl (the training log), and the same two
below default/ for a run of the default schedule from scratch in one go. A block of the card is what stands between
`<!-- NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from testbed.cards.measure import paired_difference, wilson
from testbed.data.questions import KINDS
from testbed.data.sets import chance_levels
from visiondrop.errors import VisionDropError

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / "checkpoints" / "testbed" / "README.md"
RESULTS = ROOT / "results" / "testbed-training"
GOALS = {"exist": 97, "color": 97, "shape": 97, "count": 70, "digit": 85, "hop2": 75}
PATCH_LABELS = ("patch_color", "patch_shape", "patch_digit")
CONDITIONS = {
    "full": "all 576 visual tokens",
    "objects": "only patches that show an object (about 60)",
    "needed": "only patches of the objects in question",
    "cls-64": "64 patches of largest [CLS] attention",
    "random-64": "64 random patches",
    "one": "one random patch",
}


def read_rows(path: Path) -> list[dict]:
    """All rows of a JSON-lines file."""
    if not path.is_file():
        raise VisionDropError(f"{path} is missing: measure first (python -m testbed.cards.measure --help).")
    return [json.loads(line) for line in path.read_text().splitlines()]


def pick(rows: list[dict], name: str, condition: str, layer: int = 0) -> dict | None:
    """The row of a set and condition that was measured last on most questions, None when there is none."""
    fitting = [r for r in rows if (r["set"], r["condition"], r["after_layer"]) == (name, condition, layer)]
    return max(fitting, key=lambda row: (row["n"], row["date"])) if fitting else None


def accuracy_block(rows: list[dict]) -> str:
    """Accuracy per kind on the test set, with goals and chance."""
    full, one = pick(rows, "test", "full"), pick(rows, "test", "one")
    if full is None or one is None:
        raise VisionDropError(
            "the test set was not measured: run testbed.cards.measure --set test --conditions full one."
        )
    chance = chance_levels("test")
    lines = [
        "| kind | n | accuracy % | 95 % interval | one visual token | chance | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        own, blind = full["kinds"][kind], one["kinds"][kind]["accuracy"]
        low, high = own["interval"]
        goal = f"{GOALS[kind]}" if kind in GOALS else "-"
        lines.append(
            f"| {kind} | {own['n']} | {100 * own['accuracy']:.1f} | {100 * low:.1f} to {100 * high:.1f} "
            f"| {100 * blind:.1f} | {100 * chance[kind]:.1f} | {goal} |"
        )
    lines.append(_mean_line("mean of the kinds with a goal", tuple(GOALS), full, one, chance, goal="87"))
    lines.append(_mean_line("mean of all kinds", KINDS, full, one, chance, goal="-"))
    return "\n".join([*lines, "", _source(full)])


def _mean_line(title: str, kinds: tuple[str, ...], full: dict, one: dict, chance: dict[str, float], goal: str) -> str:
    """Table line of the plain mean over kinds (of equally many questions), with the interval of the pooled share."""
    total = sum(full["kinds"][kind]["n"] for kind in kinds)
    hits = sum(round(full["kinds"][kind]["accuracy"] * full["kinds"][kind]["n"]) for kind in kinds)
    low, high = wilson(hits, total)
    mean, blind = (100 * sum(row["kinds"][kind]["accuracy"] for kind in kinds) / len(kinds) for row in (full, one))
    luck = 100 * sum(chance[kind] for kind in kinds) / len(kinds)
    interval = f"{100 * low:.1f} to {100 * high:.1f}"
    return f"| {title} | {total} | {mean:.1f} | {interval} | {blind:.1f} | {luck:.1f} | {goal} |"


def tokens_block(rows: list[dict]) -> str:
    """Which tokens are needed, on the validation set, with differences paired by question."""
    full = pick(rows, "validation", "full")
    if full is None:
        raise VisionDropError("the validation set was not measured: run testbed.cards.measure --set validation first.")
    lines = ["| visual tokens before the decoder | " + " | ".join(KINDS) + " | all | minus full (95 %) |"]
    lines.append("|---|" + "---|" * (len(KINDS) + 2))
    for condition, meaning in CONDITIONS.items():
        row = pick(rows, "validation", condition)
        if row is not None and row["images"] == full["images"]:
            middle, low, high = paired_difference(row, full)
            gap = "" if condition == "full" else f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"
            lines.append(f"| {meaning} | {_kinds(row)} | {gap} |")
    return "\n".join([*lines, "", _source(full)])


def depth_block(rows: list[dict]) -> str:
    """Accuracy when one random visual token is left after layer l, validation set."""
    found = {layer: row for layer in range(1, 12) if (row := pick(rows, "validation", "one", layer)) is not None}
    if not found:
        raise VisionDropError(
            "there is no depth profile: run testbed.cards.measure --conditions full depth --images 160."
        )
    lines = ["| one token after layer | " + " | ".join(KINDS) + " | all |", "|---|" + "---|" * (len(KINDS) + 1)]
    lines += [f"| {layer} | {_kinds(row)} |" for layer, row in found.items()]
    first = next(iter(found.values()))
    same = [r for r in rows if r["condition"] == "full" and r["images"] == first["images"]]
    lines += [f"| all tokens, same questions | {_kinds(row)} |" for row in same[-1:]]
    return "\n".join([*lines, "", _source(first)])


def training_block(log: list[dict], names: tuple[str, ...] = (*KINDS, *PATCH_LABELS)) -> str:
    """Steps, pictures and minutes of each stage, and the training-stream accuracy `names` at its end."""
    lines = ["| stage | steps | pictures | minutes | at its end, on the training stream |", "|---|---|---|---|---|"]
    pictures = seconds = 0.0
    for number in sorted({row["stage_number"] for row in log}):
        last = [row for row in log if row["stage_number"] == number and row["what"] == "train"][-1]
        reached = ", ".join(f"{name} {last[name]:.2f}" for name in names if name in last)
        lines.append(
            f"| {last['stage']} | {last['step']} | {last['images'] - pictures:.0f} "
            f"| {(last['seconds'] - seconds) / 60:.0f} | {reached} |"
        )
        pictures, seconds = last["images"], last["seconds"]
    return "\n".join([*lines, "", f"Together {seconds / 60:.0f} minutes."])


def default_block(log: list[dict], rows: list[dict], committed: list[dict]) -> str:
    """The default schedule from scratch: minutes of its stages, and its model beside the committed one."""
    lines = [training_block(log), "", "| validation set | " + " | ".join(KINDS) + " | all |"]
    lines.append("|---|" + "---|" * (len(KINDS) + 1))
    chosen = {
        f"{name}, {CONDITIONS[condition]}": pick(found, "validation", condition)
        for name, found in (("this run", rows), ("committed", committed))
        for condition in ("full", "cls-64", "random-64", "one")
    }
    if None in chosen.values() or any(row["images"] != rows[0]["images"] for row in chosen.values()):
        raise VisionDropError(
            "both models need rows of the same validation pictures: run testbed.cards.measure on each with equal --images "
            "and --conditions full cls-64 random-64 one."
        )
    lines += [f"| {title} | {_kinds(row)} |" for title, row in chosen.items()]
    return "\n".join([*lines, "", f"This run: {_source(pick(rows, 'validation', 'full'))}"])


def _kinds(row: dict) -> str:
    """Cells of every kind and of all questions."""
    return " | ".join(cell(found) if (found := row["kinds"].get(kind)) else "-" for kind in KINDS) + f" | {cell(row)}"


def cell(found: dict) -> str:
    """An accuracy with its 95 % Wilson interval, in per cent."""
    low, high = found["interval"]
    return f"{100 * found['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _source(row: dict) -> str:
    return (
        f"n = {row['n']}, set {row['set']} (data version {row['data_version']}), checkpoint {row['checkpoint']}, "
        f"{row['dtype']} on {row['device']}, commit {row['commit'][:7]}, {row['date'][:10]}."
    )


def fill(card: str, blocks: dict[str, str]) -> str:
    """The card with its marked blocks replaced."""
    for name, text in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.S)
        if not pattern.search(card):
            raise VisionDropError(
                f"the card has no block {name}: put <!-- {name} --> and <!-- end {name} --> where it belongs."
            )
        card = pattern.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", card)
    return card


def draw_curves(
    log: list[dict],
    path: Path,
    kinds: tuple[str, ...] = KINDS,
    labels: tuple[str, ...] = PATCH_LABELS,
    tokens: int = 576,
) -> None:
    """Accuracy of every kind and of the patch labels against minutes of training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    panels = (
        ("train", (*kinds, *labels), "training stream"),
        ("validation", kinds, f"validation, {tokens:,} tokens"),
    )
    for axis, (what, names, title) in zip(axes, panels, strict=True):
        for name in names:
            points = [(row["seconds"] / 60, row[name]) for row in log if row["what"] == what and name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, linestyle=":" if name.startswith("patch") else "-")
        axis.set(title=title, xlabel="minutes of training", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of right answers")
    axes[0].legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Fill the testbed's model card from committed rows.")
    parser.add_argument("--check", action="store_true", help="change nothing, fail when the card is out of date")
    args = parser.parse_args(argv)
    try:
        rows, log = read_rows(RESULTS / "measure.jsonl"), read_rows(RESULTS / "log.jsonl")
        blocks = {"accuracy": accuracy_block(rows), "tokens": tokens_block(rows)}
        blocks |= {"depth": depth_block(rows), "training": training_block(log)}
        scratch = [read_rows(RESULTS / "default" / name) for name in ("log.jsonl", "measure.jsonl")]
        blocks["default"] = default_block(*scratch, rows)
        card = CARD.read_text()
        filled = fill(card, blocks)
        if args.check:
            print(
                "up to date" if filled == card else "the card differs from the rows: run python -m testbed.cards.card"
            )
            return int(filled != card)
        CARD.write_text(filled)
        draw_curves(log, RESULTS / "curves.png")
    except (VisionDropError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
