"""What a table or figure still lacks: the evaluation runs, their cost, and doing them one after another.

    python -m figures.reproduce.runs table1 figure2 --dry-run                              # the testbed
    python -m figures.reproduce.runs table1 --model liuhaotian/llava-v1.5-7b --protocol paper --data /data/sets --device cuda

The cost is printed first.  A run whose row is there is not repeated; an interrupted run goes on where it stopped
(eval.run).  --force does every run again.  Further arguments behind -- go to eval.run.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

import visiondrop
from eval.errors import EvaluationError
from eval.files import ROOT
from figures.data import cells, choose, pages
from figures.data.needs import Rows
from figures.data.settings import Column, Entry, Variant
from figures.reproduce import many
from visiondrop.errors import command_line
from visiondrop.plans.plan import Plan

RANDOM_SEEDS = 5

# card: (seconds beside the arithmetic of a question, FLOP/s reached, seconds of a decoding step).  3090: fitted to
# the two LLaVA-1.5 times of the paper's Table 4.  H200: an estimate.  One CPU core: float32, batches of 16, as seen on
# one machine.
CARDS = {"RTX 3090": (0.081, 58e12, 0.026), "H200": (0.035, 400e12, 0.012)}
CORE = (0.05, 3e10, 0.004)
STEPS, LOADING = 3, {"paper": 60.0, "testbed": 15.0}  # answer tokens per question; seconds to start a run


def from_rows() -> list[str]:
    """Entries of configs/tables.yaml that some page is drawn from."""
    return list(dict.fromkeys(n.table for p in pages.every().values() for n in p.needs if isinstance(n, Rows)))


@dataclass(frozen=True)
class Run:
    """One call of eval.run."""

    benchmark: str
    entry: Entry
    options: tuple[str, ...]

    def arguments(self) -> list[str]:
        """The command line, without model, protocol and places."""
        budget = [] if self.entry.is_base else ["--tokens", str(self.entry.tokens)]
        return [
            self.benchmark,
            "--method",
            self.entry.method,
            *budget,
            *(a for o in self.options for a in ("--option", o)),
        ]


def options_of(entry: Entry) -> list[tuple[str, ...]]:
    """The option lists an entry is run with: one, or one per seed for the random control."""
    plain = tuple(f"{k}={v}" for k, v in entry.options.items())
    return [(*plain, f"seed={seed}") for seed in range(RANDOM_SEEDS)] if entry.method == "random" else [plain]


def lacking(variant: Variant, model: str, table: pd.DataFrame, force: bool = False) -> list[Run]:
    """Runs without a row that fills their cell; cells without a protocol, or that cannot be run, are left out."""
    out: dict[Run, None] = {}
    for entry in (e for e in variant.entries if not e.absent):
        for column in {c.benchmark: c for c in variant.columns}.values():
            if cells.spec_of(column.benchmark, variant.protocol) is None:
                continue  # its cells say so
            for options in options_of(entry):
                if force or not _filled(variant, model, table, entry, column, options):
                    out[Run(column.benchmark, entry, options)] = None
    return list(out)


def _filled(
    variant: Variant, model: str, table: pd.DataFrame, entry: Entry, column: Column, options: tuple[str, ...]
) -> bool:
    found, reason = cells.pick(table, variant, model, entry, column)
    if reason.startswith("scored by a server"):
        return True
    seeds = [o for o in options if o.startswith("seed=")]
    wanted = [] if not seeds else [int(seeds[0].removeprefix("seed="))]
    return any(not wanted or row.get("seed", 0) == wanted[0] for row in found["options"])


def plan_of(variant: Variant, entry: Entry) -> Plan:
    """The plan of an entry on the variant's model."""
    tokens = None if entry.is_base else entry.tokens
    return visiondrop.plan(entry.method, tokens, shape=variant.shape, options=entry.options)


def seconds(run: Run, variant: Variant, card: tuple[float, float, float]) -> float:
    """Estimated duration of a run on a card: questions times (overhead + prefill + decoding), and loading."""
    spec = cells.spec_of(run.benchmark, variant.protocol)
    dims = choose.dims_of(variant)
    if dims is None or spec is None or spec.rows is None:
        return LOADING[variant.kind]
    plan = plan_of(variant, run.entry)
    beside, rate, step = card
    return LOADING[variant.kind] + spec.rows * (beside + plan.ledger(dims).flops / rate + STEPS * step)


def cost(found: list[tuple[Variant, Run]]) -> str:
    """The cost in words."""
    if not found:
        return "every row is there: nothing to run"
    lines = [f"{len(found)} runs to do"]
    stand_in = [(v, r) for v, r in found if v.kind == "testbed"]
    if stand_in:
        lines.append(
            f"  testbed: about {sum(seconds(r, v, CORE) for v, r in stand_in) / 3600:.2f} CPU-core hours (estimate)"
        )
    large = [(v, r) for v, r in found if v.kind == "paper"]
    for name, card in CARDS.items():
        if large:
            hours = sum(seconds(r, v, card) for v, r in large) / 3600
            lines.append(f"  paper's models: about {hours:.1f} GPU hours on one {name} (estimate)")
    return "\n".join(lines)


def plan_runs(names: list[str], args: argparse.Namespace) -> list[tuple[Variant, Run]]:
    """Missing runs of several tables and figures, each once."""
    table = cells.load_rows(choose.result_files(args.results))
    out: dict[tuple, tuple[Variant, Run]] = {}
    for name in names:
        variant, model = choose.chosen(name, args)
        absent = {c.benchmark for c in variant.columns if cells.spec_of(c.benchmark, variant.protocol) is None}
        if absent:
            print(
                f"{name}: no {variant.protocol} protocol of {', '.join(sorted(absent))} in configs/benchmarks.yaml yet"
            )
        for run in lacking(variant, model, table, args.force):
            out.setdefault(
                (run.benchmark, variant.protocol, run.entry.method, run.entry.tokens, run.options), (variant, run)
            )
    return list(out.values())


