"""What a page is made of: the rows' files, the variant under the protocol asked for, and the names that follow.

Every page of rows has the arguments --model, --protocol and --results; this file adds and reads them.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from eval import benchmarks
from eval.files import ROOT
from eval.results import fingerprint
from figures.data import cells, settings
from figures.data.settings import Variant
from visiondrop.plans.flops import LLAVA_7B, VIDEO_LLAVA_7B, ModelDims

RESULTS = ROOT / "results"
TABLES, FIGURES = RESULTS / "tables", RESULTS / "figures"


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
    """The variant under the protocol asked for, and the model's name in rows.

    Raises:
        EvaluationError: the model belongs to another table.
    """
    variant, model = settings.variant(name, args.model)
    return (replace(variant, protocol=args.protocol) if args.protocol else variant), model


def with_rows(name: str, args: argparse.Namespace) -> tuple[Variant, str, pd.DataFrame]:
    """(variant, model, all rows); the variant has an entry for every method that the rows hold at its budgets.

    Raises:
        EvaluationError: the model belongs to another table, or a file of rows is missing or damaged.
    """
    variant, model = chosen(name, args)
    table = cells.load_rows(result_files(args.results))
    return cells.with_new_methods(variant, model, table), model, table


def stem(variant: Variant) -> str:
    """File name without suffix: table1-paper, table1-paper-offline, table1-testbed."""
    usual = settings.load()[variant.name][variant.kind].protocol
    return f"{variant.name}-{variant.kind}" + ("" if variant.protocol == usual else f"-{variant.protocol}")


def dims_of(variant: Variant) -> ModelDims | None:
    """Dimensions for the FLOPs: those of the 7B model, or the committed stand-in's own (None while it is not there)."""
    if variant.kind == "paper":
        return VIDEO_LLAVA_7B if variant.shape.kind == "video" else LLAVA_7B
    folder = ROOT / variant.models[0]
    if not (folder / "config.json").is_file():
        return None
    return fingerprint.checkpoint(str(folder)).dims
