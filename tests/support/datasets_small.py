"""Writers of small self-made data sets in the true schemas of the hub sets that lmms-eval reads.

Every `write_*` makes DATA/lmms-lab-encoder/<SET>/ with a README header naming its configurations and parquet files,
so that `datasets.load_dataset("lmms-lab-encoder/<SET>")` finds it from the working directory DATA (`--data DATA`).
Pictures are drawn: a coloured field with a lighter square, a different one for every index.

    python -m tests.datasets_small DATA        # all sets
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageDraw

OWNER = "lmms-lab-encoder"
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}
TEXT = Value("string")


def picture(index: int, size: tuple[int, int] = (96, 64)) -> PILImage.Image:
    """A drawn RGB picture; `index` decides its colour, the square's place and so its identity."""
    colour = list(COLOURS.values())[index % len(COLOURS)]
    image = PILImage.new("RGB", size, colour)
    x, y = 5 + (index * 13) % (size[0] - 30), 5 + (index * 7) % (size[1] - 30)
    ImageDraw.Draw(image).rectangle((x, y, x + 18, y + 18), fill=tuple(min(255, c + 60) for c in colour))
    return image


def colour_name(index: int) -> str:
    """Colour word of `picture(index)`."""
    return list(COLOURS)[index % len(COLOURS)]


def write_dataset(data: Path, name: str, tables: list[tuple[str, str, list[dict], dict]], owner: str = OWNER) -> Path:
    """Write DATA/<owner>/<name>; `tables` holds (configuration, split, rows, features)."""
    folder = Path(data) / owner / name
    lines = ["---", "configs:"]
    for config in dict.fromkeys(t[0] for t in tables):
        lines += [f"- config_name: {config}", "  data_files:"]
        for _, split, rows, features in (t for t in tables if t[0] == config):
            file = folder / config / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(rows, features=Features(features)).to_parquet(file)
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "", "Drawn by tests/support/datasets_small.py.", ""]))
    return folder


