"""What the testbed model can do, and at which depth it still needs its visual tokens.

    python -m testbed.cards.measure checkpoints/testbed --set validation --out results/testbed-training/measure.jsonl
    python -m testbed.cards.measure checkpoints/testbed --set validation --images 160 --conditions depth --out ...

Conditions: "full" (all 576 visual tokens); "one" (one random token), "random-64", "cls-64" (largest [CLS] attention),
"objects" (patches that show an object) and "needed" (patches of the objects in question) before the decoder; "depth":
one random token after layer l = 1 .. 11. Dropped tokens leave gaps in the positions. One JSON row per condition:
right and wrong per question (for paired intervals), accuracy per kind with 95 % Wilson intervals, and where it was
measured. The answers come from the trainer's own forward pass, greedy and one word long; tests/testbed/test_export.py
proves it equal to the stock classes. Results of pruning methods come from `python -m eval.run testbed`, not from
here.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from eval.scoring import scores
from testbed.data.questions import KINDS
from testbed.data.scenes import FULL_GRID, VERSION, Scene
from testbed.data.sets import SETS, draw_set
from testbed.data.tokenizer import PREFIX
from testbed.training.base import COURSE
from testbed.training.batches import Batch, normalise
from testbed.training.export import load_weights
from testbed.training.model import Layout, Sizes, Weights, decode_dropping, encode
from visiondrop.errors import VisionDropError

BEFORE_DECODER = ("full", "one", "random-64", "cls-64", "objects", "needed")
_VISUAL = FULL_GRID * FULL_GRID


def conditions_of(names: list[str], layers: int) -> list[tuple[str, int]]:
    """(name, layer after which tokens are dropped) for names of the command line; "depth" stands for its layers."""
    found = []
    for name in names:
        if name == "depth":
            found += [("one", layer) for layer in range(1, layers)]
        elif name in BEFORE_DECODER:
            found.append((name, 0))
        else:
            raise VisionDropError(f"unknown condition {name!r}: use some of {', '.join((*BEFORE_DECODER, 'depth'))}.")
    return found


def kept_tokens(
    name: str, scene: Scene, needed: list[int], attention: torch.Tensor, rng: np.random.Generator
) -> np.ndarray | None:
    """Raster numbers of the visual tokens a condition keeps, None for all of them; at least one is kept."""
    if name == "full":
        return None
    owner = scene.labels.things
    kept = {
        "one": lambda: rng.choice(_VISUAL, 1, replace=False),
        "random-64": lambda: rng.choice(_VISUAL, 64, replace=False),
        "cls-64": lambda: attention.topk(64).indices.numpy(),
        "objects": lambda: np.flatnonzero(owner >= 0),
        "needed": lambda: np.flatnonzero(np.isin(owner, needed)),
    }[name]()
    return kept if len(kept) else np.zeros(1, np.int64)


@torch.no_grad()
def measure(
    weights: Weights, sizes: Sizes, name: str, conditions: list[tuple[str, int]], images: int | None, seed: int = 0
):
    """Right (1) or wrong (0) per condition and question, the kind of each question and the image of each."""
    right: dict[tuple[str, int], list[int]] = {condition: [] for condition in conditions}
    kinds, owners = [], []
    # the patches needed differ from question to question, all else is shared by the questions of a picture
    shared = [condition for condition in conditions if condition[0] != "needed"]
    single = [condition for condition in conditions if condition[0] == "needed"]
    deepest = max(layer for _, layer in conditions)
    drawn = [item for number, item in enumerate(draw_set(name)) if images is None or number < images]
    for index, scene, asked in tqdm(drawn, desc=f"asking {name}", mininterval=5):
        batch = COURSE.whole([scene], [asked])
        features, _, attention = encode(weights, sizes, normalise(batch.pixels, torch.float32), batch.cells)
        kinds += [question.kind for question in asked]
        owners += [index] * len(asked)
        every = list(range(len(asked)))
        for chosen, groups in ((shared, [every]), (single, [[i] for i in every])):
            for group in groups if chosen else []:
                needed = sorted({thing for i in group for hop in asked[i].things for thing in hop})
                drops = []
                for condition, layer in chosen:
                    rng = np.random.default_rng([seed, index, layer])
                    kept = kept_tokens(condition, scene, needed, attention[0], rng)
                    drops.append(
                        (deepest, None) if kept is None else (layer, torch.from_numpy(kept.astype(np.int64))[None])
                    )
                for condition, hits in zip(chosen, _hits(weights, sizes, features, batch, group, drops), strict=True):
                    right[condition] += hits
    return right, kinds, owners


def _hits(weights: Weights, sizes: Sizes, features: torch.Tensor, batch: Batch, group: list[int], drops: list):
    """Right (1) or wrong (0) of the questions `group` of one picture, a list for each of `drops`."""
    ids, answers = batch.question_ids[:, group], batch.answers[0, group, 0]
    layout = Layout(torch.tensor(PREFIX), ids, batch.visual_positions, batch.question_start)
    rows = batch.answer_at[:, group][..., None, None].expand(-1, -1, 1, sizes.width)
    found = []
    for states in decode_dropping(weights, sizes, features, layout, drops):
        told = (states.gather(2, rows)[0, :, 0] @ weights["lm_head.weight"].T).argmax(-1)
        found.append((told == answers).int().tolist())
    return found


def wilson(hits: int, total: int) -> list[float]:
    """95 % Wilson interval of a share, as rows hold it."""
    return [round(end, 4) for end in scores.wilson(hits, total)]


def result_rows(right, kinds: list[str], owners: list[int], certificate: dict) -> list[dict]:
    """One JSON-ready row per condition."""
    rows = []
    for (condition, layer), hits in right.items():
        per_kind = {}
        for kind in KINDS:
            own = [hit for hit, k in zip(hits, kinds, strict=True) if k == kind]
            if own:
                per_kind[kind] = {
                    "n": len(own),
                    "accuracy": round(sum(own) / len(own), 4),
                    "interval": wilson(sum(own), len(own)),
                }
        rows.append(
            {
                "condition": condition,
                "after_layer": layer,
                "n": len(hits),
                "accuracy": round(sum(hits) / len(hits), 4),
                "interval": wilson(sum(hits), len(hits)),
                "kinds": per_kind,
                "right": "".join(map(str, hits)),
                "images": owners,
            }
            | certificate
        )
    return rows


def paired_difference(first: dict, second: dict, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Accuracy of row `first` minus row `second` with a 95 % bootstrap interval over images, in points."""
    if first["images"] != second["images"]:
        raise VisionDropError("the two rows were measured on different questions: measure both on the same set.")
    gap = np.array(list(first["right"]), int) - np.array(list(second["right"]), int)
    _, owner = np.unique(first["images"], return_inverse=True)
    total, size = np.bincount(owner, gap), np.bincount(owner)
    picks = np.random.default_rng(seed).integers(0, len(size), (draws, len(size)))
    means = 100 * total[picks].sum(1) / size[picks].sum(1)
    return 100 * gap.mean(), *np.percentile(means, [2.5, 97.5])


