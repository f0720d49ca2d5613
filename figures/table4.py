"""Table 4: FLOPs at full size in the paper's convention, and time and memory as measured on a named machine.

    python -m figures.table4                                 # draws from results/efficiency/*.jsonl
    bash scripts/tables/table4.sh [--device cuda|cpu] [--size 7b|small]       # measures first, with random weights

FLOPs need no machine and no checkpoint: they follow from the plans (visiondrop.plans.flops, checked against torch's counter).
Times need no checkpoint either, because every length follows from the plan.  A time is set beside the paper's only when
it was taken at the paper's size on the paper's card.
"""

import sys
from pathlib import Path

import pandas as pd

import visiondrop
from figures.data import paper
from figures.data.choose import TABLES
from figures.data.needs import Timings
from figures.data.pages import page
from figures.look import render
from visiondrop.plans.shape import VisualShape

WEIGHTS_GB = 14.126  # 7.063 B parameters in 16 bits: what the paper's memory holds beside activations and caches
PAPER_CARD = "3090"
ONE, NEXT = VisualShape(), VisualShape(patches=576, units=5, nominal_units=5)
WITH_NEWLINES = VisualShape(patches=576, units=5, nominal_units=5, length=2880 + 48)
NEWLINES = "the paper's value counts one newline token per row of the 2 x 2 grid of a square image"
FIXED = "without newline tokens; the layout whose token counts the paper prints"
DERIVED = "the derived schedule 480/352/258/190; the authors' LLaVA-NeXT code is not released"
FLOPS = (  # label, method, budget, shape, row of the paper's table, remark
    ("LLaVA-1.5", "none", None, ONE, 0, ""),
    ("VisionDrop", "visiondrop", 64, ONE, 1, ""),
    ("LLaVA-NeXT, 2880 + 48 newlines", "none", None, WITH_NEWLINES, 2, NEWLINES),
    ("LLaVA-NeXT, fixed-2880", "none", None, NEXT, None, FIXED),
    ("VisionDrop", "visiondrop", 320, NEXT, 3, DERIVED),
)


def flops() -> pd.DataFrame:
    """One line per row of the table, both conventions in TFLOPs, and the paper's."""
    printed, out = paper.load("table4.csv"), []
    for label, method, tokens, shape, row, remark in FLOPS:
        ledger = visiondrop.plan(method, tokens, shape=shape).ledger()
        base = visiondrop.plan("none", shape=WITH_NEWLINES if shape.units > 1 else ONE).ledger()
        told = float(printed.loc[row, "tflops"]) if row is not None else float("nan")
        ours = ledger.flops / 1e12
        out.append(
            {
                "label": label,
                "method": method,
                "tokens": tokens or shape.nominal,
                "mean": ledger.mean,
                "paper": told,
                "ours": ours,
                "delta": ours - told,
                "delta_percent": 100 * (ours / told - 1),
                "lean": ledger.lean_flops / 1e12,
                "ratio": base.flops / ledger.flops,
                "lean_ratio": base.lean_flops / ledger.lean_flops,
                "note": remark,
            }
        )
    return pd.DataFrame(out)


def flops_markdown(table: pd.DataFrame) -> list[str]:
    """The FLOPs as Markdown lines."""
    head = ["", "budget", "mean tokens", "paper", "ours", "Δ", "fewer", "lean", "lean, fewer"]
    lines, notes = [], render.Notes()
    for row in table.itertuples():
        delta = render.DASH if pd.isna(row.paper) else f"{row.delta:+.3f} ({row.delta_percent:+.2f} %)"
        label = row.label + (f"<sup>{notes.mark(row.note)}</sup>" if row.note else "")
        cells = [label, str(row.tokens), f"{row.mean:.1f}", render.number(row.paper), f"{row.ours:.3f}", delta]
        lines.append([*cells, f"{row.ratio:.2f}×", f"{row.lean:.3f}", f"{row.lean_ratio:.2f}×"])
    return [*render.markdown_table(head, lines), *render.footnotes(notes)]


def published_markdown() -> list[str]:
    """The paper's memory and time, in words."""
    rows = paper.load("table4.csv").itertuples()
    told = "; ".join(
        f"{r.label} {r.tokens}: {r.memory_gb - WEIGHTS_GB:.2f} GB above the weights, {r.time_ms} ms" for r in rows
    )
    return [f"Paper (RTX 3090, 24 GB; memory less {WEIGHTS_GB} GB of weights): {told}."]


def _spread(row: pd.Series, phase: str) -> str:
    digits = 1 if row[phase] >= 10 else 2
    return f"{row[phase]:.{digits}f} ({row[f'{phase}_min']:.{digits}f} – {row[f'{phase}_max']:.{digits}f})"


