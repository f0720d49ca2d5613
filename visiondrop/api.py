"""The public calls: `plan` before any model, `apply` on a model, and the handle it returns."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .errors import VisionDropError
from .families import adapter_for
from .methods.method import Method
from .methods.registry import make_plan, request
from .ops.report import Report
from .plans.budget import Budget
from .plans.flops import ModelDims
from .plans.plan import Ledger, Plan
from .plans.shape import VisualShape
from .pruner import CHUNK, Pruner, Unpicklable, handle_of, keep_handle
from .tower.questions import Reader

logger = logging.getLogger(__name__)


def plan(
    method: str | Method = "visiondrop",
    tokens: Budget = None,
    *,
    layers: int = 32,
    patches: int = 576,
    shape: VisualShape | None = None,
    options: dict[str, Any] | None = None,
    **more: Any,
) -> Plan:
    """The plan of a method for one image, with no model loaded.

    Args:
        method: a method's value, e.g. `VisionDrop(tokens=64, merge=False)`, or a registered name (`visiondrop.available()`).
        tokens: the budget, mean visual tokens per decoder layer; "22%" or 0.22: a share of the image's own tokens.
        layers: decoder layers; patches: patches of the image.  `shape` replaces both, for crops and frames.
        options, more: the method's own options (an option called `layers` only through `options`).
    """
    shape = shape or VisualShape(layers=layers, patches=patches)
    name, tokens, settings = request(method, tokens, {**(options or {}), **more})
    return make_plan(name, tokens, shape, settings)


class Handle(Unpicklable):
    """Pruning that is switched on for one model; a context manager that switches it off at the end.

    Attributes:
        model: what it is applied to.
        pruner: what the model's passes ask; for the tools of this repository, its interface may change.
    """

    def __init__(self, model: nn.Module, pruner: Pruner, detach):
        self.model, self.pruner, self._detach = model, pruner, detach

    @property
    def plan(self) -> Plan:
        """What happens to an ordinary image of this model."""
        return self.pruner.plan

    def plan_for(self, shape: VisualShape) -> Plan:
        """What happens to an image of `shape`."""
        return self.pruner.plan_for(shape)

    @contextmanager
    def using(
        self, method: str | Method | None = None, tokens: Budget = None, *, min_tokens: int = 0, **options: Any
    ) -> Iterator["Handle"]:
        """Another budget, method or options for the calls of this thread inside the block; blocks may be nested.

            with handle.using(tokens="11%"):
                answer = model.generate(...)

        What is left out stays as it was applied; options belong to the method they were given with.  A conversation
        is continued with the method and budget it was begun with.  Static shapes (`compile`) rest inside the block.

        Raises:
            VisionDropError: unknown method or option, a budget that cannot be met, or nothing is applied any more.
        """
        if not self.active:
            raise VisionDropError("using: this handle was removed, or replaced by another apply; apply again first")
        now = self.pruner.choice
        name, budget, settings = request(now.method if method is None else method, tokens, options)
        if name == now.method:
            settings = {**now.options, **settings}
        if method is None and budget is None:
            budget, min_tokens = now.tokens, min_tokens or now.min_tokens
        with self.pruner.using(name, budget, settings, min_tokens):
            yield self

    @contextmanager
    def recording(self) -> Iterator["Handle"]:
        """Record what prefills inside the block keep, as `apply(report=True)` does for all, without the times."""
        before, self.pruner.record = self.pruner.record, True
        try:
            yield self
        finally:
            self.pruner.record = before

    @contextmanager
    def pause(self) -> Iterator["Handle"]:
        """The stock model for the calls of this thread inside the block."""
        with self.pruner.using("none", None, {}):
            yield self

    @contextmanager
    def questions(self, texts: Sequence[str | Sequence[int]]) -> Iterator["Handle"]:
        """What this thread's pictures are asked inside the block, for methods that read it before the language model does.

            with handle.questions(["What color is the bus?"]):
                answer = model.generate(...)

        Args:
            texts: one question for each picture of a batch, in prompt order, or one for all; words alone, without template
                and format instruction, or ids of CLIP's tokenizer.  Methods that do not read it leave it unread.
        """
        with self.pruner.reader.questions.hold(texts):
            yield self

    @property
    def ledger(self) -> Ledger:
        """Tokens per layer, mean, cache entries and FLOPs for an ordinary image of this model."""
        return self.pruner.ledger()

    @property
    def dims(self) -> ModelDims:
        """The model's dimensions, as used for FLOPs."""
        return self.pruner.dims

    @property
    def report(self) -> Report:
        """What the last prefill kept; needs `apply(..., report=True)`."""
        if not self.pruner.record:
            raise VisionDropError("nothing was recorded: apply with report=True (it costs a little time and memory)")
        return self.pruner.report

    @property
    def active(self) -> bool:
        """False after `remove` or after another `apply` on the same model."""
        return self._detach is not None

    def reset(self) -> None:
        """Forget the last prompt: the next text-guided prefill takes its own last token (see `Pruner.prompt_ends`)."""
        self.pruner.forget_prompt()

    def remove(self) -> None:
        """Give the model its stock behaviour back; doing so twice is harmless."""
        if self._detach is not None:
            self._detach()
            self._detach = None

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *error) -> None:
        self.remove()


