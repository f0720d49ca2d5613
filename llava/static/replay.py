"""Two ways to run static code faster: CUDA graphs, and on the CPU decoder layers through torch.compile.

Both need shapes that never change, which is what a budget gives.  Where capture or compilation fails, the same code
runs eagerly and one sentence says so.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from visiondrop.compat import CACHE, cache_in

logger = logging.getLogger(__name__)
WARM_UPS = 2
MOST_SHAPES = 256  # compiled per function and process: lengths x batch sizes x rooms for new tokens
FAILURES = (RuntimeError, OSError, ImportError)  # what compilers and capture raise, without and within torch


class Notice:
    """Says why something runs eagerly, each sentence once.

    Attributes:
        sentences: what has been said; failed: whether any of it was about a capture or a compilation.
    """

    def __init__(self):
        self.sentences: list[str] = []
        self.failed = False

    def failure(self, what: str, error: Exception) -> None:
        """Say that a capture or a compilation failed."""
        self.failed = True
        self(what, error)

    def __call__(self, what: str, reason: object) -> None:
        lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
        sentence = f"compile: {what}, so it runs eagerly, with the same answers ({lines[0] if lines else type(reason).__name__})"
        if sentence not in self.sentences:
            self.sentences.append(sentence)
            logger.warning(sentence)


class Replay:
    """A function without arguments or result, captured when this is made on CUDA; elsewhere only called.

    Attributes:
        captured: whether a graph is replayed.
    """

    def __init__(
        self,
        function: Callable[[], object],
        device: torch.device,
        state: tuple[Tensor, ...] = (),
        layers: "CompiledLayers | None" = None,
        pool: object = None,
        notice: Notice | None = None,
    ):
        """Args:
        state: what a call changes and must find as it was; warming up leaves it untouched.
        layers: on the CPU the layers that are called through torch.compile; None = eagerly.
        pool: memory that graphs share, because none of them leaves anything in it for another.
        """
        self.captured, self._function, self._layers, self._graph = False, function, layers, None
        if device.type != "cuda":
            return
        kept = [x.clone() for x in state]

        def restore() -> None:
            for x, old in zip(state, kept):
                x.copy_(old)

        try:
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    restore()
                    function()
                restore()
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                function()
            self._graph, self.captured = graph, True
        except FAILURES as error:
            (notice or Notice()).failure("a CUDA graph could not be captured", error)

    def __call__(self) -> None:
        if self.captured:
            self._graph.replay()
            return
        with self._layers.active() if self._layers is not None else nullcontext():
            self._function()


class _Catch:
    """In place of a cache inside a compiled layer: keeps the new keys and values, or writes them into buffers."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None, at: Tensor | None = None):
        self.keys, self.values, self.at = keys, values, at

    def update(self, key: Tensor, value: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        if self.at is None:
            self.keys, self.values = key, value
        else:
            put(self.keys, self.at, key)
            put(self.values, self.at, value)
        return self.keys, self.values


def put(buffer: Tensor, at: Tensor, new: Tensor) -> None:
    """Write new [B, H, T, E] into buffer [B, H, n, E] at the columns at [B or 1, 1, T, 1]."""
    buffer.scatter_(2, at.expand_as(new), new)


def _first_pass(layer: nn.Module, hidden: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor):
    """One layer on a whole prompt: ([B, L, D], keys, values)."""
    new = _Catch()
    # Not through __call__: the layer's `forward` is what leads here.
    out = type(layer).forward(
        layer, hidden, attention_mask=mask, position_embeddings=(cos, sin), position_ids=None, **{CACHE: new}
    )
    return out, new.keys, new.values


def _step(
    layer: nn.Module, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, at: Tensor
):
    """One layer on T new tokens per row, which are written into `keys` and `values`: [B, T, D]."""
    cache = _Catch(keys, values, at)
    return type(layer).forward(
        layer, hidden, attention_mask=mask, position_embeddings=(cos, sin), position_ids=None, **{CACHE: cache}
    )


@functools.cache
def _compiled(backend: str) -> tuple[Callable, Callable]:
    """The two functions through torch.compile; all layers, models and handles of the process share what they make."""
    settings = {"backend": backend, "fullgraph": True, "dynamic": False}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # torch 2.13; before it, 8 shapes at most
        settings |= {"isolate_recompiles": True, "recompile_limit": MOST_SHAPES}
    return torch.compile(_first_pass, **settings), torch.compile(_step, **settings)


class CompiledLayers:
    """Decoder layers that are called through torch.compile while `active`; the modules themselves stay as they are."""

    def __init__(self, layers: nn.ModuleList, notice: Notice, backend: str = "inductor"):
        self._layers, self._notice, self._backend, self.failed = layers, notice, backend, False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Calls of the layers inside the block are compiled, as far as that works."""
        for index, layer in enumerate(self._layers):
            layer.forward = functools.partial(self._call, layer, index)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    def _call(self, layer: nn.Module, index: int, hidden: Tensor, **given):
        cache = cache_in(given)
        if self.failed or cache is None:
            return type(layer).forward(layer, hidden, **given)
        arguments = layer, hidden, given["attention_mask"], *given["position_embeddings"]
        try:
            first_pass, step = _compiled(self._backend)
            if hasattr(cache, "place"):
                return step(*arguments, *cache.place(index))
            if cache.get_seq_length(index):
                return type(layer).forward(layer, hidden, **given)
            hidden, key, value = first_pass(*arguments)
        except FAILURES as error:
            # Buffers may have been written, with what the eager layer now writes again.
            self.failed = True
            self._notice.failure("torch.compile failed on this machine", error)
            return type(layer).forward(layer, hidden, **given)
        cache.update(key, value, index)
        return hidden
