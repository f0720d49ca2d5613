"""The driver of a run: its processes, the judge, the row, and what a person is told."""

import time
from pathlib import Path
from typing import Any

from eval import machine
from eval.benchmarks import data
from eval.driver import launch, process
from eval.driver.row import make_row
from eval.errors import EvaluationError
from eval.results import rows, unpruned
from eval.results.folder import RunFolder
from eval.scoring import judge
from visiondrop.reuse.tower import TowerMemory


def drive(folder: RunFolder, force: bool, memory: TowerMemory | None = None) -> None:
    """Do what is to be done of a run, and print and record its row.

    Inside somebody else's launcher, a process above rank 0 only answers.
    """
    rank, world = launch.world()
    if world > 1 and force:
        raise EvaluationError(f"--force does not work inside a launcher: remove {folder.path} by hand first")
    if rank > 0:
        return _member(folder)
    with folder.locked():
        row = start(folder, force, memory)
        print(summary(row, folder))
        record(folder, row)


def start(folder: RunFolder, force: bool, memory: TowerMemory | None = None) -> dict[str, Any]:
    """Do the run, or what is left of it, and return its row."""
    done = None if force else folder.row()
    if done is not None:
        commit = machine.git_state()[0]
        made = f"at commit {done['commit'][:9]}" + ("" if done["commit"] == commit else f", now {commit[:9]}")
        print(f"this run was finished on {done['date']} ({made}); --force does it again")
        return done
    if force:
        folder.empty()
    began, settings = time.monotonic(), folder.settings
    if folder.outcome() is None:
        process.quiet(folder.path, 0)
        data.check(folder.benchmark, Path(settings.data) if settings.data else None, settings.data_fingerprint)
        folder.begin()
        if settings.processes > 1 and launch.world()[1] == 1:
            launch.start(folder)
        else:
            process.run(folder, memory)
    by = judge.judge_of(folder.benchmark, settings.judge_url, settings.judge_model)
    if by is not None:
        judge.judge_run(folder, by)
    row = make_row(folder, time.monotonic() - began)
    folder.finish(row)
    return row


def _member(folder: RunFolder) -> None:
    """A process above rank 0 inside somebody else's launcher: it answers, if rank 0 is going to ask."""
    if folder.row() is None and folder.outcome() is None:
        folder.path.mkdir(parents=True, exist_ok=True)
        process.run(folder)


def record(folder: RunFolder, row: dict[str, Any]) -> None:
    """Append the row unless the results file already holds it, and say so."""
    out = Path(folder.settings.out)
    known, _ = rows.load(out)
    if any(old["checksum"] == row["checksum"] for old in known):
        print(f"its row is in {out}")
    else:
        rows.append(out, row)
        print(f"row appended to {out}")
    print(f"single answers: {folder.path / 'samples.jsonl'}")


def summary(row: dict[str, Any], folder: RunFolder) -> str:
    """The result for a person."""
    title = folder.benchmark.title
    what = f"{title} ({row['protocol']}, {row['split']}), {row['method']}, mean {row['ledger']['mean']:g} tokens"
    partial = ", partial" if row["partial"] else ""
    if row["score"] is None:
        files = ", ".join(str(folder.path / f) for f in row["upload"])
        return f"{what}: n = {row['n']}{partial}; upload {files} to {row['server']}"
    between = (
        f", 95 % interval {row['interval'][0]:.2f} … {row['interval'][1]:.2f}" if row["interval"] else ", no interval"
    )
    lines = [f"{what}: {row['score']:.2f}{between}, n = {row['n']}{partial}"]
    lines += [f"  {name} {value:.4f}" for name, value in row["metrics"].items()]
    if row.get("changed") is not None:
        lines.append(f"  {100 * row['changed']:.1f} % of the answers differ from the unpruned run's")
    if doubt := unpruned.suspicion(row):
        lines.append(f"  warning: {doubt}")
    if row["missing"]:
        lines.append(f"  the data held no question for {', '.join(row['missing'])}: counted as 0")
    return "\n".join(lines)