def certificate_of(fingerprint: str, name: str, seed: int) -> dict:
    """Where and on what a row was measured."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "--", "."], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "set": name,
        "split": SETS[name].split,
        "data_version": VERSION,
        "checkpoint": fingerprint,
        "seed": seed,
        "dtype": "float32",
        "device": "cpu",
        "commit": commit.stdout.strip() or "unknown",
        "dirty": bool(dirty.stdout.strip()),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; appends rows to --out and prints a table."""
    parser = argparse.ArgumentParser(
        description="Accuracy per kind, oracles and depth profile of a testbed checkpoint."
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--set", dest="name", default="validation", choices=list(SETS))
    parser.add_argument("--conditions", nargs="+", default=["full"])
    parser.add_argument("--images", type=int, help="only the first so many pictures of the set")
    parser.add_argument("--out", type=Path, help="JSON-lines file to append to")
    parser.add_argument("--seed", type=int, default=0, help="of the random tokens")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    try:
        torch.set_num_threads(args.threads)
        weights, sizes, fingerprint = load_weights(args.checkpoint)
        began = time.monotonic()
        conditions = conditions_of(args.conditions, sizes.layers)
        outcome = measure(weights, sizes, args.name, conditions, args.images, args.seed)
        rows = result_rows(*outcome, certificate_of(fingerprint, args.name, args.seed))
        print(f"{'condition':<16}{'n':>6}{'all':>7}" + "".join(f"{kind:>7}" for kind in KINDS))
        for row in rows:
            label = row["condition"] + (f" after {row['after_layer']}" if row["after_layer"] else "")
            shares = "".join(
                f"{100 * row['kinds'][k]['accuracy']:7.1f}" if k in row["kinds"] else "      -" for k in KINDS
            )
            print(f"{label:<16}{row['n']:>6}{100 * row['accuracy']:7.1f}{shares}")
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            seconds = {"seconds": round(time.monotonic() - began, 1)}
            with args.out.open("a") as file:
                file.writelines(json.dumps(row | seconds) + "\n" for row in rows)
    except (VisionDropError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
