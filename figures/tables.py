"""Tables 1–3 from result rows: paper | ours | delta, intervals, n, tokens and FLOPs, footnotes for every empty cell.

    python -m figures.tables 1                                              # the testbed, from results/*.jsonl
    python -m figures.tables controls
    python -m figures.tables 2 --model liuhaotian/llava-v1.6-vicuna-7b --protocol paper

Writes results/tables/table<N>-<variant>[-offline].{md,tex,csv}.  Nothing is run here (see figures.reproduce.runs) and nothing is
random: the same rows give the same bytes.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

import visiondrop
from eval import benchmarks
from eval.errors import EvaluationError
from eval.files import ROOT
from eval.results import fingerprint
from figures.data import cells, settings
from figures.data.settings import Variant
from figures.look import render
from visiondrop.errors import VisionDropError, command_line
from visiondrop.plans.flops import LLAVA_7B, VIDEO_LLAVA_7B, ModelDims

CONTROLS = "controls"  # a table of the testbed only
RESULTS, OUT = ROOT / "results", ROOT / "results" / "tables"


def result_files(given: list[Path] | None) -> list[Path]:
    """The files to read; default: results/*.jsonl."""
    return given if given else sorted(RESULTS.glob("*.jsonl"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments shared by all tables and by the figures made of rows."""
    parser.add_argument("--model", help="as given to eval.run; default: the testbed")
    parser.add_argument(
        "--protocol",
        choices=benchmarks.PROTOCOLS,
        help="default: paper for the paper's models, offline for the testbed",
    )
    parser.add_argument("--results", type=Path, nargs="+", metavar="FILE", help="rows; default: results/*.jsonl")


def chosen(name: str, args: argparse.Namespace) -> tuple[Variant, str]:
    """The variant under the protocol asked for, and the model's name in rows."""
    variant, model = settings.variant(name, args.model)
    return (replace(variant, protocol=args.protocol) if args.protocol else variant), model


def stem(variant: Variant) -> str:
    """File name without suffix: table1-paper, table1-paper-offline, table1-testbed."""
    usual = settings.load()[variant.name][variant.kind].protocol
    return f"{variant.name}-{variant.kind}" + ("" if variant.protocol == usual else f"-{variant.protocol}")


def dims_of(variant: Variant) -> ModelDims | None:
    """Widths for the FLOPs: those of the 7B model, or the committed stand-in's own (None while it is not there)."""
    if variant.kind == "paper":
        return VIDEO_LLAVA_7B if variant.shape.kind == "video" else LLAVA_7B
    folder = ROOT / variant.models[0]
    if not (folder / "config.json").is_file():
        return None
    return fingerprint.checkpoint(str(folder)).dims


def costs(variant: Variant, lines: pd.DataFrame) -> pd.DataFrame:
    """Per entry, as text: mean tokens (of the rows' ledgers, else of the plan), FLOPs and remarks of the plan."""
    dims, unit = dims_of(variant), 1e12 if variant.kind == "paper" else 1e9
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
    number = "" if variant.name == CONTROLS else variant.name.replace("table", "Table ") + ": "
    title = number + variant.title + ("" if variant.kind == "paper" else " (testbed)")
    out = {".csv": render.csv(every)}
    for suffix, style, write in ((".md", render.MARKDOWN, render.markdown), (".tex", render.LATEX, render.latex)):
        notes = render.Notes()
        text = render.body(every, extra, style, notes)
        out[suffix] = write(title, caption(variant, model, table), render.heads(every, style, unit), text, notes)
    return out


def save(files: dict[str, str], folder: Path, name: str) -> None:
    """Write the files and say where.

    Raises:
        EvaluationError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in files.items():
            (folder / f"{name}{suffix}").write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be written: {error.strerror}; choose another --out") from None
    print(f"wrote {folder / name}.{{{','.join(sorted(s.strip('.') for s in files))}}}")


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m figures.tables", description=__doc__.split("\n")[0])
    parser.add_argument("table", choices=("1", "2", "3", CONTROLS))
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    variant, model = chosen(args.table if args.table == CONTROLS else f"table{args.table}", args)
    files = build(variant, model, cells.load_rows(result_files(args.results)))
    save(files, args.out, stem(variant))
    print(files[".md"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
