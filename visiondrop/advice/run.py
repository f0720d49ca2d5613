"""The whole question: measure settings sample by sample, drop what is clearly worse, keep the clock, answer.

advice = visiondrop.advise(loaded, samples, loss=0.01, out="advice")     # loaded: llava.adapter.load(path, dtype)
print(advice)
"""

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from platform import processor, python_version
from typing import Any

import torch
import transformers

from .._versions import __version__
from ..api import Handle, apply
from ..errors import VisionDropError
from ..families import adapter_for
from ..reuse.tower import TowerMemory, remembering
from .measure import clock, compare, forced, prepare, reference, under
from .samples import Sample, check_samples, fingerprint
from .settings import NONE, Setting, settings_of
from .stats import Summary, is_out, mark_front, nearest, recommend, summarise
from .store import Rows

BLOCK = 25  # samples between two decisions
REPEATS = 3  # timings of every setting, interleaved


@dataclass
class Advice:
    """What was found.

    Attributes:
        found: a summary of every setting, the unpruned model first; best: the recommended one, or None.
        nearest: the one that changes least; loss: the share of tokens that may change; problems: what was left out.
        changed: sample numbers on which `best` (or `nearest`) changed most.
    """

    found: list[Summary]
    best: Summary | None
    nearest: Summary
    loss: float
    samples: int
    seconds: float
    problems: list[str]
    changed: list[int]

    def __str__(self) -> str:
        from .report import text

        return text(self)


def advise(
    model: Any,
    samples: Sequence[Sample],
    *,
    methods: Sequence[str] | str | None = None,
    tokens: Sequence[Any] | None = None,
    loss: float = 0.01,
    minutes: float | None = None,
    out: str | Path = "advice",
    max_new_tokens: int = 64,
    metric: Callable[[str, str], bool] | None = None,
    progress: bool = True,
    problems: Sequence[str] = (),
) -> Advice:
    """Which method and how many tokens change the unpruned model's answers on these samples by no more than `loss`.

    Args:
        model: what `llava.adapter.load` returns: a model with its tokenizer and image processor, or its processor.
        samples: questions about pictures, see `samples.Sample`.
        methods: names, "all", or None for a usual few; tokens: budgets, or None for shares from 33 % to 5.6 %.
        loss: share of next tokens that may change, 0 … 1.
        minutes: what may be spent, over all sessions; None: until every sample is measured.
        out: a folder for the rows; a run that was stopped goes on from there.
        metric: (answer, right answer) -> bool, for samples with answers; by default the words are compared.

    Raises:
        VisionDropError: nothing to measure, or `out` holds another run.
    """
    if not 0 <= loss < 1 or (minutes is not None and minutes <= 0):
        raise VisionDropError(f"loss={loss}, minutes={minutes}: allowed are losses in 0 … 1 and minutes above 0")
    samples, told = check_samples(list(samples), list(problems), "samples")
    shape = adapter_for(model.model).shape()
    settings, impossible = settings_of(methods, tokens, shape)
    identity = _identity(model.model, samples, settings, loss, max_new_tokens)
    rows = Rows(Path(out), identity)
    if rows.certificate is None:
        rows.add("run", identity=identity, **_certificate(model.model))
    with apply(model.model, "none") as handle:
        run = _Run(handle, model, samples, [NONE, *settings], loss, max_new_tokens, metric or same_words, rows)
        run.measure(None if minutes is None else 60 * minutes, progress)
        return run.advice(told + impossible)


