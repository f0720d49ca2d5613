"""Writers of small video sets in the schemas of the hub sets that lmms-eval reads, with drawn clips where it looks for them."""

from collections.abc import Callable
from pathlib import Path

from datasets import List, Value

from tests.support import videos
from tests.support.datasets_small import TEXT, write_dataset

LETTERS = "ABCDE"
COLOURS = ("red", "green", "blue", "yellow", "white")


def clips(folder: Path, names: list[str]) -> None:
    """A drawn clip of each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        videos.write(folder / name, 5 + 3 * i)


def write_videomme(data: Path, n: int = 6) -> None:
    """Two questions a video."""
    rows = [
        {
            "video_id": f"{i // 2:03d}",
            "duration": ("short", "medium", "long")[i // 2],
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": "",
            "videoID": f"v{i // 2}",
            "question_id": f"{i // 2:03d}-{i % 2 + 1}",
            "task_type": "Counting Problem",
            "question": f"Which color is thing {i}?",
            "options": [f"{letter}. {name}." for letter, name in zip(LETTERS[:4], COLOURS)],
            "answer": LETTERS[i % 3],
        }
        for i in range(n)
    ]
    features = {k: List(TEXT) if k == "options" else TEXT for k in rows[0]}
    write_dataset(data, "Video-MME", [("default", "test", rows, features)], owner="lmms-eval")
    clips(data / "videomme" / "data", [f"v{i}.mp4" for i in range(n // 2)])


def write_mlvu(data: Path, n: int = 6) -> None:
    """Three kinds of seven, unevenly."""
    kinds = ("count", "count", "count", "ego", "ego", "order")
    rows = [
        {
            "task_type": kinds[i],
            "video_name": f"{i}.mp4",
            "question": f"Which color is thing {i}?\n(A) red\n(B) green\n(C) blue",
            "answer": LETTERS[i % 3],
        }
        for i in range(n)
    ]
    write_dataset(data, "MLVU_dev", [("default", "test", rows, dict.fromkeys(rows[0], TEXT))], owner="sy1998")
    clips(data / "mlvu", [f"{i}.mp4" for i in range(n)])


def write_longvideobench(data: Path, n: int = 6) -> None:
    """Four options, the fifth is "N/A"."""
    rows = [
        {
            "video_id": f"v{i}",
            "question": f"Which color is thing {i}?",
            **{f"option{k}": COLOURS[k] if k < 4 else "N/A" for k in range(5)},
            "correct_choice": i % 3,
            "id": f"v{i}_0",
            "video_path": f"v{i}.mp4",
            "subtitle_path": f"v{i}.json",
            "duration": 12.0,
            "duration_group": (15, 60)[i % 2],
            "question_category": ("T2O", "E2O")[i // 3],
            "level": "L1-Perception",
            "starting_timestamp_for_subtitles": 0.0,
        }
        for i in range(n)
    ]
    kinds = {int: Value("int64"), float: Value("float64"), str: TEXT}
    features = {name: kinds[type(value)] for name, value in rows[0].items()}
    write_dataset(data, "LongVideoBench", [("default", "validation", rows, features)], owner="longvideobench")
    clips(data / "datasets" / "longvideobench" / "videos", [f"v{i}.mp4" for i in range(n)])


def write_egoschema(data: Path, n: int = 6) -> None:
    """The subset whose answers are public: the number of the option, as text."""
    rows = [
        {
            "question_idx": str(i),
            "question": f"Which color is thing {i}?",
            "video_idx": f"v{i}",
            "option": [f"{letter}. {name}" for letter, name in zip(LETTERS, COLOURS)],
            "answer": str(i % 3),
        }
        for i in range(n)
    ]
    features = {k: List(TEXT) if k == "option" else TEXT for k in rows[0]}
    write_dataset(data, "egoschema", [("Subset", "test", rows, features)], owner="lmms-eval")
    clips(data / "egoschema" / "videos", [f"v{i}.mp4" for i in range(n)])


def write_nextqa(data: Path, n: int = 6) -> None:
    """Multiple choice; videos are numbers."""
    rows = [
        {
            "video": 100 + i,
            "frame_count": 10,
            "width": 64,
            "height": 48,
            "question": f"which color is thing {i}",
            "answer": i % 3,
            "qid": i,
            "type": "DC",
            **{f"a{k}": COLOURS[k] for k in range(5)},
        }
        for i in range(n)
    ]
    features = {k: TEXT if isinstance(v, str) else Value("int32") for k, v in rows[0].items()}
    write_dataset(data, "NExTQA", [("MC", "test", rows, features)], owner="lmms-eval")
    clips(data / "nextqa" / "NExTVideo", [f"{100 + i}.mp4" for i in range(n)])


def write_mvbench(data: Path, n: int = 6) -> None:
    """One kind of twenty."""
    rows = [
        {
            "video": f"v{i}.mp4",
            "question": f"Which color is thing {i}?",
            "candidates": list(COLOURS[:3]),
            "answer": COLOURS[i % 3],
        }
        for i in range(n)
    ]
    features = {"video": TEXT, "question": TEXT, "candidates": List(TEXT), "answer": TEXT}
    write_dataset(data, "MVBench", [("action_count", "train", rows, features)], owner="OpenGVLab")
    clips(data / "mvbench_video" / "perception" / "videos", [f"v{i}.mp4" for i in range(n)])


WRITERS: dict[str, Callable[[Path], None]] = {
    "videomme": write_videomme,
    "mlvu": write_mlvu,
    "longvideobench": write_longvideobench,
    "egoschema": write_egoschema,
    "nextqa": write_nextqa,
    "mvbench_action_count": write_mvbench,
}
