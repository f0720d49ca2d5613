"""Interleaved timing: A B C A B C ..., so that load on the machine meets all candidates alike.

On the CPU the clock is the thread's own CPU time (with one thread, other processes do not count); on CUDA it is a pair
of events on the stream.  One unmeasured round comes first.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Candidate:
    """What is timed (`run`), after something that is not (`prepare`); `per` = how many units of work one run does."""

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    per: int = 1


def clock(candidate: Candidate, device: torch.device) -> float:
    """Milliseconds per unit of work: thread CPU time, or CUDA events."""
    if candidate.prepare is not None:
        candidate.prepare()
    if device.type == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        candidate.run()
        stop.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(stop) / candidate.per
    start = time.thread_time()
    candidate.run()
    return 1e3 * (time.thread_time() - start) / candidate.per


def interleave(candidates: dict, rounds: int, device: torch.device, progress=None) -> dict:
    """Milliseconds of every candidate in every round, {key: [ms]}; every other round runs in reverse order."""
    times: dict = {name: [] for name in candidates}
    with torch.inference_mode():
        for turn in range(-1, rounds):
            order = list(candidates) if turn % 2 else list(candidates)[::-1]
            for name in order:
                elapsed = clock(candidates[name], device)
                if turn >= 0:
                    times[name].append(elapsed)
                if progress is not None:
                    progress.update()
    return times


def summary(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Summary of the ratios within each round."""
    return summary([a / b for a, b in zip(over, under)])