class _Run:
    def __init__(self, handle: Handle, loaded: Any, samples, settings, loss, length, metric, rows: Rows):
        self.handle, self.loaded, self.samples, self.settings = handle, loaded, samples, settings
        self.loss, self.length, self.metric, self.rows = loss, length, metric, rows
        self.keys = [s.key or s.place or str(i) for i, s in enumerate(samples)]
        self.out: set[Setting] = set()
        self.before = rows.seconds

    def measure(self, limit: float | None, progress: bool) -> None:
        """Time every setting, then read sample by sample, deciding after every block."""
        started = time.perf_counter()
        bar = _bar(len(self.samples), progress)
        with bar if bar is not None else nullcontext():
            self._time(started)
            for block in range(0, len(self.samples), BLOCK):
                for i in range(block, min(block + BLOCK, len(self.samples))):
                    spent = self.before + time.perf_counter() - started
                    # one sample is always measured: advice needs a number
                    if limit is not None and spent > limit and i > 0 and not self._known(i):
                        return
                    self._sample(i, started)
                    if bar is not None:
                        alive = len(self.settings) - 1 - len(self.out)
                        bar.set_description(f"{alive} settings in question, {len(self.out)} dropped")
                        bar.update(1)
                self._decide()

    def _known(self, i: int) -> bool:
        alive = [s for s in self.settings if s not in self.out]
        return i in self.rows.answers and all((i, s.name) in self.rows.cells for s in alive)

    def _time(self, started: float) -> None:
        """Every setting in turn, several times over, so that the machine's moods meet all of them."""
        for repeat in range(REPEATS + 1):  # the first warms up
            missing = [s for s in self.settings if (repeat, s.name) not in self.rows.times]
            if not missing:
                continue
            inputs = prepare(self.loaded, self.samples[repeat % len(self.samples)])
            for setting in missing:
                told = clock(self.handle, self.loaded, inputs, setting)
                seconds = self.before + time.perf_counter() - started
                self.rows.add("time", repeat=repeat, setting=setting.name, seconds=seconds, **told)

    def _sample(self, i: int, started: float) -> None:
        if self._known(i):
            return
        sample, rows = self.samples[i], self.rows
        with remembering(TowerMemory(projections=True)):
            inputs = prepare(self.loaded, sample)
            held = reference(self.handle, self.loaded, inputs, self.length)
            right = None if sample.answer is None else self.metric(held.text, sample.answer)
            if i not in rows.answers:
                rows.add("answer", sample=i, text=held.text, right=right)
            for setting in self.settings:
                if setting in self.out or (i, setting.name) in rows.cells:
                    continue
                with under(self.handle, setting):
                    told = compare(held, forced(self.loaded.model, inputs, held.ids, held.end)[0])
                    told["right"] = right if told["answer"] or right is None else self._score(inputs, sample)
                seconds = self.before + time.perf_counter() - started
                rows.add("cell", sample=i, setting=setting.name, seconds=seconds, **told)

    def _score(self, inputs: dict[str, Any], sample: Sample) -> bool:
        ids = self.loaded.generate(inputs, do_sample=False, max_new_tokens=self.length)[0]
        self.handle.reset()
        return self.metric(self.loaded.text(ids), sample.answer)

    def _decide(self) -> None:
        for setting in self.settings[1:]:
            if setting not in self.out and is_out(self._summary(setting), self.loss):
                self.out.add(setting)

    def _summary(self, setting: Setting) -> Summary:
        cells = [c for (_, name), c in sorted(self.rows.cells.items()) if name == setting.name]
        out = summarise(setting.name, cells, self.rows.answers, self.keys)
        out.dropped = setting in self.out
        with under(self.handle, setting):
            ledger = self.handle.ledger
            out.tflops, out.mean_tokens, out.notes = ledger.flops / 1e12, ledger.mean, list(ledger.plan.notes)
        times = [r for (repeat, name), r in self.rows.times.items() if name == setting.name and repeat > 0]
        stock = [r for (repeat, name), r in self.rows.times.items() if name == NONE.name and repeat > 0]
        out.first, out.later = (_median([t[k] for t in times]) for k in ("first", "later"))
        out.cache, out.peak = times[0]["cache"], times[0]["peak"]
        out.speedup = _median([t["first"] for t in stock]) / out.first
        return out

    def advice(self, problems: list[str]) -> Advice:
        """What the rows say."""
        found = [self._summary(s) for s in self.settings]
        mark_front(found[1:])
        best, close = recommend(found[1:], self.loss), nearest(found[1:])
        name = (best or close).name
        cells = [c for (_, setting), c in self.rows.cells.items() if setting == name]
        cells.sort(key=lambda c: (-c["kl"] / c["tokens"], c["sample"]))
        changed = [c["sample"] for c in cells[:12]]
        measured = len({i for i, _ in self.rows.cells})
        return Advice(found, best, close, self.loss, measured, self.rows.seconds, problems, changed)


def same_words(given: str, right: str) -> bool:
    """Whether two answers are the same words, whatever their case and punctuation."""
    return re.findall(r"\w+", given.lower()) == re.findall(r"\w+", right.lower())


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _bar(total: int, progress: bool) -> Any:
    if not progress:
        return None
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise VisionDropError("the progress bar needs tqdm: pip install tqdm, or switch it off") from error
    return tqdm(total=total, unit="sample")


def _identity(model: Any, samples: Sequence[Sample], settings: Sequence[Setting], loss: float, length: int) -> dict:
    """Everything that can change a number: a folder with another identity is another run."""
    return {
        "model": str(model.config.name_or_path) or type(model).__name__,
        "dtype": str(model.dtype),
        "data": fingerprint(samples),
        "samples": len(samples),
        "settings": [s.name for s in settings],
        "loss": loss,
        "max_new_tokens": length,
        "version": __version__,
    }


def _certificate(model: Any) -> dict[str, Any]:
    """Where and with what the run was made."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    on_gpu = model.device.type == "cuda"
    return {
        "commit": told.stdout.strip() or "unknown",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": model.device.type,
        "device_name": torch.cuda.get_device_name() if on_gpu else processor() or "cpu",
        "threads": torch.get_num_threads(),
        "attention": str(getattr(model.config, "_attn_implementation", "")),
        "versions": {
            "python": python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "visiondrop": __version__,
        },
    }
