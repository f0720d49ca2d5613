"""The video sibling's question sets: rows as parquet, clips as video files, in the shape `datasets` and lmms-eval read.

    python -m testbed.video.sets --out data     # data/visiondrop-testbed-video/{validation,test,quick}/
    python -m testbed.video.sets --chance       # chance levels of every kind, and the sets' digests

Kinds are equally frequent, answers of a kind as equal as the clips allow, up to five questions share a clip.  Set
`test` is asked once per finished model, `validation` is for choosing, `quick` (other clips of the test split) for a
first look.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from testbed.data.questions import Question
from testbed.data.sets import SetSpec, best_guesses, command, readme
from testbed.video.files import write_clip
from testbed.video.questions import KINDS, draw_question
from testbed.video.scenes import VERSION, Clip, clip_rng, draw_clip
from visiondrop.errors import VisionDropError, command_line

DATASET = "visiondrop-testbed-video"
NOTE = "Question sets of VisionDrop's video testbed"
DIGESTS = Path(__file__).with_name("digests.json")
SETS = {
    "validation": SetSpec("validation", 0, 300),
    "test": SetSpec("test", 0, 300),
    "quick": SetSpec("test", 100_000, 100),
}


def draw_set(name: str) -> Iterator[tuple[int, Clip, list[Question]]]:
    """(clip index, clip, its questions) of a set, in order; the same for every call."""
    if name not in SETS:
        raise VisionDropError(f"unknown question set {name!r}: use one of {', '.join(SETS)}.")
    spec = SETS[name]
    wanted = dict.fromkeys(KINDS, spec.questions // len(KINDS))
    seen: Counter = Counter()
    index = spec.first_scene
    while any(wanted.values()):
        clip, rng = draw_clip(spec.split, index), clip_rng(spec.split, index, purpose=1)
        asked: list[Question] = []
        for kind in KINDS:
            question = draw_question(kind, clip, rng, seen) if wanted[kind] else None
            if question is not None:
                asked.append(question)
                seen[kind, question.answer] += 1
                wanted[kind] -= 1
        if asked:
            yield index, clip, asked
        index += 1


def write_sets(folder: Path, names: tuple[str, ...] = tuple(SETS), progress: bool = True) -> Path:
    """Writes sets below folder/visiondrop-testbed-video and returns that; a finished set of this version is kept."""
    home = Path(folder) / DATASET
    try:
        for name in names:
            if not _rows_file(home, name).exists():
                _write_set(home, name, progress)
        (home / "README.md").write_text(readme(home, VERSION, NOTE))
    except OSError as error:
        raise VisionDropError(
            f"cannot write the question sets to {home}: {error.strerror or error}; free space and start again."
        ) from error
    return home


def _rows_file(home: Path, name: str) -> Path:
    return home / name / f"test-v{VERSION}.parquet"


def _write_set(home: Path, name: str, progress: bool) -> None:
    """The clips of a set, then its rows: where the rows are, the clips are."""
    from datasets import Dataset

    videos = home / name / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    rows = []
    bar = tqdm(total=SETS[name].questions, desc=f"drawing {name} videos", mininterval=2, disable=not progress)
    for index, clip, asked in draw_set(name):
        video = f"{name}-{index:06d}"
        write_clip(videos / f"{video}.mp4", clip.frames)
        for question in asked:
            number = f"{name}-{len(rows):05d}"
            rows.append({"question_id": number, "video": video, "set": name, "split": SETS[name].split, "scene": index,
                         "question": question.text, "answer": question.answer, "kind": question.kind})  # fmt: skip
        bar.update(len(asked))
    bar.close()
    target = _rows_file(home, name)
    unfinished = target.with_suffix(".new")
    Dataset.from_list(rows).to_parquet(str(unfinished))
    unfinished.replace(target)


def digest(name: str) -> str:
    """First 16 hex digits of SHA-256 over a set's pixels, questions and answers, independent of the file formats."""
    total = hashlib.sha256()
    for _, clip, asked in draw_set(name):
        total.update(clip.frames.tobytes())
        total.update(json.dumps([[q.kind, q.text, q.answer] for q in asked]).encode())
    return total.hexdigest()[:16]


def chance_levels(name: str) -> dict[str, float]:
    """`testbed.data.sets.best_guesses` on a set."""
    return best_guesses(question for _, _, asked in draw_set(name) for question in asked)


@command_line
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command(
        argv, DATASET, SETS, write_sets, lambda name: {"digest": digest(name), "chance": chance_levels(name)}
    )


if __name__ == "__main__":
    sys.exit(main())
