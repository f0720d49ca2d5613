"""Writers of small self-made data sets of documents, reasoning and grounding, in the schemas of the hub sets that lmms-eval
reads (tests/support/datasets_small.py says how such a folder looks).

The columns that a task reads are certain; the others are the hub's as far as known.
"""

from collections.abc import Callable
from pathlib import Path

from datasets import Features, Image, List, Value

from tests.support.datasets_small import COLOURS, TEXT, colour_name, picture, write_dataset

Whole = Value("int64")


def write_ai2d(data: Path, n: int = 6) -> Path:
    """AI2D: three options, the answer is the option's number as text."""
    rows = [
        {
            "question": f"Which colour is thing {i}?",
            "options": list(COLOURS)[:3],
            "answer": str(i % 3),
            "image": picture(i),
        }
        for i in range(n)
    ]
    features = {"question": TEXT, "options": List(TEXT), "answer": TEXT, "image": Image()}
    return write_dataset(data, "ai2d", [("default", "test", rows, features)])


def write_chartqa(data: Path, n: int = 6) -> Path:
    """ChartQA: words and numbers, asked by people and by rules."""
    kinds = ("human_test", "augmented_test")
    rows = [
        {
            "type": kinds[i % 2],
            "question": f"What color is thing {i}?",
            "answer": "42" if i == 2 else colour_name(i),
            "image": picture(i),
        }
        for i in range(n)
    ]
    return write_dataset(
        data, "ChartQA", [("default", "test", rows, {"type": TEXT, "question": TEXT, "answer": TEXT, "image": Image()})]
    )