def eval_arguments(variant: Variant, run: Run, args: argparse.Namespace) -> list[str]:
    """All arguments of eval.run for one run."""
    model = args.model or str(ROOT / variant.models[0])
    out = [*run.arguments(), "--model", model, "--protocol", variant.protocol]
    if variant.kind == "testbed":
        shared = not plan_of(variant, run.entry).text_guided
        usual = {"--batch-size": "64" if shared else "16", "--reuse": "on" if shared else "off"}
        out += [x for name, value in usual.items() if name not in args.more for x in (name, value)]
    if variant.layout == "fixed-2880":
        out += ["--layout", variant.layout]
    for name in ("data", "device", "out"):
        if getattr(args, name, None):
            out += [f"--{name}", str(getattr(args, name))]
    return out + (["--force"] if args.force else []) + list(args.more)


def _separately(lists: Iterable[list[str]]) -> Iterator[tuple[int, int, str]]:
    """Each run in a process of its own, one after another: a large model leaves nothing on the card."""
    for number, arguments in enumerate(lists):
        yield number, subprocess.run([sys.executable, "-m", many.__name__, *arguments]).returncode, ""


class Batch:
    """Runs done one after another, without those that would only meet an error again.

    Attributes:
        failed, left: runs that failed, and runs left out; blocked: benchmarks none of whose runs can be done.
    """

    def __init__(self, found: list[tuple[Variant, Run]], args: argparse.Namespace):
        self.found, self.args, self.done = found, args, 0
        self.failed: list[str] = []
        self.left: list[str] = []
        self.blocked: set[str] = set()
        self.stopped = False

    def _name(self, run: Run) -> str:
        return " ".join(run.arguments())

    def _lists(self, runs: list[tuple[Variant, Run]], taken: list[Run]) -> Iterator[list[str]]:
        """Arguments of the runs that still make sense when their turn comes; `taken` lists those runs."""
        for variant, run in runs:
            if self.stopped or run.benchmark in self.blocked:
                self.left.append(self._name(run))
                continue
            taken.append(run)
            yield eval_arguments(variant, run, self.args)

    def do(self, bar: tqdm) -> None:
        """All runs; the testbed's share processes, those of large models are done one after another."""
        small, large = ([(v, r) for v, r in self.found if (v.kind == "testbed") == wanted] for wanted in (True, False))
        for runs, way in ((small, lambda lists: many.each(lists, self.args.jobs)), (large, _separately)):
            taken: list[Run] = []
            for number, code, text in way(self._lists(runs, taken)) if runs else ():
                self._note(taken[number], code)
                if text:
                    bar.write(text)
                bar.update()

    def _note(self, run: Run, code: int) -> None:
        if code == many.INTERRUPTED:
            raise KeyboardInterrupt
        if code == 0:
            self.done += 1
            return
        self.failed.append(self._name(run))
        if code == many.code_of(2, "benchmark"):
            self.blocked.add(run.benchmark)
        self.stopped |= code == many.code_of(2, "batch")

    def verdict(self) -> str:
        """What was done, what failed, and how to go on."""
        lines = [f"error: this run failed: {name}" for name in self.failed]
        if self.left:
            why = "every later run" if self.stopped else f"every run of {', '.join(sorted(self.blocked))}"
            lines.append(
                f"error: {len(self.left)} runs were left out, since {why} would meet the same error (it stands above); "
                f"{self.done} runs are done and kept: mend the cause and start the same command again"
            )
        return "\n".join(lines)


def do(found: list[tuple[Variant, Run]], args: argparse.Namespace) -> int:
    """All runs; one that failed is told, and what cannot escape its error is left out.

    Returns:
        0, or 2 where something failed.

    Raises:
        EvaluationError: an error that no later run can escape, of whatever table.
        KeyboardInterrupt: a run was interrupted.
    """
    batch = Batch(found, args)
    with tqdm(total=len(found), desc="runs", unit="run") as bar:
        batch.do(bar)
    verdict = batch.verdict()
    if batch.stopped:
        raise EvaluationError(verdict.removeprefix("error: "), "batch")
    if verdict:
        print(verdict, file=sys.stderr)
    return 2 if verdict else 0


def complete(found: list[tuple[Variant, Run]], args: argparse.Namespace) -> int:
    """Check that the runs can start, and do them.

    Raises:
        EvaluationError: the testbed's checkpoint is not there.
    """
    for folder in {v.models[0] for v, _ in found if not args.model}:
        if not (ROOT / folder / "config.json").is_file():
            raise EvaluationError(
                f"{folder} holds no checkpoint: train it first (bash scripts/train_testbed.sh), or give --model",
                "batch",
            )
    return do(found, args) if found else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of everything that may have to run something."""
    choose.add_arguments(parser)
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: the hub, the testbed's are drawn")
    parser.add_argument("--device", help="cpu, cuda, …")
    parser.add_argument("--dry-run", action="store_true", help="only say what is missing and what it costs")
    parser.add_argument("--force", action="store_true", help="do every run again")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="testbed: runs at a time (default: 1)")


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused or a run failed, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="python -m figures.reproduce.runs", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=from_rows())
    add_arguments(parser)
    parser.add_argument("--out", type=Path, help="results file of eval.run")
    args = parser.parse_args(argv[:split])
    args.more = argv[split + 1 :]
    try:
        found = plan_runs(args.names, args)
        print(cost(found), flush=True)
        if args.dry_run:
            print("\n".join("  " + " ".join(run.arguments()) for _, run in found))
            return 0
        return complete(found, args)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
