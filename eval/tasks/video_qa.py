"""TGIF-QA, MSVD-QA and MSRVTT-QA as Video-LLaVA asks them: eight frames, the bare question, a free answer.

A data set is a folder DATA/visiondrop/NAME with test.jsonl (question_id, video, question, answer), a README.md that
names it, and the files in videos/; `python -m eval.benchmarks.video_data` makes one.  The first 1,000 questions count, as in
pruning papers.
"""

import re
import string
from pathlib import Path

from eval.errors import EvaluationError
from llava.video import video_prompt

QUESTIONS = 1000
SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")


class VideoFile:
    """A video among a request's images: decoded when its turn comes.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path


def first_questions(dataset):
    """The first 1,000 rows."""
    return dataset.select(range(min(QUESTIONS, len(dataset))))


def find_video(folder: Path, name: str) -> Path:
    """The file of that name, with or without its suffix."""
    for candidate in (folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES)):
        if candidate.is_file():
            return candidate
    raise EvaluationError(f"there is no video {name!r} in {folder} (looked for {', '.join(SUFFIXES)})")


def _visual(name: str):
    def doc_to_visual(doc: dict) -> list[VideoFile]:
        # The working directory is the data folder while a benchmark runs (eval/benchmarks/data.py).
        return [VideoFile(find_video(Path.cwd() / "visiondrop" / name / "videos", doc["video"]))]

    return doc_to_visual


tgif_visual, msvd_visual, msrvtt_visual = _visual("TGIF-QA"), _visual("MSVD-QA"), _visual("MSRVTT-QA")


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """Eight placeholders, a newline, the question; no instruction to be brief."""
    return video_prompt(doc["question"])


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    plain = text.lower().translate(str.maketrans(dict.fromkeys(string.punctuation, " ")))
    return " ".join(word for word in re.split(r"\s+", plain) if word and word not in ("a", "an", "the"))


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """Matches that need no judge: the same text, the same words, the right answer's words within the given one."""
    said, true = normalise(results[0]), normalise(doc["answer"])
    return {
        "exact_match": float(results[0].strip() == doc["answer"].strip()),
        "normalized_match": float(said == true),
        "contains_match": float(bool(true) and f" {true} " in f" {said} "),
    }
