"""Evaluate a checkpoint on a benchmark under a visual token budget.

    python -m eval.run gqa --tokens 64 --model liuhaotian/llava-v1.5-7b
    python -m eval.run pope --tokens 576 --method none --data DIR --limit 100
    python -m eval.run mme --tokens 128 --option score=text --processes 4 --protocol paper

Prints the plan's ledger, answers the questions through lmms-eval, prints the score with its 95 % interval and appends
one row to the results file.  Answers are kept as they come under --runs: a killed run, started again with the same
settings, goes on where it stopped; a finished one is not done again unless --force is given.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import visiondrop
from eval import benchmarks
from eval.benchmarks import data
from eval.driver import evaluate, launch
from eval.driver.folder import empty, locked, note_session, now
from eval.driver.settings import Settings, number
from eval.errors import EvaluationError, reach_of
from eval.files import ROOT
from eval.models.tower_memory import TowerMemory
from eval.results import fingerprint, rows
from eval.results.answers import reason
from eval.scoring import judge, scores
from llava.anyres import LAYOUTS, check_layout
from visiondrop.cli import add_method_arguments, method_options
from visiondrop.doctor import require_evaluation
from visiondrop.errors import VisionDropError
from visiondrop.methods.registry import check_options

ATTENTION = ("sdpa", "eager", "flash_attention_2")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m eval.run", description=__doc__.split("\n")[0])
    p.add_argument("benchmark", help="a name in configs/benchmarks.yaml: " + ", ".join(benchmarks.load()))
    add_method_arguments(p)
    p.add_argument("--model", help="checkpoint folder or hub id (default: the benchmark's 7B model)")
    p.add_argument("--layout", choices=LAYOUTS, help="LLaVA-NeXT: how pictures are cut")
    p.add_argument(
        "--protocol", default="offline", help="offline: local splits scored here; paper: the paper's splits and prompts"
    )
    p.add_argument("--limit", type=int, help="only the first N questions; the row is marked partial")
    p.add_argument("--batch-size", type=int, default=1, help="questions per generate call")
    p.add_argument(
        "--reuse", choices=("on", "off"), default="off", help="questions of one image share its pruned cache"
    )
    p.add_argument("--compile", choices=("on", "off"), default="off", help="static shapes: CUDA graphs, torch.compile")
    p.add_argument("--processes", type=int, default=1, help="data-parallel processes, one whole model each")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the data sets; default: the hub")
    p.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="auto: float16 on cuda, else float32",
    )
    p.add_argument("--device", help="cpu, cuda, cuda:N, or auto (one model over all cards); default: cuda if any")
    p.add_argument("--attn", choices=ATTENTION, default="sdpa", help="attention implementation")
    p.add_argument("--conversation", help="conversation template (default: the benchmark's)")
    p.add_argument("--judge-url", metavar="URL", help="OpenAI-compatible endpoint that judges free answers (videos)")
    p.add_argument("--judge-model", metavar="NAME", help=f"its model; a key is taken from ${judge.KEY_VARIABLE}")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=ROOT / "results" / "local.jsonl", help="results file")
    p.add_argument("--runs", type=Path, default=ROOT / "results" / "runs", help="folder for answers and samples")
    p.add_argument("--force", action="store_true", help="do a finished run again; its earlier row stays")
    return p


def prepare(args: argparse.Namespace) -> Settings:
    """Check everything that can be checked before a model is loaded, and print the ledger.

    Raises:
        VisionDropError: an argument, the data, the checkpoint or an output place is not usable.
    """
    _check_environment()
    rank, world = launch.world()
    benchmark = benchmarks.get(args.benchmark, args.protocol)
    benchmark.check_limit(args.limit)
    for name in ("batch_size", "processes"):
        if getattr(args, name) < 1:
            raise EvaluationError(f"--{name.replace('_', '-')} {getattr(args, name)}: give a positive number")
    options = {name: number(value) for name, value in method_options(args).items()}
    check_options(args.method, options)  # raises with the closest names
    out = rows.check_writable(args.out)
    _check_folder(args.runs)
    folder = args.data.resolve() if args.data else data.drawn(benchmark, args.runs)
    data_fingerprint = data.fingerprint_of(benchmark, folder)
    _judge(benchmark, args.judge_url, args.judge_model)
    checkpoint = fingerprint.checkpoint(args.model or benchmark.default_model)
    if args.layout is not None:
        _check_layout(args.layout, checkpoint.config)
    _show_ledger(args, options, checkpoint, quiet=rank != 0)
    device, dtype = _placement(args)
    settings = Settings(
        benchmark=benchmark.name,
        protocol=benchmark.protocol,
        task=benchmark.task,
        method=args.method,
        tokens=args.tokens,
        options=options,
        model=checkpoint.path,
        model_name=checkpoint.name,
        model_fingerprint=checkpoint.fingerprint,
        data=str(folder) if folder else None,
        data_fingerprint=data_fingerprint,
        limit=args.limit,
        batch_size=args.batch_size,
        processes=world if world > 1 else args.processes,
        dtype=dtype,
        device=device,
        attention=args.attn,
        conversation=args.conversation or benchmark.conversation,
        seed=args.seed,
        runs=str(args.runs.resolve()),
        out=str(out),
        reuse=args.reuse,
        compile=args.compile,
        layout=args.layout,
        judge_url=args.judge_url,
        judge_model=args.judge_model,
    )
    if world == 1:
        launch.check(settings)
    return settings


def _check_environment() -> None:
    try:
        require_evaluation()
    except VisionDropError as error:
        raise EvaluationError(str(error), "batch") from None


def _judge(benchmark: benchmarks.Benchmark, url: str | None, model: str | None) -> "judge.Judge | None":
    """The judge that was named, or None for benchmarks without one; nothing is sent."""
    if not benchmark.judged:
        if url or model:
            raise EvaluationError(f"--judge-url: {benchmark.title} under protocol {benchmark.protocol} needs no judge")
        return None
    if not (url and model):
        raise EvaluationError(
            f"{benchmark.title} under protocol {benchmark.protocol} is scored by a judge: give --judge-url and "
            "--judge-model (or --protocol offline, which compares words)"
        )
    return judge.Judge(url, model)


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EvaluationError(
            f"output folder {folder} cannot be written: {reason(error)}; choose another --runs", "batch"
        ) from None


def _check_layout(layout: str, config: dict[str, Any]) -> None:
    """What the model will be asked, as far as config.json tells."""
    hub = config.get("model_type") == "llava_next"
    ratio = "anyres" if hub else config.get("image_aspect_ratio", "pad")
    check_layout(layout, ratio, newline=hub or "unpad" in str(config.get("mm_patch_merge_type")))


def _show_ledger(
    args: argparse.Namespace, options: dict[str, Any], checkpoint: fingerprint.Checkpoint, quiet: bool
) -> None:
    """Plan and print before anything is loaded; an unreachable budget fails here."""
    shape = checkpoint.visual_shape(args.layout)
    if shape is None:
        return
    plan = visiondrop.plan(args.method, args.tokens, shape=shape, options=options)
    if not quiet:
        print(plan.ledger(checkpoint.dims), flush=True)


def _placement(args: argparse.Namespace) -> tuple[str, str]:
    """Device and dtype with their defaults filled in."""
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not torch.cuda.is_available():
        raise EvaluationError(f"--device {device} was given and torch finds no card; use --device cpu", "batch")
    dtype = args.dtype if args.dtype != "auto" else ("float32" if device == "cpu" else "float16")
    return device, dtype


def start(settings: Settings, force: bool, memory: TowerMemory | None = None) -> dict[str, Any]:
    """Do the run, or what is left of it, and return its row."""
    folder = settings.folder
    if (folder / "row.json").exists() and not force:
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
        commit = fingerprint.git_state()[0]
        made = f"at commit {row['commit'][:9]}" + ("" if row["commit"] == commit else f", now {commit[:9]}")
        print(f"this run was finished on {row['date']} ({made}); --force does it again")
        return row
    if force:
        empty(folder)
    began = time.monotonic()
    if not (folder / "outcome.json").exists():
        evaluate.quiet(folder, 0)
        benchmark = benchmarks.get(settings.benchmark, settings.protocol)
        data.check(benchmark, Path(settings.data) if settings.data else None, settings.data_fingerprint)
        evaluate.clear_products(folder)
        note_session(settings)
        if settings.processes > 1 and launch.world()[1] == 1:
            launch.start(settings)
        else:
            evaluate.run(settings, memory)
    benchmark = benchmarks.get(settings.benchmark, settings.protocol)
    if benchmark.judged:
        judge.judge_run(folder, _judge(benchmark, settings.judge_url, settings.judge_model))
    row = make_row(settings, time.monotonic() - began)
    evaluate.write_whole(folder / "row.json", json.dumps(row, ensure_ascii=False, indent=1))
    return row


def make_row(settings: Settings, duration: float) -> dict[str, Any]:
    """The sealed row of a run whose outcome.json and samples.jsonl are there."""
    folder = settings.folder
    benchmark = benchmarks.get(settings.benchmark, settings.protocol)
    outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    samples = evaluate.read_samples(folder)
    score, missing = scores.headline(benchmark, outcome["metrics"])
    between, how = None, "none: scored by a server"
    uploads: list[str] = []
    if score is not None:
        parts = scores.terms(benchmark, samples)
        scores.check_recount(benchmark, parts, score)
        between, how = scores.interval(parts)
    else:
        uploads = sorted(f.relative_to(folder).as_posix() for f in folder.glob(benchmark.upload))
        if not uploads:
            raise EvaluationError(f"{benchmark.task} wrote no {benchmark.upload} in {folder}; the answers are kept")
    commit, dirty = fingerprint.git_state()
    by = _judge(benchmark, settings.judge_url, settings.judge_model)
    copied = "benchmark protocol task method tokens options limit dtype attention batch_size reuse processes seed"
    return rows.seal(
        {
            **{name: getattr(settings, name) for name in [*copied.split(), "conversation", "model_fingerprint"]},
            "run": settings.run,
            "folder": folder.name,
            "split": benchmark.split,
            "model": settings.model_name,
            "data": settings.data_fingerprint,
            "questions": fingerprint.of_values([[s["doc_id"], s["prompt"], s["target"]] for s in samples]),
            "ledger": outcome["ledger"],
            "compile": outcome.get("compile", settings.compile),
            "n": outcome["n"],
            "n_full": benchmark.rows,
            "partial": settings.limit is not None,
            "score": score,
            "metrics": outcome["metrics"],
            "interval": between,
            "interval_method": how,
            "missing": missing,
            "upload": uploads,
            "server": by.name if by else benchmark.server,
            "device": "cpu" if settings.device == "cpu" else "cuda",
            "device_name": fingerprint.device_name(settings.device),
            "versions": fingerprint.versions(),
            "commit": commit,
            "dirty": dirty,
            "sessions": json.loads((folder / "sessions.json").read_text(encoding="utf-8")),
            "date": now(),
            "duration": round(duration, 1),
        }
    )


def record(settings: Settings, row: dict[str, Any]) -> None:
    """Append the row unless the file already holds it, and say so."""
    out = Path(settings.out)
    known, _ = rows.load(out)
    if any(old["checksum"] == row["checksum"] for old in known):
        print(f"its row is in {out}")
    else:
        rows.append(out, row)
        print(f"row appended to {out}")
    print(f"single answers: {settings.folder / 'samples.jsonl'}")


def summary(row: dict[str, Any], folder: Path) -> str:
    """The result for a person."""
    title = benchmarks.get(row["benchmark"], row["protocol"]).title
    what = f"{title} ({row['protocol']}, {row['split']}), {row['method']}, mean {row['ledger']['mean']:g} tokens"
    partial = ", partial" if row["partial"] else ""
    if row["score"] is None:
        files = ", ".join(str(folder / f) for f in row["upload"])
        return f"{what}: n = {row['n']}{partial}; upload {files} to {row['server']}"
    between = (
        f", 95 % interval {row['interval'][0]:.2f} … {row['interval'][1]:.2f}" if row["interval"] else ", no interval"
    )
    lines = [f"{what}: {row['score']:.2f}{between}, n = {row['n']}{partial}"]
    lines += [f"  {name} {value:.4f}" for name, value in row["metrics"].items()]
    if row["missing"]:
        lines.append(f"  the data held no question for {', '.join(row['missing'])}: counted as 0")
    return "\n".join(lines)


def _member(settings: Settings) -> None:
    """A process above rank 0 inside somebody else's launcher: it only answers, if rank 0 is going to ask."""
    folder = settings.folder
    if (folder / "row.json").exists() or (folder / "outcome.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    evaluate.run(settings)


def attempt(argv: list[str] | None = None, memory: TowerMemory | None = None) -> tuple[int, str]:
    """Do what the command line asks for.

    Args:
        memory: what the vision tower made of pictures, shared by the runs of one process (figures/reproduce/many.py).

    Returns:
        (exit code, how far an error reaches or ""): 0 done, 2 refused or failed (one sentence on stderr), 130 interrupted.
    """
    args = parser().parse_args(argv)
    try:
        _run(args, memory)
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


def _run(args: argparse.Namespace, memory: TowerMemory | None) -> None:
    rank, world = launch.world()
    settings = prepare(args)
    if world > 1 and args.force:
        raise EvaluationError(f"--force does not work inside a launcher: remove {settings.folder} by hand first")
    if rank > 0:
        return _member(settings)
    with locked(settings.folder):
        row = start(settings, args.force, memory)
        print(summary(row, settings.folder))
        record(settings, row)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused or failed (one sentence on stderr), 130 interrupted."""
    return attempt(argv)[0]


if __name__ == "__main__":
    sys.exit(main())
