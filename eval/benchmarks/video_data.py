"""Make a video question set as eval/tasks/video_qa.py reads it, from the files that Video-LLaVA distributes.

    python -m eval.benchmarks.video_data MSVD-QA --questions test_q.json --answers test_a.json --videos DIR --data DATA

writes DATA/visiondrop/MSVD-QA with the first 1,000 questions (--all: every one) and links to their videos.  Questions
and answers are joined by `question_id`, never by their place in the file.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from eval.errors import EvaluationError
from eval.files import reason, write_whole
from eval.tasks.video_qa import QUESTIONS, find_video
from visiondrop.errors import command_line

SETS = ("TGIF-QA", "MSVD-QA", "MSRVTT-QA")
README = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: test.jsonl
---
Made by `python -m eval.benchmarks.video_data` from {questions} and {answers}.
"""


def join(questions: list[dict], answers: list[dict]) -> list[dict]:
    """Rows {question_id, video, question, answer} in the order of the questions.

    Raises:
        EvaluationError: an id is missing, or stands twice.
    """
    try:
        by_id = {str(a["question_id"]): a["answer"] for a in answers}
        ids = [str(q["question_id"]) for q in questions]
        for given, entries in ((ids, questions), ([str(a["question_id"]) for a in answers], answers)):
            if len(set(given)) != len(entries):
                raise EvaluationError("a question_id stands twice; ids must be unique to join questions and answers")
        missing = [i for i in ids if i not in by_id]
        if missing:
            raise EvaluationError(f"{len(missing)} questions have no answer, e.g. question_id {missing[0]}")
        return [
            {"question_id": i, "video": str(q["video_name"]), "question": q["question"], "answer": str(by_id[i])}
            for i, q in zip(ids, questions)
        ]
    except (KeyError, TypeError) as error:
        raise EvaluationError(
            f"a question needs question_id, video_name and question, an answer question_id and answer; missing: {error}"
        ) from None


def make(name: str, questions: Path, answers: Path, videos: Path, data: Path, count: int | None = QUESTIONS) -> Path:
    """Write the set and return its folder; a folder that exists is written again.

    Raises:
        EvaluationError: a file is missing or unreadable, a video is not there, or the disk cannot be written.
    """
    rows = join(_read(questions), _read(answers))[:count]
    place = data / "visiondrop" / name
    try:
        (place / "videos").mkdir(parents=True, exist_ok=True)
        for row in rows:
            file = find_video(videos, row["video"])
            link = place / "videos" / file.name
            if not link.exists():
                link.unlink(missing_ok=True)
                os.symlink(file.resolve(), link)
            row["video"] = file.name
        write_whole(place / "test.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_whole(place / "README.md", README.format(questions=questions.name, answers=answers.name))
    except OSError as error:
        raise EvaluationError(f"{place} cannot be written: {reason(error)}; choose another --data") from None
    return place


def _read(path: Path) -> list[dict]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(content, list):
        raise EvaluationError(f"{path} holds no list of entries")
    return content


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m eval.benchmarks.video_data", description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=SETS)
    for option in ("questions", "answers", "videos", "data"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="every question, not only the first 1,000")
    args = parser.parse_args(argv)
    place = make(args.name, args.questions, args.answers, args.videos, args.data, None if args.all else QUESTIONS)
    print(f"wrote {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
