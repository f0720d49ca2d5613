"""One process of a run: the model answers a benchmark's questions through lmms-eval, rank 0 writes what came out.

`run` is called by eval.run for a single process; `python -m eval.driver.evaluate SETTINGS.json DRIVER_PID` is what torchrun or
accelerate starts several times (eval/driver/launch.py).  Files it leaves in the run's folder:

    answers-<rank>.jsonl   answers as they come (eval/results/answers.py)
    samples.jsonl          one line per question, by document: prompt, answer, target, metrics
    outcome.json           lmms-eval's numbers and the ledger
    submissions/           upload files, where the benchmark has them
    failure-<rank>.json    why this process stopped, if it did
    lmms_eval.log, .out    what lmms-eval logged and printed
"""

import contextlib
import json
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eval import benchmarks
from eval.benchmarks import data
from eval.driver.settings import Settings
from eval.errors import EvaluationError, reach_of
from eval.models.tower_memory import TowerMemory
from eval.results.answers import reason
from visiondrop.errors import VisionDropError

KEPT = ("doc_id", "target", "doc")


def run(settings: Settings, memory: TowerMemory | None = None) -> None:
    """Answer, score, and (on rank 0) write samples.jsonl and outcome.json.

    Args:
        memory: of the vision tower's work, where several runs of one process share it.

    Raises:
        EvaluationError: anything that went wrong, in one sentence; the traceback, if it is not ours, is in the log.
    """
    folder, rank = settings.folder, int(os.environ.get("RANK", 0))
    try:
        quiet(folder, rank)
        results, lm = _evaluate(settings, memory)
        if rank == 0:
            _write(settings, results, lm)
    except VisionDropError as error:
        raise EvaluationError(str(error), reach_of(error)) from error
    except Exception as error:
        raise EvaluationError(_explain(error, folder, rank), reach_of(error)) from error


def _explain(error: Exception, folder: Path, rank: int) -> str:
    """One sentence for an error of a library, the traceback kept beside the answers."""
    log = folder / f"traceback-{rank}.txt"
    with contextlib.suppress(OSError):
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    if isinstance(error, OSError) and error.errno is not None:
        return f"the run stopped: {reason(error)} ({error.filename or folder}); the answers stored so far are kept"
    if "out of memory" in str(error).lower():
        return "the card's memory is full: use a smaller --batch-size or a smaller --dtype"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"the run stopped: {type(error).__name__}: {first} (details in {log}); the answers stored so far are kept"


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


def _evaluate(settings: Settings, memory: TowerMemory | None) -> tuple[dict[str, Any] | None, Any]:
    """lmms-eval's result dictionary (None on ranks above 0) and our model object."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from eval.models.plugin import MODEL_ID, model_class

    benchmark = benchmarks.get(settings.benchmark, settings.protocol)
    lm = model_class()(
        pretrained=settings.model,
        method=settings.method,
        tokens=settings.tokens,
        device=settings.device,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        attn_implementation=settings.attention,
        conv_template=settings.conversation,
        answers=str(settings.folder),
        reuse=settings.reuse,
        compile=settings.compile,
        layout=settings.layout,
        **settings.options,
    )
    if memory is not None:
        memory.attach(lm.model, f"{settings.model_fingerprint} {settings.dtype} {settings.device} {settings.attention}")
    try:
        if lm.world_size != settings.processes:
            raise EvaluationError(f"{settings.processes} processes were asked for and {lm.world_size} are running")
        stdout = open(settings.folder / "lmms_eval.out", "a", encoding="utf-8")  # tables that tasks print
        place = data.place(Path(settings.data) if settings.data else None, settings.data_fingerprint)
        with stdout, contextlib.redirect_stdout(stdout), place:
            results = simple_evaluate(
                model=lm,
                tasks=[settings.task],
                # Only this task's folder is indexed: reading all two thousand task files takes ten seconds.
                task_manager=TaskManager(
                    include_path=str(benchmark.folder), include_defaults=False, model_name=MODEL_ID
                ),
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
                cli_args=SimpleNamespace(output_path=str(settings.folder), process_with_media=False),
            )
    finally:
        lm.store.close()
    return results, lm


def _write(settings: Settings, results: dict[str, Any], lm: Any) -> None:
    """samples.jsonl, then outcome.json: the second exists only when the first is whole."""
    task = settings.task
    samples = sorted(results["samples"][task], key=lambda s: s["doc_id"])
    if len({s["doc_id"] for s in samples}) != len(samples):
        raise EvaluationError(f"{task}: lmms-eval scored a document twice")
    folder = settings.folder
    write_whole(folder / "samples.jsonl", "".join(_sample_line(s) for s in samples))
    metrics = {
        name.removesuffix(",none"): value
        for name, value in results["results"][task].items()
        if name.endswith(",none") and "_stderr" not in name and isinstance(value, (int, float))
    }
    outcome = {
        "metrics": {k: float(v) for k, v in sorted(metrics.items())},
        "n": len(samples),
        "ledger": lm.ledger.as_dict(),
        "compile": lm.compiled,
    }
    write_whole(folder / "outcome.json", json.dumps(outcome, ensure_ascii=False, indent=1))


def _sample_line(sample: dict[str, Any]) -> str:
    reserved = {*KEPT, "arguments", "resps", "filtered_resps", "token_counts", "doc_hash", "input_media", "input"}
    line = {key: sample[key] for key in KEPT}
    line["prompt"] = sample["arguments"][0] if sample.get("arguments") else sample.get("input")
    line["answer"] = sample["filtered_resps"][0]
    line["metrics"] = {key: value for key, value in sample.items() if key not in reserved}
    return json.dumps(line, ensure_ascii=False, default=str) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Write through a temporary file, so that a file of this name is always complete.

    Raises:
        EvaluationError: the disk is full or the folder cannot be written.
    """
    part = path.with_suffix(path.suffix + ".part")
    try:
        with open(part, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        part.unlink(missing_ok=True)
        raise EvaluationError(
            f"cannot write {path}: {reason(error)}; nothing is lost, make room and start the same command again",
            reach_of(error),
        ) from None
    part.replace(path)


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The samples of a run, flattened as `eval.scoring.scores` takes them: doc_id, doc, prompt, target, answer, metrics."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**(sample := json.loads(line)), **sample["metrics"]} for line in lines]


def clear_products(folder: Path) -> None:
    """Remove what a new session writes again (answers stay)."""
    for pattern in ("outcome.json", "failure-*.json", "traceback-*.txt"):
        for file in folder.glob(pattern):
            file.unlink()
    shutil.rmtree(folder / "submissions", ignore_errors=True)


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
    settings = Settings.from_json(Path(argv[0]).read_text(encoding="utf-8"))
    die_with(int(argv[1]))
    try:
        run(settings)
    except EvaluationError as error:
        file = settings.folder / f"failure-{os.environ.get('RANK', 0)}.json"
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
