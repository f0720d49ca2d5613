"""One method with its settings, bound to one model: plans per image shape, passes through the stack, the report."""

import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .compat import will_recompute
from .errors import UnsupportedError, VisionDropError
from .methods.registry import make_plan
from .ops.report import Clocked, Report
from .plans.budget import Budget, is_name, share_of
from .plans.flops import ModelDims
from .plans.plan import Ledger, Plan
from .plans.shape import VisualShape
from .stack.cache import PrunedCache
from .stack.layout import Layout
from .stack.passes import ContinueRun, PrefillRun
from .stack.prompts import Prompts
from .tower.questions import Reader

CHUNK = 256

_HANDLE = "_visiondrop_handle"


class Unpicklable:
    """Part of a pruned model: of use with that one model in this one process."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copying, pickling, `torch.save` and sending to another process are refused with the way that works."""
        raise UnsupportedError(
            "a pruned model cannot be copied, pickled, saved whole by torch.save or sent to another process, because its "
            "hooks belong to this one object: call handle.remove() first and visiondrop.apply on each copy afterwards "
            "(model.save_pretrained and torch.save(model.state_dict()) work as they are)"
        )


class Choice:
    """A method with its budget and options, and the plans it has made for image shapes.

    Attributes:
        method, tokens, options: as given to `apply`.
        min_tokens: a budget that is a share leaves no image fewer tokens than this (or than it has).
        report: gives the report of the calling thread, where stages are timed.
    """

    def __init__(
        self,
        method: str,
        tokens: Budget,
        options: dict[str, Any],
        min_tokens: int = 0,
        report: Callable[[], Report] | None = None,
    ):
        self.method, self.tokens, self.options, self.min_tokens = method, tokens, options, min_tokens
        self.report = report
        self._plans: dict[VisualShape, Plan] = {}

    def plan_for(self, shape: VisualShape) -> Plan:
        """The plan for images of `shape`; stages stand at the same layers for all shapes."""
        if shape not in self._plans:
            plan = make_plan(self.method, self.tokens, shape, self.options, self.min_tokens)
            self._plans[shape] = plan if self.report is None else _clocked(plan, self.report)
        return self._plans[shape]

    def keep(self, plan: Plan) -> Plan:
        """`plan`, from now on the one for its shape."""
        return self._plans.setdefault(plan.shape, plan)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for choices that were asked for alike."""
        options = tuple(sorted((name, _identity(value)) for name, value in self.options.items()))
        return self.method, self.tokens, options, self.min_tokens


def _identity(value: Any) -> str:
    """A value's text; of a model, which says nothing of its weights, which object it is."""
    if isinstance(value, tuple):
        return str(tuple(map(_identity, value)))
    return f"{type(value).__name__} {id(value)}" if isinstance(value, nn.Module) else repr(value)


def _clocked(plan: Plan, report: Callable[[], Report]) -> Plan:
    """The plan with its selectors timed."""

    def timed(stage, layer):
        return stage if stage.select is None else replace(stage, select=Clocked(stage.select, layer, report))

    return replace(
        plan,
        tower=tuple(timed(stage, f"tower {stage.layer}") for stage in plan.tower),
        encoder=None if plan.encoder is None else timed(plan.encoder, "encoder"),
        stages=tuple(timed(stage, stage.layer) for stage in plan.stages),
    )


