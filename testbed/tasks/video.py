"""What the video testbed's task files call: the file, prompt and score of one row."""

from pathlib import Path

from eval.tasks.video_qa import VideoFile, find_video
from llava.video import video_prompt
from testbed.video.sets import DATASET


def doc_to_visual(doc: dict) -> list[VideoFile]:
    """The clip's file; the working directory is the data folder while a benchmark runs (eval/benchmarks/data.py)."""
    return [VideoFile(find_video(Path.cwd() / DATASET / doc["set"] / "videos", doc["video"]))]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """Eight placeholders, a newline, the bare question."""
    return video_prompt(doc["question"])
