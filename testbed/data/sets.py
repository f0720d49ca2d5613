"""The testbed's question sets, written as parquet in the shape `datasets` and lmms-eval read.

    python -m testbed.data.sets --out data            # data/visiondrop-testbed/{validation,test,quick}/...parquet
    python -m testbed.data.sets --chance              # chance levels of every kind, and the sets' digests

Set `test` is asked once per finished model, `validation` is for choosing, `quick` (other scenes of the test split)
for a first look. A row names its scene by split and number; the picture is drawn when it is asked for (2 ms), so a
set is 100 kB. Kinds are equally frequent, answers of a kind as equal as the scenes allow, up to four questions share
a picture.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from testbed.data.questions import KINDS, Question, draw_question
from testbed.data.scenes import VERSION, Scene, draw_scene, scene_rng
from visiondrop.errors import VisionDropError, command_line

DATASET = "visiondrop-testbed"


@dataclass(frozen=True)
class SetSpec:
    """Where a set's scenes come from and how many questions it has in all."""

    split: str
    first_scene: int
    questions: int


SETS = {
    "validation": SetSpec("validation", 0, 2240),
    "test": SetSpec("test", 0, 2240),
    "quick": SetSpec("test", 100_000, 500),
}


@dataclass(frozen=True)
class Family:
    """The question sets of one testbed: the base one here, a sibling's in its own package.

    dataset: folder of the data set; version: of its scenes; note: a sentence for the folder's README; draw, rng: a
    scene by (split, index), and its generator by (split, index, purpose); per_image: most questions about a picture.
    """

    dataset: str
    version: int
    note: str
    sets: dict[str, SetSpec]
    kinds: tuple[str, ...]
    draw: Callable[[str, int], Scene]
    rng: Callable[[str, int, int], np.random.Generator]
    per_image: int = 4


TESTBED = Family(
    DATASET, VERSION, "Question sets of the VisionDrop testbed", SETS, KINDS, draw_scene, scene_rng
)  # fmt: skip


