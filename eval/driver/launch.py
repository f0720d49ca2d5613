"""Starts the processes of a data-parallel run: torchrun on CPU, accelerate on GPUs, one whole model per process.

(`accelerate launch --cpu --num_processes 2` silently starts one process, hence torchrun there.)  Inside a launcher that
somebody else started, e.g. `accelerate launch --config_file … -m eval.run …`, eval.run does not come here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from eval.errors import EvaluationError
from eval.files import ROOT
from eval.results.folder import RunFolder
from eval.settings import Settings


def world() -> tuple[int, int]:
    """(rank, processes) as a launcher set them; (0, 1) without one."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def command(settings: Settings, settings_file: Path) -> list[str]:
    """The command line that starts all processes."""
    program = ["-m", "eval.driver.process", str(settings_file), str(os.getpid())]
    if settings.device == "cpu":
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={settings.processes}"]
    else:
        launcher = ["accelerate.commands.launch", "--multi_gpu", f"--num_processes={settings.processes}"]
        launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    return [sys.executable, "-m", *launcher, *program]


def check(settings: Settings) -> None:
    """Refuse what cannot be started.

    Raises:
        EvaluationError: fewer cards than processes, or a device that names one card.
    """
    if settings.processes == 1 or settings.device == "cpu":
        return
    import torch

    if settings.device != "cuda":
        raise EvaluationError(f"--processes {settings.processes} needs --device cuda or cpu, not {settings.device!r}")
    if torch.cuda.device_count() < settings.processes:
        raise EvaluationError(
            f"--processes {settings.processes} needs as many cards and {torch.cuda.device_count()} are here: "
            "lower it, or use a configuration of configs/accelerate for several machines"
        )


def start(run: RunFolder) -> None:
    """Run all processes to their end.

    Their terminal output is passed on until one of them fails; the launcher's own account of a failure goes to
    launcher.log only.

    Raises:
        EvaluationError: a process failed; the sentence is that process's own.
    """
    settings, folder = run.settings, run.path
    file = folder / "settings.json"
    file.write_text(settings.to_json(), encoding="utf-8")
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    # Read by accelerate and the launchers; nothing of ours is passed this way.
    extra = {"PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if settings.device == "cpu":
        extra["ACCELERATE_USE_CPU"] = "true"
    process = subprocess.Popen(command(settings, file), stderr=subprocess.PIPE, env={**os.environ, **extra})
    try:
        with open(folder / "launcher.log", "wb") as log:
            while chunk := process.stderr.read1(65536):
                log.write(chunk)
                log.flush()
                if not list(folder.glob("failure-*.json")):
                    sys.stderr.write(chunk.decode(errors="replace"))
                    sys.stderr.flush()
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    failures = sorted(folder.glob("failure-*.json"))
    if failures:
        failure = json.loads(failures[0].read_text(encoding="utf-8"))
        raise EvaluationError(failure["sentence"], failure["reach"])
    if code:
        raise EvaluationError(
            f"the launcher ended with code {code} (details in {folder / 'launcher.log'}); the answers stored so far "
            "are kept: start the same command again"
        )
