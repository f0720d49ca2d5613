"""The testbed's question sets, written as parquet in the shape `datasets` and lmms-eval read.

    python -m testbed.data.sets --out data            # data/visiondrop-testbed/{validation,test,quick}/...parquet
    python -m testbed.data.sets --chance              # chance levels of every kind, and the sets' digests

Set `test` is asked once per finished model, `validation` is for choosing, `quick` (other scenes of the test split)
for a first look; `pretrained` (140, again other scenes) is the test set of the testbed with a pretrained decoder, so
small that all its methods are asked within an hour on one core. A row names its scene by split and number; the picture is drawn when it is asked for (2 ms), so a
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
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from testbed.data.material import QUESTIONS, SCENES, Questions, Scenes
from testbed.data.questions import Question
from testbed.data.scenes import Scene
from visiondrop.errors import VisionDropError, command_line


@dataclass(frozen=True)
class SetSpec:
    """Where a set's scenes come from and how many questions it has in all."""

    split: str
    first_scene: int
    questions: int


@dataclass(frozen=True)
class Family:
    """The question sets of one testbed: the base one here, a sibling's in its own package.

    dataset: folder of the data set; note: a sentence for the folder's README; scenes, questions: the testbed's;
    per_image: most questions about a scene; rare_first: kinds that lack most questions are drawn first; row: columns of
    (set, split, scene index, scene, question) beside the question's number; keep: writes what a row names beside the
    rows, from (folder of the set, set, scene index, scene).
    """

    dataset: str
    note: str
    sets: dict[str, SetSpec]
    scenes: Scenes
    questions: Questions
    per_image: int
    row: Callable[[str, str, int, Any, Question], dict]
    rare_first: bool = True
    keep: Callable[[Path, str, int, Any], None] | None = None

    def draw_set(self, name: str) -> Iterator[tuple[int, Any, list[Question]]]:
        """(scene index, scene, its questions) of a set, in order; the same for every call."""
        if name not in self.sets:
            raise VisionDropError(f"unknown question set {name!r}: use one of {', '.join(self.sets)}.")
        spec, kinds = self.sets[name], self.questions.kinds
        rest = spec.questions % len(kinds)
        wanted = {kind: spec.questions // len(kinds) + (i < rest) for i, kind in enumerate(kinds)}
        seen: Counter = Counter()
        index = spec.first_scene
        while any(wanted.values()):
            scene, rng = self.scenes.draw(spec.split, index), self.scenes.rng(spec.split, index, 1)
            asked: list[Question] = []
            # the kinds that lack most questions first, so that rare ones are not left to the end
            order = sorted(kinds, key=lambda kind: -wanted[kind]) if self.rare_first else kinds
            for kind in order:
                if not wanted[kind] or len(asked) == self.per_image:
                    continue
                question = self.questions.draw(kind, scene, rng, seen)
                if question is not None:
                    asked.append(question)
                    seen[kind, question.answer] += 1
                    wanted[kind] -= 1
            if asked:
                yield index, scene, asked
            index += 1

    def write_sets(self, folder: Path, names: tuple[str, ...] | None = None, progress: bool = True) -> Path:
        """Writes sets (default: all) below folder/<dataset> and returns that; a finished set of this version is kept."""
        home = Path(folder) / self.dataset
        try:
            for name in self.sets if names is None else names:
                if not self._rows_file(home, name).exists():
                    self._write_set(home, name, progress)
            (home / "README.md").write_text(self._readme(home))
        except OSError as error:
            raise VisionDropError(
                f"cannot write the question sets to {home}: {error.strerror or error}; free space and start again."
            ) from error
        return home

    def _rows_file(self, home: Path, name: str) -> Path:
        return home / name / f"test-v{self.scenes.version}.parquet"

    def _write_set(self, home: Path, name: str, progress: bool) -> None:
        """What the rows of a set name, then its rows: where the rows are, all of it is."""
        from datasets import Dataset

        target = self._rows_file(home, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        rows: list[dict] = []
        total, split = self.sets[name].questions, self.sets[name].split
        bar = tqdm(total=total, desc=f"drawing {self.dataset} {name}", mininterval=2, disable=not progress)
        for index, scene, asked in self.draw_set(name):
            if self.keep is not None:
                self.keep(target.parent, name, index, scene)
            for question in asked:
                number = {"question_id": f"{name}-{len(rows):05d}"}
                rows.append(number | self.row(name, split, index, scene, question))
            bar.update(len(asked))
        bar.close()
        unfinished = target.with_suffix(".new")
        Dataset.from_list(rows).to_parquet(str(unfinished))
        unfinished.replace(target)

    def _readme(self, home: Path) -> str:
        """The README that tells `datasets` which sets are there."""
        version = self.scenes.version
        there = sorted(path.relative_to(home) for path in home.glob(f"*/test-v{version}.parquet"))
        entries = "".join(
            f"  - config_name: {p.parent}\n    data_files:\n      - {{split: test, path: {p}}}\n" for p in there
        )
        return f"---\nconfigs:\n{entries}---\n{self.note}, version {version}. A stand-in, not a public benchmark.\n"

    def digest(self, name: str) -> str:
        """First 16 hex digits of SHA-256 over a set's pixels, questions and answers, independent of the file formats."""
        total = hashlib.sha256()
        for _, scene, asked in self.draw_set(name):
            total.update(self.scenes.pixels(scene).tobytes())
            total.update(json.dumps([[q.kind, q.text, q.answer] for q in asked]).encode())
        return total.hexdigest()[:16]

    def chance_levels(self, name: str) -> dict[str, float]:
        """`best_guesses` on a set."""
        return best_guesses(question for _, _, asked in self.draw_set(name) for question in asked)

    def main(self, argv: list[str] | None = None) -> int:
        """Command line; returns the exit status."""
        return command_line(self._run)(argv)

    def _run(self, argv: list[str] | None) -> int:
        parser = argparse.ArgumentParser(
            description=f"Write the sets of {self.dataset}, or print what chance gives on them."
        )
        parser.add_argument("--out", type=Path, help=f"folder that will hold {self.dataset}/")
        parser.add_argument("--sets", nargs="+", default=list(self.sets), help="which sets")
        parser.add_argument("--chance", action="store_true", help="print chance levels and digests as JSON")
        args = parser.parse_args(argv)
        if args.out is None and not args.chance:
            raise VisionDropError("nothing to do: give --out FOLDER or --chance.")
        if args.out is not None:
            print(self.write_sets(args.out, tuple(args.sets)))
        if args.chance:
            told = {name: {"digest": self.digest(name), "chance": self.chance_levels(name)} for name in args.sets}
            print(json.dumps(told, indent=1))
        return 0


def picture_row(name: str, split: str, index: int, scene: Scene, question: Question) -> dict:
    """Columns of a question about a picture, beside its number.

    `object_patches` and `needed_patches` are numbers (raster order) of the visual tokens that show any object, or an object
    the question is about (for oracles and figures; no method may read them).
    """
    owner = scene.labels.things
    needed = sorted({thing for hop in question.things for thing in hop})
    return {
        "image_id": f"{name}-{index:06d}",
        "split": split,
        "scene": index,
        "question": question.text,
        "answer": question.answer,
        "kind": question.kind,
        "hard": question.hard,
        "object_patches": np.flatnonzero(owner >= 0).tolist(),
        "needed_patches": np.flatnonzero(np.isin(owner, needed)).tolist(),
    }


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


SETS = {
    "validation": SetSpec("validation", 0, 2240),
    "test": SetSpec("test", 0, 2240),
    "quick": SetSpec("test", 100_000, 500),
    "pretrained": SetSpec("test", 200_000, 140),
}
FAMILY = Family(
    dataset="visiondrop-testbed",
    note="Question sets of the VisionDrop testbed",
    sets=SETS,
    scenes=SCENES,
    questions=QUESTIONS,
    per_image=4,
    row=picture_row,
)
DATASET = FAMILY.dataset
draw_set, write_sets = FAMILY.draw_set, FAMILY.write_sets
digest, chance_levels = FAMILY.digest, FAMILY.chance_levels

if __name__ == "__main__":
    sys.exit(FAMILY.main())
