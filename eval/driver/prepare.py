"""From a command line to the settings of a run: everything that can be checked before a model is loaded."""

import argparse
import os
from pathlib import Path
from typing import Any

import visiondrop
from eval import benchmarks
from eval.benchmarks import data
from eval.driver import launch
from eval.errors import EvaluationError
from eval.files import reason
from eval.models.plugin import WRAPPERS
from eval.models.server import version_of_server
from eval.results import fingerprint, rows
from eval.scoring.judge import judge_of
from eval.settings import Settings, given, number
from llava.anyres import check_layout
from visiondrop.cli import method_options
from visiondrop.doctor import require_evaluation
from visiondrop.errors import VisionDropError
from visiondrop.families.loading import shape_of
from visiondrop.methods.registry import check_options


def prepare(args: argparse.Namespace) -> Settings:
    """Check the request and print the plan's ledger.

    Raises:
        VisionDropError: an argument, the data, the checkpoint or an output place is not usable.
    """
    _check_environment()
    rank, world = launch.world()
    told = {"protocol": Settings.protocol, "out": Settings.out, "runs": Settings.runs, **given(args)}
    benchmark = benchmarks.get(told["benchmark"], told["protocol"])
    benchmark.check_limit(told.get("limit"))
    data.check_imports(benchmark)
    options = {name: number(value) for name, value in method_options(args).items()}
    check_options(args.method, options)  # raises with the closest names
    out = rows.check_writable(told["out"])
    _check_folder(told["runs"])
    folder = told["data"].resolve() if "data" in told else data.drawn(benchmark, told["runs"])
    data_fingerprint = data.fingerprint_of(benchmark, folder)
    judge_of(benchmark, told.get("judge_url"), told.get("judge_model"))
    checkpoint = fingerprint.checkpoint(told.get("model") or benchmark.default_model)
    if "layout" in told:
        _check_layout(told["layout"], checkpoint.config)
    wrapper = told.get("wrapper") or WRAPPERS.get(checkpoint.config.get("model_type"))
    if wrapper is None:
        _show_ledger(args, options, checkpoint, quiet=rank != 0)
    else:
        told |= {"wrapper": wrapper, "conversation": wrapper}  # prompts are the wrapper's
        visiondrop.plan(args.method, args.tokens, shape=shape_of(checkpoint.path), options=options)
    if "server" in told:
        told["served"] = version_of_server(told["server"].rstrip("/"))
    told |= {"model": checkpoint.path, "model_name": checkpoint.name, "model_fingerprint": checkpoint.fingerprint}
    told |= {"data": str(folder) if folder else None, "data_fingerprint": data_fingerprint}
    told |= {"task": benchmark.task, "method": args.method, "options": options}
    if isinstance(args.tokens, int | None):
        told["tokens"] = args.tokens
    else:
        told["share"] = f"{100 * args.tokens:g}%" if isinstance(args.tokens, float) else args.tokens
    told |= {"runs": str(told["runs"].resolve()), "out": str(out)}
    if world > 1:
        told["processes"] = world
    settings = Settings(**{"conversation": benchmark.conversation, **told}).placed()
    if wrapper is not None and settings.processes > 1 and settings.device == "cpu":
        raise EvaluationError(f"--processes {settings.processes}: lmms-eval's wrappers share work between cards only")
    if world == 1:
        launch.check(settings)
    return settings


def _check_environment() -> None:
    try:
        require_evaluation()
    except VisionDropError as error:
        raise EvaluationError(str(error), "batch") from None


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