def draw_set(name: str, family: Family = TESTBED) -> Iterator[tuple[int, Scene, list[Question]]]:
    """(scene index, scene, its questions) of a set, in order; the same for every call."""
    if name not in family.sets:
        raise VisionDropError(f"unknown question set {name!r}: use one of {', '.join(family.sets)}.")
    spec, kinds = family.sets[name], family.kinds
    wanted = {kind: spec.questions // len(kinds) + (i < spec.questions % len(kinds)) for i, kind in enumerate(kinds)}
    seen: Counter = Counter()
    index = spec.first_scene
    while any(wanted.values()):
        scene, rng = family.draw(spec.split, index), family.rng(spec.split, index, 1)
        asked: list[Question] = []
        # the kinds that lack most questions first, so that rare ones are not left to the end
        for kind in sorted(kinds, key=lambda kind: -wanted[kind]):
            question = draw_question(kind, scene, rng, seen) if wanted[kind] and len(asked) < family.per_image else None
            if question is not None:
                asked.append(question)
                seen[kind, question.answer] += 1
                wanted[kind] -= 1
        if asked:
            yield index, scene, asked
        index += 1


def rows_of(name: str, family: Family = TESTBED) -> Iterator[dict]:
    """Rows of a set.

    `object_patches` and `needed_patches` are numbers (raster order) of the visual tokens that show any object, or an object
    the question is about (for oracles and figures; no method may read them).
    """
    number = 0
    for index, scene, asked in draw_set(name, family):
        owner = scene.labels.things
        for question in asked:
            needed = sorted({thing for hop in question.things for thing in hop})
            yield {
                "question_id": f"{name}-{number:05d}",
                "image_id": f"{name}-{index:06d}",
                "split": family.sets[name].split,
                "scene": index,
                "question": question.text,
                "answer": question.answer,
                "kind": question.kind,
                "hard": question.hard,
                "object_patches": np.flatnonzero(owner >= 0).tolist(),
                "needed_patches": np.flatnonzero(np.isin(owner, needed)).tolist(),
            }
            number += 1


def write_sets(
    folder: Path, names: tuple[str, ...] | None = None, progress: bool = True, family: Family = TESTBED
) -> Path:
    """Writes sets (default: all) below folder/<dataset> and returns that; a finished set of this version is kept."""
    from datasets import Dataset, Features, Sequence, Value

    home = Path(folder) / family.dataset
    text, patches = Value("string"), Sequence(Value("int64"))
    features = Features({
        "question_id": text, "image_id": text, "split": text, "scene": Value("int64"),
        "question": text, "answer": text, "kind": text,
        "hard": Value("bool"), "object_patches": patches, "needed_patches": patches,
    })  # fmt: skip
    try:
        for name in family.sets if names is None else names:
            target = home / name / f"test-v{family.version}.parquet"
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            rows = rows_of(name, family)
            if progress:
                rows = tqdm(rows, total=family.sets[name].questions, desc=f"drawing {name}", mininterval=2)
            unfinished = target.with_suffix(".new")
            Dataset.from_list(list(rows), features=features).to_parquet(str(unfinished))
            unfinished.replace(target)
        (home / "README.md").write_text(readme(home, family.version, family.note))
    except OSError as error:
        raise VisionDropError(
            f"cannot write the question sets to {home}: {error.strerror or error}; free space and start again."
        ) from error
    return home


def readme(home: Path, version: int, note: str) -> str:
    """The README that tells `datasets` which sets are there."""
    there = sorted(path.relative_to(home) for path in home.glob(f"*/test-v{version}.parquet"))
    entries = "".join(
        f"  - config_name: {p.parent}\n    data_files:\n      - {{split: test, path: {p}}}\n" for p in there
    )
    return f"---\nconfigs:\n{entries}---\n{note}, version {version}. A stand-in, not a public benchmark.\n"


def digest(name: str, family: Family = TESTBED) -> str:
    """First 16 hex digits of SHA-256 over a set's pixels, questions and answers, independent of the file format."""
    total = hashlib.sha256()
    for _, scene, asked in draw_set(name, family):
        total.update(scene.image.tobytes())
        total.update(json.dumps([[q.kind, q.text, q.answer] for q in asked]).encode())
    return total.hexdigest()[:16]


def chance_levels(name: str, family: Family = TESTBED) -> dict[str, float]:
    """`best_guesses` on a set."""
    return best_guesses(question for _, _, asked in draw_set(name, family) for question in asked)


def best_guesses(questions: Iterable[Question]) -> dict[str, float]:
    """Share of right answers, per kind, of the best guesser that reads the question's form but sees nothing.

    For each beginning of a question ("What shape", "Is there") it always gives that form's most frequent answer.
    """
    forms: dict[tuple[str, str], Counter] = {}
    for question in questions:
        form = (question.kind, " ".join(question.text.split()[:2]))
        forms.setdefault(form, Counter())[question.answer] += 1
    right, total = Counter(), Counter()
    for (kind, _), answers in forms.items():
        right[kind] += max(answers.values())
        total[kind] += sum(answers.values())
    return {kind: right[kind] / total[kind] for kind in total}


def command(
    argv: list[str] | None, dataset: str, names: Iterable[str], write: Callable, describe: Callable[[str], dict]
) -> int:
    """Command line of question sets; returns the exit status.

    Args:
        dataset: the folder that is made; names: of its sets.
        write: (folder, names) -> what was written; describe: name -> digest and chance levels.
    """
    parser = argparse.ArgumentParser(description=f"Write the sets of {dataset}, or print what chance gives on them.")
    parser.add_argument("--out", type=Path, help=f"folder that will hold {dataset}/")
    parser.add_argument("--sets", nargs="+", default=list(names), help="which sets")
    parser.add_argument("--chance", action="store_true", help="print chance levels and digests as JSON")
    args = parser.parse_args(argv)
    if args.out is None and not args.chance:
        raise VisionDropError("nothing to do: give --out FOLDER or --chance.")
    if args.out is not None:
        print(write(args.out, tuple(args.sets)))
    if args.chance:
        print(json.dumps({name: describe(name) for name in args.sets}, indent=1))
    return 0


@command_line
def main(argv: list[str] | None = None, family: Family = TESTBED) -> int:
    """Command line; returns the exit status."""

    def describe(name: str) -> dict:
        return {"digest": digest(name, family), "chance": chance_levels(name, family)}

    return command(argv, family.dataset, family.sets, partial(write_sets, family=family), describe)


if __name__ == "__main__":
    sys.exit(main())
