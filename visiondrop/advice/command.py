"""`visiondrop advise`: the command line of the advice."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..api import apply
from ..errors import VisionDropError
from ..families import loader
from .report import page, plot
from .run import Advice, advise
from .samples import SOURCE, read_samples
from .store import Rows

SHIPPED = ("checkpoints/testbed", "testbed_quick", 200)  # model, data and samples without arguments


def add_arguments(parser: argparse.ArgumentParser, budget: Any) -> None:
    """The options of the subcommand; `budget` reads one of --tokens."""
    parser.add_argument("--model", default=SHIPPED[0], help=f"folder or hub id (default {SHIPPED[0]}, the testbed)")
    parser.add_argument("--data", help="a folder of pictures, a .jsonl or .csv file, or testbed, testbed_quick, …")
    parser.add_argument("--methods", type=lambda t: t if t == "all" else t.split(","), help="comma-separated, or all")
    parser.add_argument("--tokens", type=lambda t: [budget(x) for x in t.split(",")], help="192,128,64 or 33%%,22%%")
    parser.add_argument("--loss", type=share, default=0.01, help="next tokens that may change (default 1%%)")
    parser.add_argument("--minutes", type=float, help="time to spend (default: until all samples are measured)")
    parser.add_argument("--out", type=Path, default=Path("advice"), help="folder of rows, plot and page")
    parser.add_argument("--question", action="append", default=[], help="one more for a folder of pictures; repeat")
    parser.add_argument("--limit", type=int, help="the first N samples")
    parser.add_argument("--max-new-tokens", type=int, default=64)


def share(text: str) -> float:
    """1% or 0.01 -> 0.01."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        if not 0 <= value < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write 1% or 0.01") from None
    return value


def command_advise(arguments: argparse.Namespace) -> Advice:
    """Measure, print the advice, write advice.txt, front.png and changed.html below --out."""
    data = arguments.data or SHIPPED[1]
    if arguments.data is None and arguments.model != SHIPPED[0]:
        raise VisionDropError("--data: give a folder of pictures, a .jsonl or a .csv file to ask this model about")
    limit = arguments.limit or (SHIPPED[2] if arguments.data is None else None)
    samples, problems = read_samples(data, arguments.question, limit)
    metric = None
    if samples[0].place.startswith(f"{data}, scene"):  # a set of the evaluation has its own metric
        metric = import_module(SOURCE).metric()
    loaded = loader().load(arguments.model, torch.float16 if torch.cuda.is_available() else torch.float32)
    advice = advise(
        loaded,
        samples,
        methods=arguments.methods,
        tokens=arguments.tokens,
        loss=arguments.loss,
        minutes=arguments.minutes,
        out=arguments.out,
        max_new_tokens=arguments.max_new_tokens,
        metric=metric,
        problems=problems,
    )
    print(advice)
    (arguments.out / "advice.txt").write_text(f"{advice}\n", encoding="utf-8")
    try:
        plot(advice, arguments.out / "front.png")
    except VisionDropError as error:
        print(error)
    with apply(loaded.model, "none", report=True) as handle:
        answers = Rows.read(arguments.out).answers
        page(advice, handle, loaded, samples, answers, arguments.out / "changed.html")
    print(f"rows, plot and the pictures that changed most: {arguments.out}")
    return advice
