"""Measurements that tables and figures need: calls of eval.efficiency with fixed settings, kept in results/efficiency.

`table4`: the paper's four rows against stock transformers, over batch sizes.  `methods`: every method and budget at
batch size 1.  Random weights: lengths follow from the plan, so time and memory do not depend on the data.
"""

import subprocess
import sys

from eval.files import ROOT
from figures.data import settings
from figures.data.measured import file_of

SIZES = ("small", "7b")


def defaults(device: str | None, size: str | None) -> tuple[str, str]:
    """(device, size): the card if there is one, 7b there and small on the CPU."""
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return device, size or ("7b" if device.startswith("cuda") else "small")


def sweeps(what: str, gpu: bool) -> list[list[str]]:
    """Argument lists of `eval.efficiency sweep`, without device, size and place."""
    rounds = [] if gpu else ["--rounds", "3"]
    if what == "table4":
        base = ["--methods", "none,stock,visiondrop", *rounds]
        batches = ("1,8,32", "1,8,32") if gpu else ("1,4", "1")
        return [
            [*base, "--units", u, "--tokens", t, "--batch", b]
            for (u, t), b in zip((("1", "64"), ("5", "320")), batches)
        ]
    # The tower takes the same time for every method and would hide the rest; only the LLM's prefill is read from these.
    # Eight layers put the floor of FastV and PyramidDrop above 64 tokens, hence the deep stack for the small one.
    base = ["--tower", "tiny", *rounds]
    return [[*base, "--methods", ",".join(names), "--tokens", tokens] for tokens, names in arms().items()]


def arms() -> dict[str, list[str]]:
    """Budgets, as --tokens takes them -> methods that are timed at them: those that Table 1 ranks.

    A budget that every method of a group has stands in the group's list, the others in lists of their own.
    """
    ranked = [e for e in settings.load()["table1"]["testbed"].entries if not (e.control or e.absent)]
    names = list(dict.fromkeys(e.method for e in ranked))
    budgets = {n: [e.tokens for e in ranked if e.method == n and not e.is_base] for n in names}
    by_methods: dict[tuple[str, ...], list[str]] = {}
    for tokens in sorted({t for has in budgets.values() for t in has}, reverse=True):
        group = tuple(n for n in names if tokens in budgets[n])
        by_methods.setdefault(group, []).append(str(tokens))
    out = {",".join(tokens): list(group) for group, tokens in by_methods.items()}
    first = next(iter(out))
    return out | {first: [e.method for e in ranked if e.is_base] + out[first]}


def cost(what: str, device: str | None, size: str | None, force: bool) -> str:
    """What measuring takes, in words."""
    device, size = defaults(device, size)
    file = file_of(what, device, size)
    if file.is_file() and not force:
        return f"timings {what}: there ({file.name})"
    return f"timings {what} on {device}, size {size}: " + (
        "about 0.2 GPU hours (estimate)" if device.startswith("cuda") else "about 10 CPU minutes (estimate)"
    )


def measure(what: str, device: str | None, size: str | None, force: bool) -> int:
    """Measure, unless this machine type's rows are there; exit code.  Only a whole measurement becomes a file."""
    device, size = defaults(device, size)
    file = file_of(what, device, size)
    if file.is_file() and not force:
        return 0
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    gpu = device.startswith("cuda")
    for arguments in sweeps(what, gpu):
        depth = "deep" if (what, size) == ("methods", "small") else size
        command = [sys.executable, "-m", "eval.efficiency", "sweep", *arguments, "--size", depth, "--device", device]
        command += ["--dtype", "bfloat16" if gpu else "float32", "--out", str(part)]
        if subprocess.run(command, cwd=ROOT).returncode:
            print(f"error: this measurement failed: {' '.join(command[1:])}", file=sys.stderr)
            return 2
    part.replace(file)
    return 0