class Pruner(Unpicklable):
    """The state behind a handle.

    Attributes:
        shape: the shape of an ordinary image of this model; plans for others are made on demand.
        record: whether passes write into `report`.
        fused: whether scores may use the fused kernel (`visiondrop.ops.fused`).
        keeps_positions: tokens keep their positions whatever the plan says (M-RoPE, which no number of order replaces).
        own_rotary: the decoder's attention rotates by a function of its own, see `ops.scores.finish`.
        reader: questions for encoder stages that read them.
        encoder_score: what ranks patches where a tower without the papers' [CLS] leaves a choice: "received" or "cls".
    """

    def __init__(
        self,
        method: str,
        tokens: Budget,
        options: dict[str, Any],
        shape: VisualShape,
        dims: ModelDims,
        record: bool = False,
        chunk: int = CHUNK,
        min_tokens: int = 0,
    ):
        self.shape, self.dims, self.record, self.chunk = shape, dims, record, chunk
        self.fused = self.keeps_positions = self.own_rotary = False
        self.encoder_score = "received"
        self.prompts, self.reader = Prompts(), Reader()
        self._reports = _Reports()
        self._own = self._choice(method, tokens, options, min_tokens)
        self._choices = {self._own.key: self._own}
        self._borrowed = _Borrowed()
        self.plan_for(shape)  # made now, so that a wrong budget is refused before anything runs

    def _choice(self, method: str, tokens: Budget, options: dict[str, Any], min_tokens: int) -> Choice:
        return Choice(method, tokens, options, min_tokens, (lambda: self._reports.report) if self.record else None)

    @property
    def choice(self) -> Choice:
        """What holds now in the calling thread: what was applied, or what a `using` block says."""
        return self._borrowed.choices[-1] if self._borrowed.choices else self._own

    @property
    def borrowed(self) -> bool:
        """Whether the calling thread is inside a `using` block."""
        return bool(self._borrowed.choices)

    @contextmanager
    def using(self, method: str, tokens: Budget, options: dict[str, Any], min_tokens: int = 0) -> Iterator[None]:
        """Another method, budget or options for the calling thread inside the block; blocks may be nested."""
        wanted = self._choice(method, tokens, options, min_tokens)
        wanted.plan_for(self.shape)
        self._borrowed.choices.append(self._choices.setdefault(wanted.key, wanted))
        try:
            yield
        finally:
            self._borrowed.choices.pop()

    @property
    def method(self) -> str:
        """The method's name."""
        return self.choice.method

    @property
    def tokens(self) -> Budget:
        """The budget."""
        return self.choice.tokens

    @property
    def options(self) -> dict[str, Any]:
        """The method's options."""
        return self.choice.options

    @property
    def plan(self) -> Plan:
        """The plan for an ordinary image of this model."""
        return self.plan_for(self.shape)

    @property
    def compact(self) -> bool:
        """Whether positions are renumbered in every segment."""
        return self.positions(self.plan) == "compact"

    def positions(self, plan: Plan) -> str:
        """What positions mean under `plan`, see `Plan.positions`.

        Raises:
            VisionDropError: other positions are asked for than this model can have.
        """
        if self.keeps_positions and self.options.get("positions") == "compact":
            raise VisionDropError(
                "positions='compact': this model's positions are places in the picture (M-RoPE), which cannot be numbered anew; "
                "leave positions away"
            )
        return "original" if self.keeps_positions else plan.positions

    def plan_for(self, shape: VisualShape) -> Plan:
        """The plan for images of `shape`.

        A share that the method can meet on an ordinary image and not on this small one leaves this one whole.
        """
        choice = self.choice
        try:
            return choice.plan_for(shape)
        except VisionDropError:
            if shape.tokens >= self.shape.tokens or not (is_name(choice.tokens) or share_of(choice.tokens)):
                raise
        note = f"{choice.tokens} of {shape.tokens} tokens cannot be met: the image is kept whole"
        nothing = {"encoder": None, "question": None, "extra_flops": None, "begin": None}
        whole: dict[str, Any] = {**nothing, "tower": (), "stages": (), "notes": (note,)}
        return choice.keep(replace(self.plan, shape=shape, tokens=shape.tokens, **whole))

    def ledger(self, text_tokens: int = 63) -> Ledger:
        """Tokens per layer, cache entries and FLOPs for an ordinary image of this model."""
        return self.plan.ledger(self.dims, text_tokens)

    def seed_of(self, pixels: Tensor) -> int:
        """A fingerprint of one image's pixels for seeded methods, the same in every batch; 0 for the others."""
        if not self.plan.seeded:
            return 0
        return zlib.crc32(pixels.detach().float().cpu().contiguous().numpy().tobytes())

    def start(
        self,
        stack: nn.Module,
        hidden: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Any,
        layout: Layout | None,
        features: Tensor | None = None,
    ) -> PrefillRun | ContinueRun | None:
        """The run that drives this pass, or None where the stock code must run untouched.

        Args:
            stack: has `layers`, `rotary_emb`, `config`.
            hidden: [B, T, D] input embeddings in unpruned length.
            attention_mask: [B, past + T] in unpruned lengths, or None; position_ids: [B, T] or None.
            cache: None, or any cache of transformers (an unpruned `DynamicCache` becomes a `PrunedCache` in place).
            layout: the images that come with this pass, or None.
            features: [B, T, n * D] to be added after each of the first n layers, or None.
        """
        if will_recompute(stack):
            cache = None  # layers that are run a second time fill none
        pruned = isinstance(cache, PrunedCache)
        if layout is not None and layout.spans:
            if any(self.plan_for(s.shape).active for s in layout.spans) or pruned:
                _refuse_4d(attention_mask)
                if cache is not None:
                    cache = PrunedCache.adopt(cache, attention_mask)
                return PrefillRun(self, stack, hidden, position_ids, cache, layout, features)
        if pruned and cache.segments:
            _refuse_4d(attention_mask)
            return ContinueRun(self, stack, hidden, attention_mask, position_ids, cache)
        return None

    @property
    def settings(self) -> tuple[Any, ...]:
        """What its choices follow from; equal for pruners that choose alike."""
        return *self.choice.key, repr(self.plan)

    @property
    def report(self) -> Report:
        """The last prefill of the calling thread."""
        return self._reports.report

    def prompt_ends(self, rows: list[list[int]], pixels: Any) -> list[list[int]]:
        """Where the prompts of a conversation end; see `stack.prompts`."""
        return self.prompts.ends(rows, pixels)

    @contextmanager
    def frozen_prompt(self, ends: list[list[int]]) -> Iterator[None]:
        """All passes inside the block belong to prompts with these ends, however long their text has become."""
        with self.prompts.hold(ends):
            yield

    def place_prompt_ends(self, layout: Layout, ids: Tensor | None, pixels: Any, before: list[int] | int = 0) -> None:
        """Set `layout.prompt_ends`, which only text-guided scores read.

        Args:
            ids: [B, T] ids of this pass in unpruned length, or None where they are not known.
            pixels: the images, [N, ...] or N tensors, or None.
            before: tokens of each row that are in the cache, in unpruned length.
        """
        if not self.plan.text_guided:
            return
        if self.prompts.frozen is not None:
            repeat = max(1, len(layout.lengths) // len(self.prompts.frozen))
            ends = [ends for ends in self.prompts.frozen for _ in range(repeat)]
            gone = [before] * len(ends) if isinstance(before, int) else before
            ends = [[end - n for end in row] for row, n in zip(ends, gone)]
        elif ids is not None:
            ids = ids.cpu()
            rows = ids.tolist() if layout.mask is None else [r[m].tolist() for r, m in zip(ids, layout.mask)]
            ends = self.prompt_ends(rows, pixels)
        else:
            return
        layout.prompt_ends = [[*row, n] for row, n in zip(ends, layout.lengths)]

    def forget_prompt(self) -> None:
        """The next prompt is a new one, whatever it starts with."""
        self.prompts.forget()


def handle_of(model: nn.Module) -> Any:
    """The `Handle` of what is applied to `model`, or None."""
    return model.__dict__.get(_HANDLE)


def keep_handle(model: nn.Module, handle: Any) -> None:
    """Let `handle_of` find it; None = nothing is applied any more."""
    model.__dict__.pop(_HANDLE, None)
    if handle is not None:
        model.__dict__[_HANDLE] = handle  # not through Module.__setattr__: no part of the model's state


def current_pruner(model: nn.Module) -> Pruner | None:
    """The pruner of the method applied to `model`, or None."""
    handle = handle_of(model)
    return None if handle is None else handle.pruner


def current_choice(model: nn.Module) -> Choice | None:
    """The method, budget and options that hold for `model` in this thread; one object for each that was asked for."""
    pruner = current_pruner(model)
    return None if pruner is None else pruner.choice


class _Borrowed(threading.local):
    """The `using` blocks that a thread is inside, outermost first."""

    def __init__(self) -> None:
        self.choices: list[Choice] = []


class _Reports(threading.local):
    """One report per thread."""

    def __init__(self) -> None:
        self.report = Report()


def _refuse_4d(attention_mask: Any) -> None:
    if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2):
        raise VisionDropError(
            "pruning builds its own attention masks and needs the 2-D padding mask [B, length]; leave out 4-D masks "
            "and static caches (which make generate build them)"
        )
