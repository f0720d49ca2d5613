"""One table or figure, or all: run what is missing, then draw.

    python -m figures.reproduce.make table1                       # the testbed; also behind scripts/tables and scripts/figures
    python -m figures.reproduce.make all --dry-run                # the cost of everything
    python -m figures.reproduce.make table1 --model liuhaotian/llava-v1.5-7b --protocol paper --data /data/sets --device cuda

The cost is printed before anything runs.  Everything goes on where it stopped; --force does it again; --draw-only runs
nothing.  Arguments after -- go to eval.run.
"""

import argparse
import functools
import sys
from pathlib import Path

from eval.errors import reach_of
from eval.files import ROOT
from figures.data import captures, pages, settings
from figures.data.needs import Capture, Need, Rows, Timings
from figures.data.pages import Page
from figures.reproduce import capture, runs, timings
from visiondrop.errors import VisionDropError, command_line


def draw(page: Page, args: argparse.Namespace) -> int:
    """Draw a page from what is there; exit code."""
    shared = ["--out", str(args.folder)] if args.folder else []
    for need in page.needs:
        values = {"model": [args.model], "protocol": [args.protocol], "results": args.results or []}
        if isinstance(need, Capture):
            values["data"] = [capture_of(page, args)]
        given = {name: [str(v) for v in values[name] if v] for name in need.options}
        shared += [x for name, words in given.items() if words for x in (f"--{name}", *words)]
    return page.main(shared)


def capture_of(page: Page, args: argparse.Namespace) -> Path:
    """Where a figure's capture is."""
    return captures.file_of(page.name, args.model, args.folder or page.folder)


@functools.singledispatch
def prepare(need: Need, page: Page, args: argparse.Namespace) -> int:
    """Make what a page needs and is not there; exit code.  A need that follows from code alone needs nothing."""
    return 0


@prepare.register
def _rows(need: Rows, page: Page, args: argparse.Namespace) -> int:
    return runs.complete(runs.plan_runs([need.table], args), args)


@prepare.register
def _timings(need: Timings, page: Page, args: argparse.Namespace) -> int:
    return timings.measure(need.what, args.device, args.size, args.force)


@prepare.register
def _capture(need: Capture, page: Page, args: argparse.Namespace) -> int:
    if capture_of(page, args).is_file() and not args.force:
        return 0
    folder = settings.variant("figure2", args.model)[0].models[0]
    if not args.model and not (ROOT / folder / "config.json").is_file():
        print(
            f"{folder} holds no checkpoint: train it first (bash scripts/train_testbed.sh), or give --model",
            file=sys.stderr,
        )
        return 2
    given = [("--model", args.model), ("--device", args.device), ("--out", str(args.folder or ""))]
    given += [("--image", i) for i in args.image or []] + [("--question", q) for q in args.question or []]
    more = [x for pair in given if pair[1] for x in pair]
    return capture.main([page.name, *more, *(["--force"] if args.force else [])])


def belongs(page: Page, model: str | None) -> bool:
    """Whether a table or figure is about this kind of model; says so where it is not."""
    try:
        for need in page.needs:
            if isinstance(need, Rows | Capture):
                settings.variant(need.table if isinstance(need, Rows) else "figure2", model)
    except VisionDropError as error:
        print(f"left out: {page.name} ({error})")
        return False
    return True


def one(page: Page, args: argparse.Namespace) -> int:
    """Prepare and draw; a table is drawn even when its runs failed, with the reasons in its cells."""
    print(f"== {page.name}", flush=True)
    code = 0
    if not args.draw_only:
        try:
            code = max((prepare(need, page, args) for need in page.needs), default=0)
        except VisionDropError as error:
            if reach_of(error) == "batch":
                raise
            print(f"error: {error}", file=sys.stderr)
            code = 2
    if code == 130:
        raise KeyboardInterrupt
    return max(code, draw(page, args))


def total(chosen: list[Page], args: argparse.Namespace) -> str:
    """The cost of everything that is missing."""
    needs = [(page, need) for page in chosen for need in page.needs]
    found = runs.plan_runs(list(dict.fromkeys(need.table for _, need in needs if isinstance(need, Rows))), args)
    lines = [runs.cost(found)]
    captured = [page for page, need in needs if isinstance(need, Capture)]
    missing = [page.name for page in captured if args.force or not capture_of(page, args).is_file()]
    if missing:
        lines.append(f"  {', '.join(missing)}: a model's scores on up to 200 pictures, about 2 minutes on the testbed")
    for _, need in needs:
        if isinstance(need, Timings):
            lines.append("  " + timings.cost(need.what, args.device, args.size, args.force))
    if args.dry_run:
        lines += ["  " + " ".join(run.arguments()) for _, run in found]
    return "\n".join(lines)


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 something could not be made (it is named), 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    every = pages.every()
    parser = argparse.ArgumentParser(prog="python -m figures.reproduce.make", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=(*every, "all"))
    runs.add_arguments(parser)
    parser.add_argument("--size", choices=timings.SIZES, help="of Table 4's timings; default: 7b on cuda, small on cpu")
    parser.add_argument("--folder", type=Path, help="write there instead of results/tables and results/figures")
    parser.add_argument(
        "--image", action="append", help="figures of captures: picture files instead of the testbed's scenes"
    )
    parser.add_argument("--question", action="append", help="figures of captures: questions about them")
    parser.add_argument("--draw-only", action="store_true", help="run nothing, draw from what is there")
    args = parser.parse_args(argv[:split])
    args.more = argv[split + 1 :]
    args.out = (
        args.results[0] if args.results and len(args.results) == 1 else None
    )  # new rows join the file that is read
    try:
        chosen = [p for p in every.values() if "all" in args.names or p.name in args.names]
        if "all" in args.names:
            chosen = [p for p in chosen if belongs(p, args.model)]
        if not args.draw_only:
            print(total(chosen, args), flush=True)
        if args.dry_run:
            return 0
        codes = {page.name: one(page, args) for page in chosen}
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this stopped", file=sys.stderr)
        return 130
    failed = [name for name, code in codes.items() if code]
    if failed:
        print(f"not complete: {', '.join(failed)} (the reasons are above)", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
