"""Evaluate a checkpoint on a benchmark under a visual token budget.

    python -m eval.run gqa --tokens 64 --model liuhaotian/llava-v1.5-7b
    python -m eval.run pope --tokens 576 --method none --data DIR --limit 100
    python -m eval.run mme --tokens 128 --option score=text --processes 4 --protocol paper

Prints the plan's ledger, answers the questions through lmms-eval, prints the score with its 95 % interval and appends
one row to the results file.  Answers are kept as they come under --runs: a killed run, started again with the same
settings, goes on where it stopped; a finished one is not done again unless --force is given.
"""

import argparse
import sys

from eval import benchmarks
from eval.driver.drive import drive
from eval.driver.prepare import prepare
from eval.errors import reach_of
from eval.files import reason
from eval.results.folder import RunFolder
from eval.settings import add_flags
from visiondrop.cli import add_method_arguments
from visiondrop.errors import VisionDropError
from visiondrop.reuse.tower import TowerMemory


def parser() -> argparse.ArgumentParser:
    """The command line: the settings of a run (eval/settings.py), the method, and --force."""
    names = f"benchmarks: {', '.join(benchmarks.load())}; groups of them: {', '.join(benchmarks.groups())}"
    p = argparse.ArgumentParser(prog="python -m eval.run", description=__doc__.split("\n")[0], epilog=names)
    add_flags(p)
    add_method_arguments(p, shares=True)
    p.add_argument("--force", action="store_true", help="do a finished run again; its earlier row stays")
    return p


def attempt(argv: list[str] | None = None, memory: TowerMemory | None = None) -> tuple[int, str]:
    """Do what the command line asks for.

    Args:
        memory: what the vision tower made of pictures, shared by the runs of one process (figures/reproduce/many.py).

    Returns:
        (exit code, how far an error reaches or ""): 0 done, 2 refused or failed (one sentence on stderr), 130 interrupted.
    """
    args = parser().parse_args(argv)
    try:
        drive(RunFolder(prepare(args)), args.force, memory)
    except VisionDropError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2, reach_of(error)
    except OSError as error:
        where = error.filename or "a file"
        print(f"error: {where}: {reason(error)}; the answers stored so far are kept", file=sys.stderr)
        return 2, reach_of(error)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this stopped", file=sys.stderr)
        return 130, ""
    return 0, ""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused or failed (one sentence on stderr), 130 interrupted.

    A group's name in place of a benchmark's: its benchmarks one after another; a failure that concerns one leaves the others.
    """
    first, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    members = benchmarks.groups().get(first)
    if members is None:
        return attempt(argv)[0]
    codes = []
    for name in members:
        print(f"== {name}", flush=True)
        code, reach = attempt([name, *rest])
        codes.append(code)
        if code == 130 or reach == "batch":
            break
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
