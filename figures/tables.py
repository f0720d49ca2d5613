"""Tables 1–3 from result rows: paper | ours | delta, intervals, n, tokens and FLOPs, footnotes for every empty cell.

    python -m figures.tables 1                                              # the testbed, from results/*.jsonl
    python -m figures.tables controls
    python -m figures.tables 2 --model liuhaotian/llava-v1.6-vicuna-7b --protocol paper

Writes results/tables/table<N>-<variant>[-offline].{md,tex,csv}.  Nothing is run here (see figures.reproduce.runs) and nothing is
random: the same rows give the same bytes.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

import visiondrop
from figures.data import cells, choose, pages
from figures.data.choose import TABLES
from figures.data.needs import Table
from figures.data.pages import page
from figures.data.settings import Variant
from figures.look import render
from visiondrop.errors import VisionDropError, command_line

OURS = ("controls", "pretrained", "grounded")  # tables of a testbed only


def costs(variant: Variant, lines: pd.DataFrame) -> pd.DataFrame:
    """Per entry, as text: mean tokens (of the rows' ledgers, else of the plan), FLOPs and remarks of the plan."""
    dims, unit = choose.dims_of(variant), 1e12 if variant.kind == "paper" else 1e9
    out = []
    for number, entry in enumerate(variant.entries):
        means = sorted(lines.loc[lines["entry"] == number, "mean_tokens"].dropna().unique())
        try:
            plan = visiondrop.plan(
                entry.method, None if entry.is_base else entry.tokens, shape=variant.shape, options=entry.options
            )
        except VisionDropError as error:
            plan, notes = None, [str(error)]
        else:
            notes, means = list(plan.notes), means or [plan.ledger().mean]
        mean = " … ".join(f"{m:.1f}" for m in means[:: max(1, len(means) - 1)]) or render.DASH
        flops = f"{plan.ledger(dims).flops / unit:.3f}" if plan and dims else render.DASH
        out.append({"mean": mean, "flops": flops, "note": " ".join(notes)})
    return pd.DataFrame(out)


CAPTIONS = {
    "ratios": "Avg. is the mean over its columns of our value over our unpruned value, in %, where all are there.",
    "values": "Avg. is the plain mean over its columns, where all are there.",
}


def caption(variant: Variant, model: str, table: pd.DataFrame) -> list[str]:
    """What a reader must know before the numbers."""
    mine = table[table["model"] == model]
    made = f"rows of {mine['date'].min()[:10]} to {mine['date'].max()[:10]}" if len(mine) else "no rows yet"
    lines = [
        f"Model `{model}`, protocol {variant.protocol}, {made}. Budgets are mean visual tokens per LLM layer. "
        + CAPTIONS[variant.average]
    ]
    if variant.kind == "testbed":
        lines.append(
            "A small stand-in trained on drawn scenes, not a reproduction of the paper's models; brackets are 95 % "
            "intervals."
        )
    else:
        lines.append(
            "Paper, ours, and their difference Δ; brackets are 95 % intervals of ours. FLOPs: prefill of one image and "
            "63 text tokens in the paper's convention, our formula."
        )
    specs = [cells.spec_of(c.benchmark, variant.protocol) for c in variant.columns]
    if any(spec is not None and spec.counts == "judged" for spec in specs):
        lines.append("Answers are judged by a language model: a difference from the paper contains that of the judges.")
    return lines


def build(variant: Variant, model: str, table: pd.DataFrame) -> dict[str, str]:
    """Suffix -> file content.

    Args:
        table: rows as `cells.load_rows` gives them.
    """
    lines = cells.long_table(variant, model, table)
    every = pd.concat([lines, cells.averages(variant, lines)], ignore_index=True)
    extra, unit = costs(variant, lines), "TFLOPs" if variant.kind == "paper" else "GFLOPs"
    number = "" if variant.name in OURS else variant.name.replace("table", "Table ") + ": "
    title = number + variant.title + ("" if variant.kind == "paper" else " (testbed)")
    out = {".csv": render.csv(every)}
    for suffix, style, write in ((".md", render.MARKDOWN, render.markdown), (".tex", render.LATEX, render.latex)):
        notes = render.Notes()
        text = render.body(every, extra, style, notes)
        out[suffix] = write(title, caption(variant, model, table), render.heads(every, style, unit), text, notes)
    return out


@page("pretrained", Table("pretrained"), folder=TABLES)
@page("grounded", Table("grounded"), folder=TABLES)
@page("controls", Table("controls"), folder=TABLES)
@page("table3", Table("table3"), folder=TABLES)
@page("table2", Table("table2"), folder=TABLES)
@page("table1", Table("table1"), folder=TABLES)
def write(variant: Variant, model: str, table: pd.DataFrame, name: str, out: Path) -> None:
    """Write and print a table."""
    files = build(variant, model, table)
    render.save(files, out, name)
    print(files[".md"])


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m figures.tables", description=__doc__.split("\n")[0])
    parser.add_argument("table", choices=("1", "2", "3", *OURS))
    write.add_arguments(parser)
    args = parser.parse_args(argv)
    pages.get(args.table if args.table in OURS else f"table{args.table}").run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
