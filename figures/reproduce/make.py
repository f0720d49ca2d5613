"""One table or figure, or all: run what is missing, then draw.

    python -m figures.reproduce.make table1                       # the testbed; also behind scripts/tables and scripts/figures
    python -m figures.reproduce.make all --dry-run                # the cost of everything
    python -m figures.reproduce.make table1 --model liuhaotian/llava-v1.5-7b --protocol paper --data /data/sets --device cuda

The cost is printed before anything runs.  Everything goes on where it stopped; --force does it again; --draw-only runs
nothing.  Arguments behind -- go to eval.run.
"""

import argparse
import importlib
import sys
from pathlib import Path

from eval.errors import reach_of
from eval.files import ROOT
from figures.data import settings
from figures.look import style
from figures.reproduce import capture, runs, timings
from visiondrop.errors import VisionDropError, command_line

ROWS = {"table1": "table1", "table2": "table2", "table3": "table3", "controls": "controls", "figure2": "figure2", "figure6": "figure6",
        "accuracy-tokens": "table1", "accuracy-time": "table1"}  # fmt: skip
CAPTURED = ("figure1", "figure3", "figure4")
NAMES = (
    "table1",
    "table2",
    "table3",
    "table4",
    "controls",
    *(f"figure{i}" for i in range(1, 7)),
    "accuracy-tokens",
    "accuracy-time",
)


def draw(name: str, args: argparse.Namespace) -> int:
    """Call the module that draws; exit code."""
    shared = ["--out", str(args.folder)] if args.folder else []
    for option in ("model", "protocol"):
        if getattr(args, option) and (name in ROWS or option == "model" and name in CAPTURED):
            shared += [f"--{option}", getattr(args, option)]
    if args.results and name in ROWS:
        shared += ["--results", *map(str, args.results)]
    if name in CAPTURED:
        shared += ["--data", str(capture_of(name, args))]
    if name in ("table1", "table2", "table3", "controls"):
        return importlib.import_module("figures.tables").main([name.removeprefix("table"), *shared])
    return importlib.import_module(f"figures.{name.replace('-', '_')}").main(shared)


def capture_of(name: str, args: argparse.Namespace) -> Path:
    """Where a figure's capture lies."""
    return capture.file_of(name, args.model, args.folder or style.OUT)


def prepare(name: str, args: argparse.Namespace) -> int:
    """Run what the table or figure lacks; exit code."""
    if name in ROWS:
        found = runs.plan_runs([ROWS[name]], args)
        code = runs.complete(found, args)
        return (
            max(code, timings.measure("methods", args.device, args.size, args.force))
            if name == "accuracy-time"
            else code
        )
    if name in CAPTURED:
        given = [("--model", args.model), ("--device", args.device), ("--out", str(args.folder or ""))]
        given += [("--image", i) for i in args.image or []] + [("--question", q) for q in args.question or []]
        more = [x for pair in given if pair[1] for x in pair]
        if not capture_of(name, args).is_file() or args.force:
            folder = settings.variant("figure2", args.model)[0].models[0]
            if not args.model and not (ROOT / folder / "config.json").is_file():
                print(
                    f"{folder} holds no checkpoint: train it first (bash scripts/train_testbed.sh), or give --model",
                    file=sys.stderr,
                )
                return 2
            return capture.main([name, *more, *(["--force"] if args.force else [])])
    if name == "table4":
        return timings.measure("table4", args.device, args.size, args.force)
    return 0


def belongs(name: str, model: str | None) -> bool:
    """Whether a table or figure is about this kind of model; says so where it is not."""
    try:
        settings.variant(ROWS.get(name, "figure2" if name in CAPTURED else "table1"), model)
    except VisionDropError as error:
        if name in ROWS or name in CAPTURED:
            print(f"left out: {name} ({error})")
            return False
    return True


def one(name: str, args: argparse.Namespace) -> int:
    """Prepare and draw; a table is drawn even when its runs failed, with the reasons in its cells."""
    print(f"== {name}", flush=True)
    code = 0
    if not args.draw_only:
        try:
            code = prepare(name, args)
        except VisionDropError as error:
            if reach_of(error) == "batch":
                raise
            print(f"error: {error}", file=sys.stderr)
            code = 2
    if code == 130:
        raise KeyboardInterrupt
    return max(code, draw(name, args))


def total(names: list[str], args: argparse.Namespace) -> str:
    """The cost of everything that is missing."""
    wanted = list(dict.fromkeys(ROWS[n] for n in names if n in ROWS))
    found = runs.plan_runs(wanted, args)
    lines = [runs.cost(found)]
    missing = [n for n in names if n in CAPTURED and (args.force or not capture_of(n, args).is_file())]
    if missing:
        lines.append(f"  {', '.join(missing)}: a model's scores on up to 200 pictures, about 2 minutes on the testbed")
    for name, what in (("table4", "table4"), ("accuracy-time", "methods")):
        if name in names:
            lines.append("  " + timings.cost(what, args.device, args.size, args.force))
    if args.dry_run:
        lines += ["  " + " ".join(run.arguments()) for _, run in found]
    return "\n".join(lines)


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 something could not be made (it is named), 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="python -m figures.reproduce.make", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=(*NAMES, "all"))
    runs.add_arguments(parser)
    parser.add_argument("--size", choices=timings.SIZES, help="of Table 4's timings; default: 7b on cuda, small on cpu")
    parser.add_argument("--folder", type=Path, help="write there instead of results/tables and results/figures")
    parser.add_argument(
        "--image", action="append", help="Figures 1, 3, 4: picture files instead of the testbed's scenes"
    )
    parser.add_argument("--question", action="append", help="Figures 1, 3, 4: questions about them")
    parser.add_argument("--draw-only", action="store_true", help="run nothing, draw from what is there")
    args = parser.parse_args(argv[:split])
    args.more = argv[split + 1 :]
    args.out = (
        args.results[0] if args.results and len(args.results) == 1 else None
    )  # new rows join the file that is read
    try:
        names = [n for n in NAMES if belongs(n, args.model)] if "all" in args.names else args.names
        if not args.draw_only:
            print(total(names, args), flush=True)
        if args.dry_run:
            return 0
        codes = {name: one(name, args) for name in names}
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this stopped", file=sys.stderr)
        return 130
    failed = [name for name, code in codes.items() if code]
    if failed:
        print(f"not complete: {', '.join(failed)} (the reasons are above)", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
