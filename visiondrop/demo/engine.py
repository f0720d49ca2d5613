"""One picture, one question, several methods at one budget: answers, stages, ledgers and times, for one user at a time.

engine = Engine(loader().load("checkpoints/testbed", torch.float32))
found = engine.compare(picture, "What color is the star?", 64, ["visiondrop", "vispruner+fastv"])
"""

import ctypes
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

from ..api import Handle, apply, plan
from ..errors import VisionDropError
from ..families.guards import PLACEHOLDER_ID
from ..methods.composed import JOIN
from ..methods.registry import available
from ..plans.budget import Budget
from ..plans.shape import VisualShape
from .fates import Step, follow
from .state import read_method

NEW_TOKENS = 32
TRIED = "25%"  # the budget at which pairs of methods are tried


@dataclass(frozen=True)
class Times:
    """Seconds of one answer, with the device waited for.

    Attributes:
        encode: tower and projector; select: choosing and merging in all stages; prefill: the decoder up to the first
            new token; decode: the other new tokens, `steps` of them.
    """

    encode: float
    select: float
    prefill: float
    decode: float
    steps: int

    @property
    def total(self) -> float:
        """All of it."""
        return self.encode + self.select + self.prefill + self.decode


@dataclass(frozen=True)
class Outcome:
    """What one method made of the picture and the question.

    Attributes:
        method: as asked for; answer: its text; error: the sentence, where it could not run (then nothing else is set).
        tokens: visual tokens at every layer's input; told: the ledger of an ordinary image, in words.
        steps: after each stage, what has become of every patch.
    """

    method: str
    answer: str = ""
    tokens: Sequence[int] = ()
    told: str = ""
    times: Times | None = None
    steps: Sequence[Step] = ()
    error: str = ""

    @property
    def mean(self) -> float:
        """Visual tokens of an average layer."""
        return sum(self.tokens) / len(self.tokens)


@dataclass(frozen=True)
class Comparison:
    """One request's results.

    Attributes:
        units: the crops or frames as the tower sees them, none where their tokens lie on no grid; grid: (rows, columns).
    """

    units: list[Image.Image]
    grid: tuple[int, int]
    unpruned: Outcome
    outcomes: list[Outcome]