def apply(
    model: nn.Module,
    method: str | Method = "visiondrop",
    tokens: Budget = None,
    *,
    report: bool = False,
    chunk: int = CHUNK,
    fused: bool = False,
    compile: bool = False,
    min_tokens: int = 0,
    encoder_score: str | None = None,
    shape: VisualShape | None = None,
    tokenizer: Any = None,
    options: dict[str, Any] | None = None,
    **more: Any,
) -> Handle:
    """Switch pruning on for `model`, in place and reversibly; other models in the process are untouched.

    Args:
        model: our `llava` class, or a model of transformers: LLaVA-1.5, LLaVA-NeXT, Video-LLaVA, and the families of
            `families.table` (docs/models.md).
        method: a method's value, e.g. `VisionDrop(tokens=64, merge=False)` or `compose(...)`, or a registered name with its
            settings in the other arguments; "none" is the stock model.
        tokens: the budget, mean visual tokens per decoder layer; "22%" or 0.22: a share of the image's own tokens;
            "qwen2.5-vl-25": a published setting (`plans.presets`).
        report: record what every stage keeps in `handle.report`.
        chunk: visual query rows scored at once; memory of a stage is heads x chunk x length.
        fused: score without any map where triton and a CUDA card allow it (`visiondrop.ops.fused`).
        compile: `generate` runs greedy answers with static shapes, as CUDA graphs or, on the CPU, with the decoder's layers
            through torch.compile: the same answers, made once per batch size and length.  Requests without a static
            shape, and machines without a compiler, fall back to normal execution, with one warning.  For our `llava` class.
        shape: an ordinary image, where it is not what the model's configuration says (a fixed number of crops): what budgets
            and `handle.plan` are stated for.
        encoder_score: what ranks patches after the encoder on towers with a [CLS] that the papers do not speak of (InternVL):
            "received", the default there, or "cls".
        min_tokens: with a share ("22%") as budget, the fewest tokens a small image is left with.
        tokenizer: of the language model; methods that read the question before it does then find it in the prompt, after
            the picture (see `Handle.questions`).
        options, more: the method's own options, e.g. `score="text"`, `merge="off"`.

    Returns:
        A handle.  Applying again replaces the earlier method.

    Raises:
        VisionDropError: unknown model, method or option, or a budget that cannot be met (the message says which can).
    """
    adapter = adapter_for(model)
    name, tokens, settings = request(method, tokens, {**(options or {}), **more})
    pruner = Pruner(name, tokens, settings, shape or adapter.shape(), adapter.dims(), report, chunk, min_tokens)
    pruner.fused = fused
    if encoder_score is not None:
        pruner.encoder_score = adapter.check_encoder_score(encoder_score)
    pruner.reader = Reader(adapter.clip() if hasattr(adapter, "clip") else None, tokenizer)
    return _attach(model, adapter, pruner, compile)


def _attach(model: nn.Module, adapter: Any, pruner: Pruner, compile: bool) -> Handle:
    """The new handle of `model`, in place of an earlier one."""
    previous = handle_of(model)
    if previous is not None:
        previous.remove()
    handle = Handle(model, pruner, None)
    undo = adapter.attach(pruner)
    if compile:
        _compile(adapter)

    def detach() -> None:
        undo()
        keep_handle(model, None)

    handle._detach = detach
    keep_handle(model, handle)
    return handle


def _compile(adapter) -> None:
    """Switch static shapes on where the model's class has them."""
    if hasattr(adapter, "compile"):
        adapter.compile()
    else:
        name = type(adapter.model).__name__
        logger.warning(
            f"compile: {name} is pruned through hooks, which cannot be compiled, so it runs eagerly, with the same "
            "answers (load the checkpoint with llava.model.builder for static shapes)"
        )


__all__ = ["Handle", "apply", "handle_of", "plan"]
