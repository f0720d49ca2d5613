"""Many runs of eval.run in few processes, which keep what runs have in common: imports, pictures, the tower's states.

`each` gives every run to one of `jobs` processes; rows, answers, resuming and refusals are those of eval.run, and so
is what an interruption leaves behind.  Made for the testbed, where starting a process takes as long as its run.
"""

import contextlib
import io
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from eval import run
from eval.driver import process
from eval.errors import REACHES, EvaluationError
from visiondrop.reuse.tower import TowerMemory

INTERRUPTED = 130
_memory: TowerMemory | None = None


def _begin(parent: int, jobs: int) -> None:
    """What a process does first: end with its parent, take its share of the cores, forget nothing between runs."""
    import torch

    global _memory
    process.die_with(parent)
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    _memory = TowerMemory()


def code_of(code: int, reach: str) -> int:
    """The exit code of a run, with how far its error reaches told by a number: 2, 3 or 4 in the order of `REACHES`."""
    return code + REACHES.index(reach) if reach else code


def _one(arguments: list[str]) -> tuple[int, str]:
    """(code, what it printed; of stderr, which holds progress bars, only the errors)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = code_of(*run.attempt(arguments, _memory))
    errors = [line for line in err.getvalue().replace("\r", "\n").splitlines() if line.startswith("error: ")]
    return code, "\n".join([*out.getvalue().splitlines(), *errors])


def each(lists: Iterable[list[str]], jobs: int) -> Iterator[tuple[int, int, str]]:
    """Do runs in `jobs` processes; yields (number of the run, code, what it printed) as they end.

    Args:
        lists: arguments of eval.run, one list per run; they are taken one by one, when a process is free.

    Raises:
        EvaluationError: a process was killed.
        KeyboardInterrupt: a run was interrupted; the others end with it.
    """
    if jobs < 1:
        raise EvaluationError(f"--jobs {jobs}: give a positive number")
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (os.getpid(), jobs))
    numbered, going = enumerate(lists), {}
    try:
        while True:
            for number, arguments in itertools.islice(numbered, jobs - len(going)):
                going[pool.submit(_one, arguments)] = number
            if not going:
                return
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                code, text = future.result()
                if code == INTERRUPTED:
                    raise KeyboardInterrupt
                yield going.pop(future), code, text
    except BrokenProcessPool:
        raise EvaluationError(
            "a process of the runs was killed (out of memory?): the answers stored so far are kept, start the same "
            "command again, with fewer --jobs",
            "batch",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


if __name__ == "__main__":
    sys.exit(code_of(*run.attempt()))
