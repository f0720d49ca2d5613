"""One process of a run: the model answers a benchmark's questions through lmms-eval, rank 0 writes what came out.

`run` is called by eval/driver/drive.py for a single process; `python -m eval.driver.process SETTINGS.json DRIVER_PID` is what
torchrun or accelerate starts several times (eval/driver/launch.py).  What it leaves is listed in eval/results/folder.py;
beside that, lmms_eval.log and .out hold what lmms-eval logged and printed, traceback-<rank>.txt an error of a library.
"""

import contextlib
import json
import math
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eval.benchmarks import data
from eval.errors import EvaluationError, reach_of
from eval.files import reason
from eval.models import plugin
from eval.results.folder import Outcome, RunFolder
from eval.settings import Settings
from visiondrop.errors import VisionDropError, first_line
from visiondrop.reuse.tower import TowerMemory, remembering

KEPT = ("doc_id", "target", "doc")


def run(folder: RunFolder, memory: TowerMemory | None = None) -> None:
    """Answer, score, and (on rank 0) write samples and outcome.

    Args:
        memory: of the vision tower's work, where several runs of one process share it.

    Raises:
        EvaluationError: anything that went wrong, in one sentence; the traceback, if it is not ours, is in the log.
    """
    rank = int(os.environ.get("RANK", 0))
    try:
        quiet(folder.path, rank)
        results, lm = _evaluate(folder, memory)
        if rank == 0:
            folder.write(_samples(results["samples"][folder.benchmark.task]), _outcome(results, folder, lm))
    except VisionDropError as error:
        raise EvaluationError(str(error), reach_of(error)) from error
    except Exception as error:
        raise EvaluationError(_explain(error, folder.path, rank), reach_of(error)) from error


def _explain(error: Exception, folder: Path, rank: int) -> str:
    """One sentence for an error of a library, the traceback kept beside the answers."""
    log = folder / f"traceback-{rank}.txt"
    with contextlib.suppress(OSError):
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    if isinstance(error, OSError) and error.errno is not None:
        return f"the run stopped: {reason(error)} ({error.filename or folder}); the answers stored so far are kept"
    if "out of memory" in str(error).lower():
        return "the card's memory is full: use a smaller --batch-size or a smaller --dtype"
    what = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
    return f"the run stopped: {what} (details in {log}); the answers stored so far are kept"


def quiet(folder: Path, rank: int) -> None:
    """Send lmms-eval's log to a file; only its errors reach the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from loguru import logger

    file = folder / f"lmms_eval{f'-{rank}' if rank else ''}.log"

    def write(message: str) -> None:
        # A full disk must end the run where answers are stored, not in a log.
        with contextlib.suppress(OSError), open(file, "a", encoding="utf-8") as stream:
            stream.write(message)

    logger.remove()
    logger.add(write, level="INFO")
    logger.add(sys.stderr, level="ERROR", format="{message}")


def _evaluate(folder: RunFolder, memory: TowerMemory | None) -> tuple[dict[str, Any], Any]:
    """lmms-eval's result dictionary (empty on ranks above 0) and our model object."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    settings, benchmark = folder.settings, folder.benchmark
    name, model_class = plugin.chosen(settings)
    lm = model_class(settings, answers=folder.path)
    if memory is not None:
        memory.owner = f"{settings.model_fingerprint} {settings.dtype} {settings.device} {settings.attention}"
    try:
        if lm.world_size != settings.processes:
            raise EvaluationError(f"{settings.processes} processes were asked for and {lm.world_size} are running")
        stdout = open(folder.path / "lmms_eval.out", "a", encoding="utf-8")  # tables that tasks print
        place = data.place(Path(settings.data) if settings.data else None, settings.data_fingerprint)
        shared = contextlib.nullcontext() if memory is None else remembering(memory)
        with stdout, contextlib.redirect_stdout(stdout), place, shared:
            results = simple_evaluate(
                model=lm,
                tasks=[settings.task],
                # Only this task's folder is indexed: reading all two thousand task files takes ten seconds.
                task_manager=TaskManager(include_path=str(benchmark.folder), include_defaults=False, model_name=name),
                limit=settings.limit,
                batch_size=settings.batch_size,
                device=str(lm.device),
                bootstrap_iters=0,
                process_docs_parallel=1,
                random_seed=settings.seed,
                numpy_random_seed=settings.seed,
                torch_random_seed=settings.seed,
                fewshot_random_seed=settings.seed,
                # What the tasks and the evaluator look up of lmms-eval's own command line.
                cli_args=SimpleNamespace(output_path=str(folder.path), process_with_media=False),
            )
    finally:
        lm.store.close()
    return results or {}, lm


def _samples(raw: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """lmms-eval's samples as a run keeps them, by document."""
    if len({s["doc_id"] for s in raw}) != len(raw):
        raise EvaluationError("lmms-eval scored a document twice")
    reserved = {*KEPT, "arguments", "resps", "filtered_resps", "token_counts", "doc_hash", "input_media", "input"}
    out = []
    for sample in sorted(raw, key=lambda s: s["doc_id"]):
        line = {key: sample[key] for key in KEPT}
        line["prompt"] = sample["arguments"][0] if sample.get("arguments") else sample.get("input")
        line["answer"] = sample["filtered_resps"][0]
        line["metrics"] = {key: value for key, value in sample.items() if key not in reserved}
        out.append(line)
    return out


def _outcome(results: dict[str, Any], folder: RunFolder, lm: Any) -> Outcome:
    task = folder.benchmark.task
    metrics = {
        name.partition(",")[0]: float(value)  # after the comma: the filter of the answers
        for name, value in sorted(results["results"][task].items())
        if "," in name and "_stderr" not in name and isinstance(value, (int, float)) and math.isfinite(value)
    }
    return Outcome(
        metrics, len(results["samples"][task]), lm.ledger.as_dict(), lm.compiled, lm.processor_facts, lm.unlike_uniform
    )


def die_with(driver: int) -> None:
    """End this process when the driver is gone (kill -9), so that no orphan goes on writing answers."""

    def watch() -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(driver, 0)
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> int:
    """Entry of one process among several; a failure is left in failure-<rank>.json for the driver to tell."""
    folder = RunFolder(Settings.from_json(Path(argv[0]).read_text(encoding="utf-8")))
    die_with(int(argv[1]))
    try:
        run(folder)
    except EvaluationError as error:
        file = folder.path / f"failure-{os.environ.get('RANK', 0)}.json"
        try:
            file.write_text(
                json.dumps({"sentence": str(error), "reach": reach_of(error)}, ensure_ascii=False), encoding="utf-8"
            )
        except OSError:
            print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # an orderly end would wait for the other processes, which wait for this one
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
