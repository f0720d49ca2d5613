"""Figure 3: what survives pruning after a shallow layer, over several pictures and on average over the data set.

    python -m figures.figure3 [--model M]          # reads results/figures/figure3-<variant>.npz (figures.reproduce.capture)

Upper part: kept patches of the first pictures, text-guided and visual-only; pruned patches are pale.  Lower part: how
often each patch is kept, for the text-guided score and for the visual-only score under its three masks.  A score
without positional bias keeps every row of patches equally often.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

from figures.data.needs import Capture
from figures.data.pages import page
from figures.data.probe import RULES, Probe, top
from figures.data.scenes import Scenes
from figures.look import pictures, style
from figures.look.style import plt
from visiondrop.plans.schedule import scale_layers

SHARE = 0.25  # of the patches kept
SHALLOW = 2  # layer count of 32 after which patches are pruned
PICTURES = 5  # shown

NAMES = {
    "text": "text-guided",
    "causal": "visual-only\n(causal, official)",
    "queries": "visual-only\n(per seeing query)",
    "bidirectional": "visual-only\n(no mask)",
}
SHOWN = ("text", "causal")


def capture(probe: Probe, scenes: Scenes) -> dict:
    """Patches kept by each rule after a shallow layer: of the first pictures, and how often over `scenes.count` of them."""
    (layer,) = scale_layers((SHALLOW,), probe.layers)
    keep = round(SHARE * probe.grid**2)
    images, kept, total, used = [], [], {rule: np.zeros(probe.grid**2) for rule in RULES}, 0
    for image, asked in tqdm(scenes, total=scenes.count, desc="figure 3, pictures"):
        found = {rule: top(s, keep) for rule, s in probe.received(image, asked[0][0], layer).items()}
        for rule in RULES:
            total[rule] += found[rule]
        if used < PICTURES:
            images.append(image)
            kept.append(np.stack([found[rule] for rule in RULES]))
        used += 1
        if used == scenes.count:
            break
    about = {"at": layer, "keep": keep, "pictures": used, "rules": list(RULES)}
    return {
        "images": np.stack(images),
        "kept": np.stack(kept),
        "retention": np.stack([total[r] / used for r in RULES]),
        "about": about,
    }


@page("figure3", Capture(capture))
def draw(arrays: dict, about: dict, name: str, out: Path) -> None:
    """Rows: pictures by rule, then mean maps, then the profile over rows of patches."""
    style.use()
    rules, count = about["rules"], len(arrays["images"])
    figure = plt.figure(figsize=(style.PAGE, 5.25))
    upper, lower = figure.subfigures(2, 1, height_ratios=[2.95, 2.3], hspace=0.0)
    axes = upper.subplots(len(SHOWN), count, squeeze=False)
    for row, rule in enumerate(SHOWN):
        for column in range(count):
            pictures.kept(axes[row, column], arrays["images"][column], arrays["kept"][column, rules.index(rule)])
        axes[row, 0].set_ylabel(NAMES[rule])
    upper.suptitle(
        f"(a) the {about['keep']} of {about['grid'] ** 2} patches kept before layer {about['at']}",
        x=0.01,
        ha="left",
        fontsize=8,
        fontweight="bold",
    )
    below = lower.subplots(1, len(rules) + 1, gridspec_kw={"width_ratios": [1] * len(rules) + [1.15]})
    lower.suptitle(
        f"(b) how often a patch is kept, {about['pictures']} pictures", x=0.01, ha="left", fontsize=8, fontweight="bold"
    )
    grid = about["grid"]
    for axis, rule in zip(below, rules):
        mesh = axis.imshow(arrays["retention"][rules.index(rule)].reshape(grid, grid), cmap=style.MAP, vmin=0, vmax=1)
        axis.set_title(NAMES[rule])
        style.bare(axis)
    place = below[0].inset_axes((0.55, -0.3, 3.0, 0.075))
    place.set_in_layout(False)
    bar = lower.colorbar(
        mesh, cax=place, orientation="horizontal", label="share of pictures in which the patch is kept"
    )
    bar.outline.set_linewidth(0.4)
    _profile(below[-1], arrays["retention"], about)
    lower.legend(
        *below[-1].get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=6.5, columnspacing=1.0
    )
    style.save(figure, name, text(arrays, about), out)


LINES = {
    "text": (style.ORANGE, "-", "v"),
    "causal": (style.BLUE, "-", "o"),
    "queries": (style.GREEN, "--", "s"),
    "bidirectional": (style.SKY, "-.", "^"),
}
SHORT = {"text": "text", "causal": "causal", "queries": "per query", "bidirectional": "no mask"}


def _profile(axis, retention: np.ndarray, about: dict) -> None:
    """Mean retention of each row of patches, top of the picture at the top."""
    grid = about["grid"]
    for rule, share in zip(about["rules"], retention):
        color, line, marker = LINES[rule]
        axis.plot(
            share.reshape(grid, grid).mean(1),
            np.arange(grid),
            line,
            color=color,
            marker=marker,
            markevery=(3, 6),
            markersize=3.5,
            label=SHORT[rule],
        )
    axis.axvline(about["keep"] / grid**2, color=style.GREY, linestyle=":", linewidth=0.8, label="even")
    axis.set_ylim(grid - 0.5, -0.5)
    axis.set_xlim(0, 1.04)
    axis.set_title("mean per row")
    axis.set_ylabel("patch row (0 = top)")
    axis.set_xlabel("share kept")
    axis.grid(True, axis="x")


def bias(share: np.ndarray, grid: int) -> dict[str, float]:
    """Positional bias of a retention map: mean row of kept patches, share of them in each quarter, rank correlation.

    Args:
        share: [n] how often each patch is kept, raster order.
    """
    weight = share / share.sum()
    rows = np.arange(grid * grid) // grid
    quarters = [float(weight[(rows >= q * grid // 4) & (rows < (q + 1) * grid // 4)].sum()) for q in range(4)]
    return {
        "mean_row": float((weight * rows).sum() / (grid - 1)),
        "quarters": quarters,
        "spearman": float(spearmanr(np.arange(grid * grid), share).statistic) if share.std() > 0 else 0.0,
    }


def text(arrays: dict, about: dict) -> str:
    """The bias in numbers."""
    lines = [
        f"model {about['model']} ({about['model_fingerprint']}); {about['keep']} of {about['grid'] ** 2} patches kept "
        f"before layer {about['at']}"
    ]
    lines.append(
        f"{about['pictures']} pictures. Without bias: mean row 0.500, quarters 0.250, rank correlation with raster "
        "position 0."
    )
    lines.append(f"{'score':<16}{'mean row':>10}   share of kept patches per quarter, top to bottom   rank correlation")
    for rule, share in zip(about["rules"], arrays["retention"]):
        found = bias(share, about["grid"])
        quarters = "  ".join(f"{q:.3f}" for q in found["quarters"])
        lines.append(f"{rule:<16}{found['mean_row']:>10.3f}   {quarters:<49}{found['spearman']:>+18.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(draw.main())
