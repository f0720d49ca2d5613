"""Figure 1: image-to-image against text-to-image attention over one picture, at three depths.

    python -m figures.figure1 [--model M]          # reads results/figures/figure1-<variant>.npz (figures.reproduce.capture)

Colour is a patch's score over the mean score of all patches of the same map, on a logarithmic scale; the outlined
patches are those that the question is about, where they are known.
"""

import sys
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm

from figures.data.needs import Capture
from figures.data.pages import page
from figures.data.probe import Probe
from figures.data.scenes import Scenes
from figures.look import pictures, style
from figures.look.style import plt
from visiondrop.plans.schedule import scale_layers

DEPTHS = (8, 16, 24)  # of 32

KINDS = (("visual", "image-to-image"), ("text", "text-to-image"))
LIMITS = 0.1, 10.0


def relative(scores: np.ndarray) -> np.ndarray:
    """Scores [n] over their mean."""
    return scores / scores.mean()


def capture(probe: Probe, scenes: Scenes) -> dict:
    """Text-to-image and image-to-image scores of one picture at three depths."""
    image, asked = next(iter(scenes))
    question, needed = asked[0]
    layers = scale_layers(DEPTHS, probe.layers)
    maps = [probe.received(image, question, layer, ("text", "causal")) for layer in layers]
    about = {"question": question, "answer": probe.answer(image, question), "at": list(layers)}
    return {
        "image": image,
        "needed": needed,
        "text": np.stack([m["text"] for m in maps]),
        "visual": np.stack([m["causal"] for m in maps]),
        "about": about,
    }


@page("figure1", Capture(capture))
def draw(arrays: dict, about: dict, name: str, out: Path) -> None:
    """The picture on the left, a map per depth on the right; upper row image-to-image, lower row text-to-image."""
    style.use()
    depths, grid = about["at"], about["grid"]
    figure, axes = plt.subplots(
        2, len(depths) + 1, figsize=(style.PAGE, 3.3), gridspec_kw={"width_ratios": [1.0] + [1] * len(depths)}
    )
    axes[0, 0].imshow(arrays["image"])
    style.bare(axes[0, 0])
    if arrays["needed"].any():
        pictures.outline(axes[0, 0], arrays["needed"], arrays["image"].shape[0])
    axes[0, 0].set_title("picture")
    axes[1, 0].axis("off")
    question = textwrap.fill(f"“{about['question']}”", 24)
    axes[1, 0].text(0.0, 0.95, f"{question}\n\nanswer: {about['answer']}", va="top", transform=axes[1, 0].transAxes)
    for row, (kind, label) in enumerate(KINDS):
        for column, layer in enumerate(depths, start=1):
            shown = np.clip(relative(arrays[kind][column - 1]), *LIMITS).reshape(grid, grid)
            map_axes = axes[row, column]
            mesh = map_axes.imshow(
                shown, cmap=style.MAP, norm=LogNorm(*LIMITS), extent=(-0.5, 335.5, 335.5, -0.5), interpolation="nearest"
            )
            if arrays["needed"].any():
                pictures.outline(map_axes, arrays["needed"], 336)
            style.bare(map_axes)
            map_axes.set_title(f"before layer {layer} of {about['layers']}" if row == 0 else "")
            if column == 1:
                map_axes.set_ylabel(label)
    bar = figure.colorbar(mesh, ax=axes[:, 1:], shrink=0.75, pad=0.02, extend="both")
    bar.set_label("attention received / mean over patches")
    bar.set_ticks([0.1, 0.3, 1, 3, 10], labels=["0.1", "0.3", "1", "3", "10"])
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.4)
    style.save(figure, name, text(arrays, about), out)


def text(arrays: dict, about: dict) -> str:
    """The numbers behind the maps."""
    lines = [
        f"model {about['model']} ({about['model_fingerprint']}), question: {about['question']}",
        f"answer: {about['answer']}",
    ]
    lines.append(
        "map              before layer   needed patches / mean   mean row (0 top, 1 bottom)   share of top tenth"
    )
    for kind, label in KINDS:
        for score, layer in zip(arrays[kind], about["at"]):
            share, grid = score / score.sum(), about["grid"]
            rows = np.arange(grid * grid) // grid / (grid - 1)
            needed = f"{relative(score)[arrays['needed']].mean():.2f}" if arrays["needed"].any() else "-"
            top = np.sort(share)[::-1][: grid * grid // 10].sum()
            lines.append(f"{label:<17}{layer:>8}{needed:>21}{(share * rows).sum():>24.3f}{top:>24.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(draw.main())