def write_docvqa(data: Path, n: int = 6) -> Path:
    """DocVQA and InfographicVQA, two configurations of one data set; two questions a page."""

    def row(i: int) -> dict:
        return {
            "questionId": str(i),
            "question": f"What does the Sign {i} say?",
            "image": picture(i // 2),
            "answers": [colour_name(i), colour_name(i).capitalize()],
            "data_split": "val",
        }

    pages = [row(i) | {"question_types": ["layout"], "docId": i // 2, "ucsf_document_id": "x"} for i in range(n)]
    graphics = [row(i) | {"answer_type": ["single span"], "image_url": f"u{i // 2}", "ocr": "[]"} for i in range(n)]
    shared = {"questionId": TEXT, "question": TEXT, "image": Image(), "answers": List(TEXT), "data_split": TEXT}
    documents = shared | {"question_types": List(TEXT), "docId": Whole, "ucsf_document_id": TEXT}
    return write_dataset(
        data,
        "DocVQA",
        [
            ("DocVQA", "validation", pages, documents),
            (
                "InfographicVQA",
                "validation",
                graphics,
                shared | {"answer_type": List(TEXT), "image_url": TEXT, "ocr": TEXT},
            ),
        ],
    )


def write_ocrbench(data: Path, n: int = 6) -> Path:
    """OCRBench: several right answers, kinds of questions from its own list."""
    kinds = ("Regular Text Recognition", "Scene Text-centric VQA", "Digit String Recognition")
    rows = [
        {
            "dataset": "IIIT5K",
            "question": f"what does the Sign {i} say?",
            "question_type": kinds[i % 3],
            "answer": [colour_name(i), "a" if i % 2 else "yes"],
            "image": picture(i),
        }
        for i in range(n)
    ]
    features = {"dataset": TEXT, "question": TEXT, "question_type": TEXT, "answer": List(TEXT), "image": Image()}
    return write_dataset(data, "OCRBench", [("default", "test", rows, features)], owner="echo840")


def write_mmstar(data: Path, n: int = 8) -> Path:
    """MMStar: uneven kinds, so that the mean over kinds is not the mean over questions."""
    kinds = (("math", "geometry"), ("math", "statistical reasoning"), ("coarse perception", "image emotion"))
    rows = []
    for i in range(n):
        category, kind = kinds[0 if i < n // 2 else 1 + i % 2]
        rows.append(
            {
                "index": i,
                "question": f"Which colour is thing {i}?\nOptions: A: red, B: green, C: blue, D: yellow",
                "image": picture(i),
                "answer": "ABC"[i % 3],
                "category": category,
                "l2_category": kind,
                "meta_info": {"source": "drawn", "split": "val", "image_path": ""},
            }
        )
    features = {
        "index": Whole,
        "question": TEXT,
        "image": Image(),
        "answer": TEXT,
        "category": TEXT,
        "l2_category": TEXT,
    }
    features |= {"meta_info": {"source": TEXT, "split": TEXT, "image_path": TEXT}}
    return write_dataset(data, "MMStar", [("default", "val", rows, features)], owner="Lin-Chen")


def write_mmmu(data: Path, n: int = 6) -> Path:
    """MMMU: options as the text of a list, one question of two pictures, one without options."""
    rows = []
    for i in range(n):
        open_ended = i == n - 1
        rows.append(
            {
                "id": f"validation_{('Art', 'Math')[i % 2]}_{i}",
                "question": f"Which color is thing {i}? <image 1>" + (" <image 2>" if i == 1 else ""),
                "options": "[]" if open_ended else str(list(COLOURS)[:3]),
                "explanation": "",
                **{f"image_{k}": picture(i) if k == 1 or (k == 2 and i == 1) else None for k in range(1, 8)},
                "img_type": "['Drawings']",
                "answer": colour_name(i) if open_ended else "ABC"[i % 3],
                "topic_difficulty": "Easy",
                "question_type": "open" if open_ended else "multiple-choice",
                "subfield": "drawn",
            }
        )
    features = dict.fromkeys(("id", "question", "options", "explanation"), TEXT)
    features |= {f"image_{k}": Image() for k in range(1, 8)}
    features |= dict.fromkeys(("img_type", "answer", "topic_difficulty", "question_type", "subfield"), TEXT)
    return write_dataset(data, "MMMU", [("default", "validation", rows, features)])


def write_seed(data: Path, n: int = 7) -> Path:
    """SEED-Bench: every third question is about a video, which comes as a list of frames."""
    rows = []
    for i in range(n):
        video = i % 3 == 2
        rows.append(
            {
                "answer": "ABCD"[i % 4],
                **dict(zip(("choice_a", "choice_b", "choice_c", "choice_d"), COLOURS, strict=True)),
                "data_id": str(i),
                "data_type": "video" if video else "image",
                "question": f"Which colour is thing {i}?",
                "question_id": str(i),
                "question_type_id": 1,
                "image": [picture(i), picture(i + 1)] if video else [picture(i)],
                "segment": [0, 1] if video else [],
            }
        )
    features = dict.fromkeys(("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_id", "data_type"), TEXT)
    features |= {"question": TEXT, "question_id": TEXT, "question_type_id": Value("int16"), "image": List(Image())}
    return write_dataset(data, "SEED-Bench", [("default", "test", rows, features | {"segment": List(Whole)})])


def write_realworldqa(data: Path, n: int = 6) -> Path:
    """RealWorldQA: letters, words, and how to answer inside the question."""
    rows = [
        {
            "question": f"Which color is thing {i}?\nA. red\nB. green\nC. blue",
            "answer": "ABC"[i % 3] if i % 2 else colour_name(i),
            "image_path": f"{i}.webp",
            "image": picture(i),
        }
        for i in range(n)
    ]
    return write_dataset(
        data,
        "RealWorldQA",
        [("default", "test", rows, {"question": TEXT, "answer": TEXT, "image_path": TEXT, "image": Image()})],
    )


def write_refcoco(data: Path, name: str = "RefCOCO", splits: tuple[str, ...] = ("val", "testA", "testB")) -> Path:
    """A set of the RefCOCO family: boxes as x, y, width, height in pixels, several descriptions a box."""
    rows = [
        {
            "question_id": str(i),
            "image": picture(i),
            "question": "Please describe the region.",
            "answer": [f"the square {i}", f"thing {i}"][: 1 + i % 2],
            "segmentation": [1.0, 2.0],
            "bbox": [8.0 + 4 * i, 16.0, 32.0, 16.0],
            "iscrowd": 0,
            "file_name": f"COCO_train2014_{i // 2:012d}.jpg",
        }
        for i in range(4)
    ]
    features: Features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": List(TEXT)}
    features |= {"segmentation": List(Value("float32")), "bbox": List(Value("float32")), "iscrowd": Value("int8")}
    features |= {"file_name": TEXT}
    return write_dataset(data, name, [("default", split, rows, features) for split in splits])


def write_mmvet(data: Path, n: int = 5) -> Path:
    """MM-Vet: right answers with its marks between parts, one question without a picture."""
    rows = [
        {
            "question_id": f"v1_{i}",
            "image": None if i == n - 1 else picture(i),
            "question": f"What color is thing {i}?",
            "answer": f"{colour_name(i)}<AND>bright" if i % 2 else colour_name(i),
            "image_source": "drawn",
            "capability": "rec,spat",
        }
        for i in range(n)
    ]
    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": TEXT, "image_source": TEXT}
    return write_dataset(data, "MMVet", [("default", "test", rows, features | {"capability": TEXT})])


WRITERS: dict[str, Callable[[Path], Path]] = {
    "ai2d": write_ai2d,
    "chartqa": write_chartqa,
    "docvqa": write_docvqa,
    "ocrbench": write_ocrbench,
    "mmstar": write_mmstar,
    "mmmu": write_mmmu,
    "seed": write_seed,
    "realworldqa": write_realworldqa,
    "mmvet": write_mmvet,
    "refcoco": write_refcoco,
    "refcoco_plus": lambda data: write_refcoco(data, "RefCOCOplus"),
    "refcocog": lambda data: write_refcoco(data, "RefCOCOg", ("val", "test")),
}


def write_all(data: Path) -> None:
    """All sets, at their default size."""
    for write in WRITERS.values():
        write(Path(data))
