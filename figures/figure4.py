"""Figure 4: what text-guided pruning keeps at the end of each LLM stage, for two questions on one picture.

    python -m figures.figure4 [--model M]          # reads results/figures/figure4-<variant>.npz (figures.reproduce.capture)

Pruned patches are pale; the outlined patches are those that the question is about, where they are known.
"""

import sys
import textwrap
from pathlib import Path

import numpy as np

from figures.look import pictures, style
from figures.look.style import plt


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


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused."""
    return pictures.command("figure4", __doc__, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
