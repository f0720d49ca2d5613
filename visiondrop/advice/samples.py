"""The user's data: a folder of pictures, a JSON-lines or CSV file, or a question set of the testbed by name."""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import VisionDropError, closest
from ..families import loader
from ..families.guards import refuse_spelled_placeholder

SOURCE = "testbed.samples"  # question sets by name; a module of the repository, named so that nothing here needs it
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
QUESTIONS = ("Describe the picture in detail.", "What is the main thing in this picture?", "What text can be read?")


@dataclass(frozen=True)
class Sample:
    """One question about one picture or several.

    Attributes:
        pictures: files, or PIL images; question: text without a placeholder; answer: the right one, or None.
        place: where it was written, for messages, e.g. "data.csv, line 3"; key: pictures with one key are one cluster.
    """

    pictures: tuple[Any, ...]
    question: str
    answer: str | None = None
    place: str = ""
    key: str = ""

    def open(self) -> list[Image.Image]:
        """The pictures, decoded.

        Raises:
            VisionDropError: one is missing or broken; the message says where it was named.
        """
        try:
            return [loader().open_image(picture) for picture in self.pictures]
        except VisionDropError as error:
            raise VisionDropError(f"{self.place}: {error}" if self.place else str(error)) from None


def read_samples(data: str, questions: Sequence[str] = (), limit: int | None = None) -> tuple[list[Sample], list[str]]:
    """(samples, a sentence for each entry that was left out) of a folder, a file or a name."""
    path = Path(data)
    if path.is_dir():
        found, problems = _folder(path, questions), list[str]()
    elif path.suffix.lower() in (".jsonl", ".json", ".csv"):
        found, problems = _file(path)
    elif path.exists():
        raise VisionDropError(f"--data {data}: give a folder of pictures, a .jsonl or .csv file, or a name")
    else:
        found, problems = _named(data, limit), []
    return check_samples(found[:limit], problems, data)


def check_samples(found: Sequence[Sample], problems: list[str], data: str) -> tuple[list[Sample], list[str]]:
    """Leave out what cannot be asked; every such sample is told.

    Raises:
        VisionDropError: nothing is left.
    """
    good = []
    for sample in found:
        try:
            if not sample.question.strip():
                raise VisionDropError("the question is empty")
            refuse_spelled_placeholder(sample.question)
            sample.open()
            good.append(sample)
        except VisionDropError as error:
            told = str(error)
            problems.append(told if not sample.place or told.startswith(sample.place) else f"{sample.place}: {told}")
    if not good:
        first = f"; the first: {problems[0]}" if problems else ""
        raise VisionDropError(f"--data {data}: no sample can be used ({len(problems)} left out{first})")
    return good, problems


def fingerprint(samples: Sequence[Sample]) -> str:
    """16 hex digits over pictures, questions and answers."""
    total = hashlib.sha256()
    for sample in samples:
        for picture in sample.pictures:
            data = picture.tobytes() if isinstance(picture, Image.Image) else Path(picture).read_bytes()
            total.update(hashlib.sha256(data).digest())
        total.update(json.dumps([sample.question, sample.answer]).encode())
    return total.hexdigest()[:16]


def _folder(path: Path, questions: Sequence[str]) -> list[Sample]:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if not files:
        raise VisionDropError(f"--data {path}: the folder holds no picture ({', '.join(ENDINGS)})")
    asked = [*QUESTIONS, *questions]
    return [Sample((p,), q, None, str(p), str(p)) for p in files for q in asked]


def _file(path: Path) -> tuple[list[Sample], list[str]]:
    if not path.is_file():
        raise VisionDropError(f"--data {path}: there is no such file")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(text.splitlines())
        for column in ("picture", "question"):
            if column not in (reader.fieldnames or []):
                raise VisionDropError(
                    f"{path}, line 1: no column {column!r}; found {', '.join(reader.fieldnames or []) or 'none'}; needed are "
                    "picture and question, and answer where it is known"
                )
        rows: list[tuple[int, Any]] = [(reader.line_num, row) for row in reader]
    else:
        rows = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    found, problems = [], []
    for number, row in rows:
        try:
            found.append(_row(path, f"{path}, line {number}", row))
        except VisionDropError as error:
            problems.append(f"{path}, line {number}: {error}")
    return found, problems


def _row(path: Path, place: str, row: Any) -> Sample:
    if isinstance(row, str):
        try:
            row = json.loads(row)
        except ValueError as error:
            raise VisionDropError(f"not a JSON object ({error})") from None
    if not isinstance(row, dict):
        raise VisionDropError("not a JSON object")
    unknown = [name for name in ("picture", "question") if not row.get(name)]
    if unknown:
        have = ", ".join(str(name) for name in row if name) or "none"
        raise VisionDropError(f"no {unknown[0]!r}; found {have} (needed: picture, question; optional: answer)")
    named = row["picture"] if isinstance(row["picture"], list) else [row["picture"]]
    files = tuple(path.parent / str(name) for name in named)
    answer = row.get("answer")
    return Sample(files, str(row["question"]), None if answer in (None, "") else str(answer), place, str(files))


def _named(name: str, limit: int | None) -> list[Sample]:
    try:
        source = import_module(SOURCE)
    except ImportError as error:
        raise VisionDropError(
            f"--data {name}: there is no such file or folder, and question sets by name need the repository beside the "
            f"package ({error}): run from a checkout, or give a folder, a .jsonl or a .csv file"
        ) from error
    if name not in source.NAMES:
        raise VisionDropError(f"--data {name!r}: no file or folder, and no set: {closest(name, source.NAMES)}")
    rows = source.load(name, limit)
    return [Sample((r["picture"],), r["question"], r["answer"], r["place"], r["key"]) for r in rows]
