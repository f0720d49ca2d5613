"""The parts of Figures 1, 3 and 4 that need a model: scores and kept patches, written to results/figures/*.npz.

    python -m figures.reproduce.capture figure1 figure3 figure4                       # the testbed, its validation scenes
    python -m figures.reproduce.capture figure4 --model liuhaotian/llava-v1.5-7b --image photo.jpg --question "…" --question "…"

A file holds arrays and, under `about`, a JSON text with the model's fingerprint and everything else a caption says.
Drawing reads these files only.  The pictures of the testbed are the first validation scenes that fit, chosen by rule.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

import visiondrop
from eval.errors import EvaluationError
from figures.data import settings
from figures.look.style import OUT
from figures.reproduce.probe import RULES, Probe, square, top
from visiondrop.errors import command_line
from visiondrop.plans.schedule import scale_layers

SHARE = 0.25  # of the patches kept in Figure 3
SHALLOW = 2  # layer count of 32 after which Figure 3 prunes
DEPTHS = (8, 16, 24)  # of 32, shown in Figure 1
BUDGET = 128  # of Figure 4
PICTURES = 5  # shown in Figure 3


class Scenes:
    """Pictures with questions: the testbed's validation scenes, or files and questions from the command line."""

    def __init__(self, images: list[str] | None, questions: list[str] | None, side: int):
        self.images, self.questions, self.side = images, questions or ["What is in the image?"], side

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[tuple[str, np.ndarray]]]]:
        """(picture uint8 [H, W, 3], [(question, needed patches bool [n]; all False where unknown)])."""
        if self.images:
            nothing = np.zeros((self.side // 14) ** 2, dtype=bool)
            for file in self.images:
                yield square(file, self.side), [(q, nothing) for q in self.questions]
            return
        from testbed.data.sets import draw_set

        for _, scene, asked in draw_set("validation"):
            owner = scene.labels.things
            yield scene.image, [(q.text, np.isin(owner, sorted({t for hop in q.things for t in hop}))) for q in asked]


def figure1(probe: Probe, scenes: Scenes) -> dict:
    """Text-to-image and image-to-image scores of one picture at three depths."""
    image, asked = next(iter(scenes))
    question, needed = asked[0]
    layers = scale_layers(DEPTHS, probe.layers)
    maps = [probe.received(image, question, layer, ("text", "causal")) for layer in layers]
    about = {"question": question, "answer": probe.answer(image, question), "at": list(layers)}
    return {"image": image, "needed": needed, "text": np.stack([m["text"] for m in maps]),
            "visual": np.stack([m["causal"] for m in maps]), "about": about}  # fmt: skip


def figure3(probe: Probe, scenes: Scenes, count: int) -> dict:
    """Patches kept by each rule after a shallow layer: of the first pictures, and how often over `count` of them."""
    (layer,) = scale_layers((SHALLOW,), probe.layers)
    keep = round(SHARE * probe.grid**2)
    images, kept, total, used = [], [], {rule: np.zeros(probe.grid**2) for rule in RULES}, 0
    for image, asked in tqdm(scenes, total=count, desc="figure 3, pictures"):
        found = {rule: top(s, keep) for rule, s in probe.received(image, asked[0][0], layer).items()}
        for rule in RULES:
            total[rule] += found[rule]
        if used < PICTURES:
            images.append(image)
            kept.append(np.stack([found[rule] for rule in RULES]))
        used += 1
        if used == count:
            break
    about = {"at": layer, "keep": keep, "pictures": used, "rules": list(RULES)}
    return {
        "images": np.stack(images),
        "kept": np.stack(kept),
        "retention": np.stack([total[r] / used for r in RULES]),
        "about": about,
    }


def figure4(probe: Probe, scenes: Scenes) -> dict:
    """Patches that text-guided PyramidDrop keeps after each stage, for two questions on one picture."""
    image, pair = next(((i, _two_places(a)) for i, a in scenes if _two_places(a)), (None, None))
    if pair is None:
        raise EvaluationError("Figure 4 needs two questions on one picture: give --question twice")
    kept, answers = [], []
    with visiondrop.apply(probe.model, method="pyramiddrop", tokens=BUDGET, report=True) as handle:
        for question, _ in pair:
            handle.reset()
            probe.prefill(image, question)
            stages = [np.isin(np.arange(probe.grid**2), s.kept().numpy()) for s in handle.report.stages]
            kept.append(np.stack(stages))
            handle.reset()
            answers.append(probe.answer(image, question))
        at = [s.layer for s in handle.plan.stages]
    unpruned = [probe.answer(image, question) for question, _ in pair]
    about = {
        "questions": [q for q, _ in pair],
        "answers": answers,
        "unpruned_answers": unpruned,
        "at": at,
        "tokens": BUDGET,
    }
    return {"image": image, "needed": np.stack([n for _, n in pair]), "kept": np.stack(kept), "about": about}


def _two_places(asked: list) -> list | None:
    """The first two questions whose needed patches do not touch (unknown needs never do), or None."""
    for i, first in enumerate(asked):
        for second in asked[i + 1 :]:
            if not (first[1] & second[1]).any():
                return [first, second]
    return None


def write(found: dict, probe: Probe, file: Path) -> None:
    """Write a capture.

    Raises:
        EvaluationError: the file cannot be written.
    """
    about = json.dumps({**probe.identity(), **found.pop("about")}, ensure_ascii=False, sort_keys=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, about=np.array(about), **found)
    except OSError as error:
        raise EvaluationError(f"{file} cannot be written: {error.strerror}; choose another --out") from None
    print(f"wrote {file}")


def read(file: Path) -> tuple[dict, dict]:
    """(arrays, about) of a capture.

    Raises:
        EvaluationError: the file is missing or damaged.
    """
    try:
        with np.load(file) as data:
            arrays = {name: data[name] for name in data.files}
        return arrays, json.loads(str(arrays.pop("about")))
    except FileNotFoundError:
        name = file.name.split("-")[0]
        raise EvaluationError(
            f"there is no {file}: make it with bash scripts/figures/{name}.sh, or python -m figures.reproduce.capture {name}"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(
            f"{file} is damaged ({error}): delete it and run python -m figures.reproduce.capture again"
        ) from None


def file_of(figure: str, model: str | None, folder: Path = OUT) -> Path:
    """Where a figure's capture lies: figure1-testbed.npz, figure1-paper.npz."""
    return folder / f"{figure}-{settings.variant('figure2', model)[0].kind}.npz"


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m figures.reproduce.capture", description=__doc__.split("\n")[0])
    parser.add_argument("figures", nargs="+", choices=("figure1", "figure3", "figure4"))
    parser.add_argument("--model", help="checkpoint folder or hub id; default: the testbed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--image", action="append", help="picture files instead of the testbed's scenes")
    parser.add_argument("--question", action="append")
    parser.add_argument("--count", type=int, default=200, help="pictures of Figure 3's mean map")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--force", action="store_true", help="make a capture again that is there")
    args = parser.parse_args(argv)
    wanted = [f for f in args.figures if args.force or not file_of(f, args.model, args.out).is_file()]
    if not wanted:
        print("all captures are there; --force makes them again")
        return 0
    probe = Probe(args.model or str(settings.ROOT / settings.variant("figure2")[0].models[0]), args.device)
    scenes = Scenes(args.image, args.question, probe.grid * 14)
    for name in wanted:
        found = (
            figure3(probe, scenes, args.count)
            if name == "figure3"
            else {"figure1": figure1, "figure4": figure4}[name](probe, scenes)
        )
        write(found, probe, file_of(name, args.model, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