def write_gqa(data: Path, n: int = 6, answers: list[str] | None = None) -> Path:
    """GQA: `n` questions, two per picture; `answers` replaces the true colour names."""
    nested = {"global": TEXT, "local": TEXT}
    kinds = {"structural": TEXT, "semantic": TEXT, "detailed": TEXT}
    rows = []
    for i in range(n):
        image = i // 2
        rows.append(
            {
                "id": f"q{i:04d}",
                "imageId": f"n{image:04d}",
                "question": f"What is the colour of thing {i}?",
                "answer": answers[i] if answers else colour_name(image),
                "fullAnswer": "It is so.",
                "isBalanced": True,
                "groups": {"global": None, "local": "06-colour"},
                "entailed": "[]",
                "equivalent": f"['q{i:04d}']",
                "types": {"structural": "query", "semantic": "attr", "detailed": "colour"},
                "annotations": {"answer": [], "fullAnswer": [], "question": []},
                "semantic": [{"operation": "select", "argument": "thing", "dependencies": []}],
                "semanticStr": "select: thing",
            }
        )
    pairs = List({"objectId": TEXT, "value": TEXT})
    features = dict.fromkeys(("id", "imageId", "question", "answer", "fullAnswer"), TEXT)
    features |= {"isBalanced": Value("bool"), "groups": nested, "entailed": TEXT, "equivalent": TEXT, "types": kinds}
    features |= {"annotations": {"answer": pairs, "fullAnswer": pairs, "question": pairs}}
    features |= {"semantic": List({"operation": TEXT, "argument": TEXT, "dependencies": List(Value("int32"))})}
    features |= {"semanticStr": TEXT}
    images = [{"id": f"n{i:04d}", "image": picture(i)} for i in range((n + 1) // 2)]
    return write_dataset(
        data,
        "GQA",
        [
            ("testdev_balanced_images", "testdev", images, {"id": TEXT, "image": Image()}),
            ("testdev_balanced_instructions", "testdev", rows, features),
        ],
    )


def write_pope(data: Path, n: int = 6, answers: list[str] | None = None) -> Path:
    """POPE: `n` yes/no questions, three per picture, one of each category."""
    categories = ("random", "popular", "adversarial")
    rows = []
    for i in range(n):
        rows.append(
            {
                "id": str(i),
                "question_id": str(i + 1),
                "question": f"Is there a {colour_name(i)} thing {i} in the image?",
                "answer": answers[i] if answers else ("yes" if i % 2 == 0 else "no"),
                "image_source": f"COCO_val2014_{i // 3:012d}",
                "image": picture(i // 3),
                "category": categories[i % 3],
            }
        )
    features = dict.fromkeys(("id", "question_id", "question", "answer", "image_source"), TEXT)
    return write_dataset(data, "POPE", [("default", "test", rows, {**features, "image": Image(), "category": TEXT})])


def write_mme(data: Path, pairs: int = 4, answers: list[str] | None = None) -> Path:
    """MME: `pairs` pictures with a Yes and a No question each, over two perception and one cognition category."""
    categories = ("existence", "color", "code_reasoning")
    rows = []
    for i in range(2 * pairs):
        pair = i // 2
        category = categories[pair % len(categories)]
        rows.append(
            {
                "question_id": f"{category}/{pair:04d}.png",
                "image": picture(pair),
                "question": f"Is this thing {i} {colour_name(pair + i % 2)}? Please answer yes or no.",
                "answer": answers[i] if answers else ("Yes" if i % 2 == 0 else "No"),
                "category": category,
            }
        )
    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": TEXT, "category": TEXT}
    return write_dataset(data, "MME", [("default", "test", rows, features)])


def write_mmbench(data: Path, questions: int = 3) -> Path:
    """MMBench, English and Chinese, dev and test: every question in two rotations; test has no answer."""

    def table(test: bool) -> list[dict]:
        rows = []
        for i in range(questions):
            options = list(COLOURS)[:3]
            for turn in range(2):
                turned = options[turn:] + options[:turn]
                rows.append(
                    {
                        "index": i + turn * 1_000_000,
                        "question": f"Which colour has thing {i}?",
                        "hint": "nan" if i % 2 else "Look closely.",
                        "answer": "nan" if test else "ABC"[turned.index(colour_name(i % 3))],
                        **dict(zip("ABCD", [*turned, "nan"])),
                        "category": "attribute_recognition",
                        "image": picture(i),
                        "source": "drawn",
                        "L2-category": "finegrained_perception",
                        "comment": "nan",
                        "split": "test" if test else "dev",
                    }
                )
        return rows

    features: dict[str, Any] = {"index": Value("int64")}
    features |= dict.fromkeys(("question", "hint", "answer", "A", "B", "C", "D", "category"), TEXT)
    features |= {"image": Image()} | dict.fromkeys(("source", "L2-category", "comment", "split"), TEXT)
    tables = [(lang, split, table(split == "test"), features) for lang in ("en", "cn") for split in ("dev", "test")]
    return write_dataset(data, "MMBench", tables)


def write_sqa(data: Path, n: int = 4) -> Path:
    """ScienceQA, image questions: `n` rows of three choices."""
    rows = []
    for i in range(n):
        rows.append(
            {
                "image": picture(i),
                "question": f"Which colour is this, number {i}?",
                "choices": list(COLOURS)[:3],
                "answer": i % 3,
                "hint": "The picture is drawn." if i % 2 else "",
                "task": "closed choice",
                "grade": "grade1",
                "subject": "natural science",
                "topic": "physics",
                "category": "Colours",
                "skill": "Name a colour",
                "lecture": "",
                "solution": "",
            }
        )
    features = {"image": Image(), "question": TEXT, "choices": List(TEXT), "answer": Value("int8")}
    features |= dict.fromkeys(
        ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"), TEXT
    )
    return write_dataset(data, "ScienceQA", [("ScienceQA-IMG", "test", rows, features)])


def write_vqav2(data: Path, n: int = 4) -> Path:
    """VQAv2: validation with ten answers per question, testdev without."""

    def table(test: bool) -> list[dict]:
        rows = []
        for i in range(n):
            said = [colour_name(i // 2)] * 8 + ["grey"] * 2
            answers = [{"answer": a, "answer_confidence": "yes", "answer_id": k + 1} for k, a in enumerate(said)]
            rows.append(
                {
                    "question_type": "what color is",
                    "multiple_choice_answer": None if test else said[0],
                    "answers": None if test else answers,
                    "image_id": 100 + i // 2,
                    "answer_type": "other",
                    "question_id": 1000 + i,
                    "question": f"What color is thing {i}?",
                    "image": picture(i // 2),
                }
            )
        return rows

    answer = {"answer": TEXT, "answer_confidence": TEXT, "answer_id": Value("int64")}
    features = {
        "question_type": TEXT,
        "multiple_choice_answer": TEXT,
        "answers": List(answer),
        "image_id": Value("int64"),
    }
    features |= {"answer_type": TEXT, "question_id": Value("int64"), "question": TEXT, "image": Image()}
    return write_dataset(
        data,
        "VQAv2",
        [("default", "validation", table(False), features), ("default", "testdev", table(True), features)],
    )


def write_textvqa(data: Path, n: int = 4) -> Path:
    """TextVQA validation with OCR tokens."""
    rows = []
    for i in range(n):
        rows.append(
            {
                "image_id": f"{i:016x}",
                "question_id": 34600 + i,
                "question": f"what does the Sign {i} say?",
                "question_tokens": ["what", "does", "the", "sign", "say"],
                "image": picture(i),
                "image_width": 96,
                "image_height": 64,
                "flickr_original_url": "",
                "flickr_300k_url": "",
                "answers": [colour_name(i)] * 10,
                "image_classes": ["Sign"],
                "set_name": "val",
                "ocr_tokens": ["STOP", str(i)],
            }
        )
    features = {"image_id": TEXT, "question_id": Value("int32"), "question": TEXT, "question_tokens": List(TEXT)}
    features |= {"image": Image(), "image_width": Value("int32"), "image_height": Value("int32")}
    features |= {
        "flickr_original_url": TEXT,
        "flickr_300k_url": TEXT,
        "answers": List(TEXT),
        "image_classes": List(TEXT),
    }
    features |= {"set_name": TEXT, "ocr_tokens": List(TEXT)}
    return write_dataset(data, "textvqa", [("default", "validation", rows, features)])


def write_vizwiz(data: Path, n: int = 4) -> Path:
    """VizWiz-VQA: val with ten answers, test without."""

    def table(test: bool) -> list[dict]:
        return [
            {
                "question_id": f"VizWiz_{'test' if test else 'val'}_{i:08d}",
                "image": picture(i),
                "question": f"What is thing {i}?",
                "answers": None if test else [colour_name(i)] * 6 + ["unanswerable"] * 4,
                "category": None if test else "other",
            }
            for i in range(n)
        ]

    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answers": List(TEXT), "category": TEXT}
    return write_dataset(
        data, "VizWiz-VQA", [("default", "val", table(False), features), ("default", "test", table(True), features)]
    )


WRITERS: dict[str, Callable[[Path], Path]] = {
    "gqa": write_gqa,
    "pope": write_pope,
    "mme": write_mme,
    "mmbench": write_mmbench,
    "sqa": write_sqa,
    "vqav2": write_vqav2,
    "textvqa": write_textvqa,
    "vizwiz": write_vizwiz,
}


def write_all(data: Path) -> None:
    """All sets, at their default size."""
    for write in WRITERS.values():
        write(Path(data))


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
