"""Figure 4: what text-guided pruning keeps at the end of each LLM stage, for two questions on one picture.

    python -m figures.figure4 [--model M]          # reads results/figures/figure4-<variant>.npz (figures.reproduce.capture)

Pruned patches are pale; the outlined patches are those that the question is about, where they are known.
"""

import sys
import textwrap
from pathlib import Path

import numpy as np

import visiondrop
from eval.errors import EvaluationError
from figures.data.needs import Capture
from figures.data.pages import page
from figures.data.probe import Probe
from figures.data.scenes import Scenes
from figures.look import pictures, style
from figures.look.style import plt

BUDGET = 128


def capture(probe: Probe, scenes: Scenes) -> dict:
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


@page("figure4", Capture(capture))
def draw(arrays: dict, about: dict, name: str, out: Path) -> None:
    """One line per question: the picture, then the patches that survive each stage."""
    style.use()
    questions, stages = arrays["kept"].shape[:2]
    figure, axes = plt.subplots(questions, stages + 1, figsize=(style.PAGE, 2.35 * questions))
    figure.get_layout_engine().set(h_pad=0.08)
    for row in range(questions):
        needed = arrays["needed"][row]
        axes[row, 0].imshow(arrays["image"])
        for axis in axes[row]:
            style.bare(axis)
            if needed.any():
                pictures.outline(axis, needed, arrays["image"].shape[0])
        axes[row, 0].set_title(textwrap.fill(f"“{about['questions'][row]}”", 30), loc="left")
        axes[row, 0].set_xlabel(_answers(about, row, "\n"), loc="left")
        for stage in range(stages):
            mask = arrays["kept"][row, stage]
            pictures.kept(axes[row, stage + 1], arrays["image"], mask)
            axes[row, stage + 1].set_title(
                f"stage {stage + 1}: {mask.sum()} patches" if row == 0 else f"{mask.sum()} patches"
            )
            axes[row, stage + 1].set_xlabel(
                f"before layer {about['at'][stage]}" + (f"\n{_hit(mask, needed)} patches" if needed.any() else "")
            )
    style.save(figure, name, text(arrays, about), out)


def _answers(about: dict, row: int, between: str = ", ") -> str:
    return f"answer: {about['answers'][row]}{between}unpruned: {about['unpruned_answers'][row]}"


def _hit(mask: np.ndarray, needed: np.ndarray) -> str:
    return f"{(mask & needed).sum()} of {needed.sum()} needed"


def text(arrays: dict, about: dict) -> str:
    """Counts and the kept patches as characters."""
    lines = [
        f"model {about['model']} ({about['model_fingerprint']}), PyramidDrop with text-guided scores, "
        f"budget {about['tokens']} tokens"
    ]
    for row, question in enumerate(about["questions"]):
        lines.append(f"\nquestion: {question}\n{_answers(about, row)}")
        for stage, mask in enumerate(arrays["kept"][row]):
            needed = arrays["needed"][row]
            known = f", {_hit(mask, needed)} (chance {needed.sum() * mask.mean():.1f})" if needed.any() else ""
            lines.append(f"before layer {about['at'][stage]}: {mask.sum()} patches{known}\n{pictures.rows_text(mask)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(draw.main())