def times_markdown(table: pd.DataFrame) -> list[str]:
    """One block per machine, size and number of crops."""
    lines: list[str] = []
    where = ["device", "dtype", "attention", "clock", "threads", "hidden", "layers", "units"]
    for key, block in table.groupby(where, sort=False):
        device, dtype, attention, clock, threads, hidden, layers, units = key
        size = "7B" if (hidden, layers) == (4096, 32) else f"small stand-in (width {hidden}, {layers} layers)"
        shape = "576 visual tokens" if units == 1 else f"{units} crops, {576 * units} visual tokens"
        lines += [
            f"**{device}**, {size}, random weights, {dtype}, {attention}, {shape}, 63 text tokens; {clock}"
            + (f", {threads} thread{'s' if threads > 1 else ''}" if "cpu" in clock else "")
            + f"; medians of {block['rounds'].min()} rounds (min – max); measured {block['date'].max()[:10]}.",
            "",
        ]
        if (hidden, layers) != (4096, 32) or PAPER_CARD not in device:
            lines += [
                "Not comparable with the paper's times: another "
                + ("size; the tower is CLIP-L and outweighs the small decoder." if hidden != 4096 else "card."),
                "",
            ]
        head = [
            "batch",
            "method",
            "budget",
            "encode ms",
            "select ms",
            "prefill ms",
            "decode ms / step",
            "decode tokens/s",
            "memory above weights, GB",
            "prefill, faster",
            "encode + prefill, faster",
            "of the FLOP ratio",
        ]
        body = []
        for _, row in block.iterrows():
            budget = render.DASH if pd.isna(row["tokens"]) else f"{row['tokens']:.0f}"
            memory = render.DASH if pd.isna(row["memory_gb"]) else f"{row['memory_gb']:.3f}"
            phases = [_spread(row, p) for p in ("encode", "select", "prefill", "decode")]
            speeds = [row["prefill_speedup"], row["speedup"]]
            speed = [f"{x:.2f}×" if pd.notna(x) else render.DASH for x in speeds]
            rate = f"{row['decode_tokens_per_s']:.1f}"
            realised = f"{100 * row['realised']:.0f} %" if pd.notna(row["realised"]) else render.DASH
            body.append([str(row["batch"]), row["method"], budget, *phases, rate, memory, *speed, realised])
        lines += render.markdown_table(head, body)
        lines.append("")
    return lines


CAPTION = [
    "FLOPs in T, one prefill of one image and 63 text tokens at 7B size. *Ours* counts as the paper does: "
    "multiply-add 2, attention in full, all 24 tower layers, the head on every position, and for VisionDrop the "
    "released code's recomputed projections. *Lean* counts what is needed: 23 tower layers, causal attention, the "
    "head on the last position, scores from projections at hand.",
]


def build(times: pd.DataFrame) -> dict[str, str]:
    """Suffix -> file content, from the plans and the timings (figures.data.measured)."""
    table = flops()
    text = [
        "# Table 4: efficiency",
        "",
        *CAPTION,
        "",
        *flops_markdown(table),
        "",
        "## Time and memory",
        "",
        *published_markdown(),
        "",
    ]
    text += times_markdown(times) if len(times) else ["No measurements yet: bash scripts/tables/table4.sh.", ""]
    csv = table.round(4).to_csv(index=False, lineterminator="\n")
    out = {".md": "\n".join(text).rstrip() + "\n", ".csv": csv, ".tex": latex(table)}
    if len(times):
        out["-times.csv"] = times.round(4).to_csv(index=False, lineterminator="\n")
    return out


def latex(table: pd.DataFrame) -> str:
    """The FLOPs as a booktabs tabular."""
    lines = []
    for row in table.itertuples():
        told = render.DASH if pd.isna(row.paper) else f"{row.paper:.2f}"
        delta = render.DASH if pd.isna(row.paper) else f"{row.delta:+.3f}"
        ours = [f"{row.ours:.3f}", delta, f"{row.ratio:.2f}$\\times$", f"{row.lean:.3f}"]
        lines.append([row.label, str(row.tokens), told, *ours])
    return "\n".join(render.booktabs(["", "budget", "paper", "ours", "Δ", "fewer", "lean"], lines)) + "\n"


@page("table4", Timings("table4"), folder=TABLES)
def write(times: pd.DataFrame, name: str, out: Path) -> None:
    """Write and print the table."""
    files = build(times)
    render.save(files, out, name)
    print(files[".md"])


if __name__ == "__main__":
    sys.exit(write.main())