class Engine:
    """Runs requests on one model, one after the other and in a thread of its own: nobody sees another's results, and what
    the C library keeps of freed memory it keeps once, not for every thread of a server.

    Attributes:
        loaded: the model with what makes its inputs, of `families.loader().load`; shape: an ordinary image of it.
    """

    def __init__(self, loaded: Any):
        self.loaded, self._worker = loaded, ThreadPoolExecutor(1, "visiondrop-engine")
        with apply(loaded.model, "none") as handle:
            self.shape: VisualShape = handle.plan.shape

    @cached_property
    def methods(self) -> list[str]:
        """All methods that can run on this model, then pairs of an encoder method and a decoder method."""
        single = [name for name in available() if name != "none"]
        made = {name: _tried(name, self.shape) for name in single}
        first = [name for name, plan in made.items() if plan is not None and plan.encoder and not plan.stages]
        then = [name for name, plan in made.items() if plan is not None and plan.stages and not plan.encoder]
        pairs = [f"{a}{JOIN}{b}" for a in first for b in then]
        return single + [pair for pair in pairs if _tried(pair, self.shape) is not None]

    def compare(self, picture: Any, question: str, tokens: Budget, methods: Sequence[str]) -> Comparison:
        """The unpruned model and `methods` on one question.

        Args:
            picture: as `Loaded.inputs` takes it; tokens: the budget; methods: e.g. "visiondrop", "vispruner+fastv",
                "visiondrop merge=off".

        Raises:
            VisionDropError: the picture or the question cannot be used.  What one method refuses is in its outcome.
        """
        return self._worker.submit(self._within, picture, question, tokens, methods).result()

    def _within(self, *request: Any) -> Comparison:
        """One request, after which freed memory goes back to the system."""
        try:
            return self._compare(*request)
        finally:
            trim_memory()

    def _compare(self, picture: Any, question: str, tokens: Budget, methods: Sequence[str]) -> Comparison:
        with torch.no_grad():
            inputs = self.loaded.inputs(picture, question)
            unpruned = self._run("none", None, inputs)
            outcomes = [self._tried_run(method, tokens, inputs) for method in methods]
            units, grid = self.loaded.seen(inputs) or ([], (0, 0))
            return Comparison(units, grid, unpruned, outcomes)

    def _tried_run(self, method: str, tokens: Budget, inputs: dict[str, Any]) -> Outcome:
        try:
            return self._run(method, tokens, inputs)
        except VisionDropError as error:
            return Outcome(method, error=str(error))

    def _run(self, method: str, tokens: Budget, inputs: dict[str, Any]) -> Outcome:
        name, options = read_method(method)
        budget = None if name == "none" else tokens
        with apply(self.loaded.model, name, budget, options=options, report=True) as handle:
            watch = _Watch(self.loaded)
            new = watch.generate(inputs)
            steps = follow(handle.report)
            return Outcome(
                method,
                answer=self.loaded.text(new),
                tokens=self._tokens_of(handle, inputs, watch.length),
                told=str(handle.ledger),
                times=watch.times(handle.report.seconds, len(new)),
                steps=steps,
            )

    def _tokens_of(self, handle: Handle, inputs: dict[str, Any], length: int) -> list[int]:
        """Visual tokens at every layer's input: as recorded, or, where the stock model ran, all that are not text."""
        recorded = handle.report.tokens_per_layer
        if recorded and recorded[0]:
            return list(recorded[0])
        config, ids = self.loaded.model.config, inputs["input_ids"][0].tolist()
        holes = {PLACEHOLDER_ID, getattr(config, "image_token_id", None), getattr(config, "video_token_id", None)}
        return [length - sum(token not in holes for token in ids)] * self.shape.layers


def trim_memory() -> None:
    """Has the GNU C library return what is free; requests of many sizes else leave ever more holes.  Elsewhere nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _tried(name: str, shape: VisualShape) -> Any:
    """The plan of a method at a middling budget, or None."""
    try:
        return plan(name, TRIED, shape=shape)
    except VisionDropError:
        return None


@dataclass
class _Watch:
    """Takes the times of one `generate`: when the decoder begins, when the first new token is there, when all are."""

    loaded: Any
    marks: dict[str, float] = field(default_factory=dict)
    length: int = 0  # of the prompt, as the decoder gets it

    def generate(self, inputs: dict[str, Any]) -> Any:
        """[new] ids of a greedy answer."""
        first, decoder = LogitsProcessorList([_First(self)]), self.loaded.model.get_decoder()
        hook = decoder.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
        try:
            self.mark("start")
            new = self.loaded.generate(inputs, do_sample=False, max_new_tokens=NEW_TOKENS, logits_processor=first)
            self.mark("end")
        finally:
            hook.remove()
        return new[0]

    def _enter(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if "decoder" not in self.marks:
            self.mark("decoder")
            self.length = kwargs["inputs_embeds"].shape[1]

    def mark(self, name: str) -> None:
        """Note the time, once."""
        if name not in self.marks:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.marks[name] = time.perf_counter()

    def times(self, chosen: dict[int | str, float], new: int) -> Times:
        """What was measured; `chosen`: seconds of the stages, as the report has them."""
        at = self.marks
        outside = sum(seconds for layer, seconds in chosen.items() if isinstance(layer, str))
        inside = sum(chosen.values()) - outside
        return Times(
            encode=max(0.0, at["decoder"] - at["start"] - outside),
            select=outside + inside,
            prefill=max(0.0, at["first"] - at["decoder"] - inside),
            decode=at["end"] - at["first"],
            steps=max(0, new - 1),
        )


class _First(LogitsProcessor):
    """Sees the first logits and changes nothing."""

    def __init__(self, watch: _Watch):
        self.watch = watch

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Called by `generate` before every choice of a token."""
        self.watch.mark("first")
        return scores
