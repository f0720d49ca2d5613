"""Figure 6: ablations of VisionDrop at a mean of 128 tokens per LLM layer (22.2 % of 576).

    python -m figures.figure6 [--model M] [--protocol P]

(a) components: V visual-only scores in the LLM (else text-guided), M merging (else dominant tokens only), E encoder
stage.  The arms without E use layers [2, 8, 16] of 32, as Figure 2 does, because [8, 16, 24] cannot go below a mean of
144 without the encoder stage.  (b) share of patches kept by the encoder stage, the mean held at 128.  (c) dominant to
contextual tokens.
"""

import sys
from pathlib import Path

import pandas as pd

from figures.data.needs import Rows
from figures.data.pages import page
from figures.data.settings import Variant
from figures.look import style, values
from figures.look.style import plt

PANELS = (
    ("a", "V visual-only, M merging, E encoder stage"),
    ("b", "kept by the encoder stage (%)"),
    ("c", "dominant : contextual"),
)
CAPTION = (
    "The arms without E prune before layers [2, 8, 16] of 32 (scaled to the model's depth), because [8, 16, 24] cannot "
    "go below a mean of 144 tokens without the encoder stage; all arms have a mean of 128."
)


@page("figure6", Rows("figure6"))
def draw(variant: Variant, lines: pd.DataFrame, name: str, out: Path) -> None:
    """Three panels that share the y-axis."""
    style.use()
    found, what = values.overall(variant, lines)
    widths = [sum(e.label.startswith(f"{p}: ") for e in variant.entries) for p, _ in PANELS]
    figure, axes = plt.subplots(
        1, 3, figsize=(style.PAGE, 2.3), sharey=True, gridspec_kw={"width_ratios": [1.35 * widths[0], *widths[1:]]}
    )
    base = values.of(lines, variant, lambda e: e.is_base)[0]
    for axis, (panel, label) in zip(axes, PANELS):
        numbers = values.of(lines, variant, lambda e: e.label.startswith(f"{panel}: "))
        mine, names = found.loc[numbers], [variant.entries[i].label[3:] for i in numbers]
        style_of = {"linestyle": "none"} if panel == "a" else {"linestyle": "-"}
        axis.errorbar(
            range(len(names)),
            mine["ours"],
            yerr=values.errors(mine),
            color=style.BLUE,
            marker="o",
            elinewidth=0.9,
            **style_of,
        )
        published = names.index({"a": "V+M+E", "b": "33.3", "c": "7:1"}[panel])
        axis.errorbar(
            [published],
            [mine["ours"].iloc[published]],
            yerr=values.errors(mine.iloc[[published]]),
            marker="s",
            color=style.RED,
            elinewidth=0.9,
            linestyle="none",
            zorder=5,
        )
        axis.axhline(found.loc[base, "ours"], color=style.BLACK, linestyle=":", linewidth=0.9)
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.set_xlabel(label)
        style.letter(axis, panel)
    axes[0].set_ylabel(what if len(what) < 30 else "mean ratio to unpruned (%)")
    axes[0].plot([], [], marker="s", color=style.RED, linestyle="none", label="VisionDrop as published")
    axes[0].plot([], [], color=style.BLACK, linestyle=":", linewidth=0.9, label="unpruned")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    style.save(figure, name, values.numbers(lines, found, what) + "\n\n" + CAPTION, out)


if __name__ == "__main__":
    sys.exit(draw.main())
