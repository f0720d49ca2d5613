"""A vision tower as it runs, and what an encoder-stage selector may ask about it.

The tower's attention is untouched.  While a layer that is asked for runs, the outputs of its q, k and v projections are
picked up; from them only the rows of the attention that a score needs are computed.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..compat import Model
from ..ops import scores
from ..ops.selection import Selection, gather_rows
from ..plans.shape import VisualShape, feature_layer
from .questions import Asked


class Probe:
    """Queries, keys and values of one tower layer, picked up while it runs."""

    def __init__(self) -> None:
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    @staticmethod
    def project(layer: Model, hidden: Tensor) -> None:
        """Queries, keys and values of a layer that is not run: of the one after the feature layer."""
        states, attention = layer.layer_norm1(hidden), layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection(states)

    @contextmanager
    def watch(self, attention: Model) -> Iterator["Probe"]:
        """Pick up the outputs of `attention.{q,k,v}_proj`, each [U, R, H * E], inside the block.

        Only the calling thread's: another may be in the same tower.
        """
        thread = threading.get_ident()

        def keep(name):
            def pick_up(module, args, output) -> None:
                if threading.get_ident() == thread:
                    setattr(self, name, output)

            return pick_up

        hooks = [
            attention.q_proj.register_forward_hook(keep("query")),
            attention.k_proj.register_forward_hook(keep("key")),
            attention.v_proj.register_forward_hook(keep("value")),
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()


class Memory(Protocol):
    """What remembers the states of towers, e.g. `visiondrop.reuse.tower.TowerMemory`."""

    def run(self, tower: Model, hidden: Tensor, last: int, probes: Mapping[int, Probe]) -> Tensor:
        """What `run_layers` returns for layers 0 … `last`; [U, R, D] -> [U, R, D]."""


_memory: ContextVar[Memory | None] = ContextVar("tower_memory", default=None)


@contextmanager
def remembering(memory: Memory) -> Iterator[None]:
    """Every tower that this thread runs inside the block asks `memory`."""
    token = _memory.set(memory)
    try:
        yield
    finally:
        _memory.reset(token)


def embed(tower: Model, pixels: Tensor) -> Tensor:
    """What a CLIP or SigLIP vision transformer's first layer gets: [U, 3, H, W] -> [U, R, D]."""
    hidden = tower.embeddings(pixels)
    return tower.pre_layrnorm(hidden) if hasattr(tower, "pre_layrnorm") else hidden


@torch.compiler.disable  # it reads what layers pass on inside, by hooks that a compiled tower would not call
def run_layers(
    tower: Model, hidden: Tensor, first: int, last: int, probes: Mapping[int, Probe] | None = None
) -> Tensor:
    """Layers `first` … `last` of a tower: [U, R, D] -> [U, R, D].

    Inside `remembering` the memory is asked for whole runs from the first layer on.

    Args:
        probes: by layer, what picks up its queries, keys and values.
    """
    memory = _memory.get()
    if memory is not None and first == 0:
        return memory.run(tower, hidden, last, probes or {})
    for i in range(first, last + 1):
        layer, probe = tower.encoder.layers[i], (probes or {}).get(i)
        with nullcontext() if probe is None else probe.watch(layer.self_attn):
            hidden = layer(hidden, None)
    return hidden


def tower_features(tower: Model, pixels: Tensor, select_layer: int) -> Tensor:
    """hidden_states[select_layer] of a CLIP or SigLIP vision transformer, bit for bit; later layers are not run.

    Args:
        pixels: [U, 3, H, W] in the tower's dtype; select_layer: as in LLaVA's configurations, e.g. -2.

    Returns:
        [U, R, D], row 0 = [CLS] where the tower has one.
    """
    return run_layers(tower, embed(tower, pixels), 0, feature_layer(len(tower.encoder.layers), select_layer))


@dataclass(frozen=True)
class Settings:
    """How scores are computed.

    Attributes:
        chunk: query rows scored at once; fuse: whether the fused kernel may be used (`visiondrop.ops.fused`).
    """

    chunk: int = 256
    fuse: bool = False


class LayerView:
    """The attention of one tower layer, for U units of R rows.

    Attributes:
        query, key, value: [U, H, R, E], biases included, unscaled.
    """

    def __init__(self, probe: Probe, heads: int, cls: bool, settings: Settings):
        self._cls, self._settings = cls, settings
        self.query, self.key, self.value = (
            x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (probe.query, probe.key, probe.value)
        )

    @property
    def scale(self) -> float:
        """What logits are multiplied with, E to the power of -1/2."""
        return self.query.shape[-1] ** -0.5

    def score(self) -> Tensor:
        """[U, n] float32, one per patch: attention from [CLS], mean over heads, softmax over all R keys.

        The official codes sum over heads (VisionZip, VisionDrop) or average (VisPruner): the order is the same.
        Without [CLS]: mean over visual queries of the attention received (paper, "Visual Query Selection").
        """
        if self._cls:
            return scores.attention_rows(self.query[:, :, :1], self.key, self.scale, None)[:, 0, 1:]
        return self.received()

    def received(self) -> Tensor:
        """[U, n] float32, one per patch: attention received, mean over heads and over all R rows ([CLS] too)."""
        chunk, fuse = self._settings.chunk, self._settings.fuse
        total = scores.received(self.query, self.key, self.scale, None, "bidirectional", chunk, fuse)
        return total[:, int(self._cls) :]

    def metric(self) -> Tensor:
        """[U, R, E] keys, mean over heads."""
        return self.key.mean(dim=1)


@dataclass(frozen=True)
class Cut:
    """One stage inside the tower has run on I pictures of U units.

    Attributes:
        layer: whose output was shortened; first: ordinal of the first of these pictures among those encoded together.
        rows: [I * U, R] the tower's own rows before it, or None where all; selection: of them.
        hidden: [I * U, R', D] states after it.
    """

    layer: int
    first: int
    rows: Tensor | None
    selection: Selection
    hidden: Tensor


@dataclass
class Seen:
    """What a tower has made of U units.

    Attributes:
        hidden: [U, R, D] output of layer `layer`, row 0 = [CLS] where there is one.
        layer: 0-based; heads: of every layer.
        probes: by layer, what was picked up.
        memory: what selectors keep from stage to stage.
        rows: [U, R] which of the tower's own rows are left, ascending; None = all.
        cuts: what stages inside the tower did, when recording.
    """

    hidden: Tensor
    layer: int
    heads: int
    probes: dict[int, Probe]
    memory: dict = field(default_factory=dict)
    rows: Tensor | None = None
    cuts: list[Cut] = field(default_factory=list)


class EncoderView:
    """What a selector may ask about U units, after the tower or inside it.

    Attributes:
        hidden: [U, R, D] output of the feature layer (of a stage inside the tower: its layer), row 0 = [CLS] where there is one.
        cls: whether row 0 is [CLS].
        keep: rows the stage must return per unit.
        memory: dict kept over all stages of one run of the tower.
        seeds: one whole number per unit, a fingerprint of its picture, for plans that are `seeded`.
    """

    def __init__(
        self,
        seen: Seen,
        cls: bool,
        keep: int,
        settings: Settings = Settings(),
        projector: Callable[[Tensor], Tensor] | None = None,
        asked: Asked | None = None,
        seeds: Sequence[int] = (),
    ):
        self.hidden, self.cls, self.keep, self.memory = seen.hidden, cls, keep, seen.memory
        self._seen, self._settings, self._projector, self._asked = seen, settings, projector, asked
        self.seeds = seeds

    @cached_property
    def projected(self) -> Tensor:
        """[U, n, D'] embeddings of all patches, for a stage whose plan says `projected`."""
        return self._projector(self.hidden[:, int(self.cls) :])

    @property
    def text(self) -> Tensor:
        """[U, J] float32: each unit's question in CLIP's joint space, for a plan with a `question` (`ClipText.embed`)."""
        return self._asked.text

    @cached_property
    def joint(self) -> Tensor:
        """[U, n, J] float32: all patches in that space."""
        return self._asked.joint(self.hidden[:, int(self.cls) :])

    def at(self, layer: int) -> LayerView:
        """The attention of a tower layer that the stage names in `probes`."""
        return LayerView(self._seen.probes[layer], self._seen.heads, self.cls, self._settings)

    def score(self) -> Tensor:
        """`LayerView.score` of the feature layer."""
        return self.at(self._seen.layer).score()

    def metric(self) -> Tensor:
        """`LayerView.metric` of the feature layer."""
        return self.at(self._seen.layer).metric()


class WholeView:
    """What a selector may ask about I pictures of n patches each, all units as one sequence (`EncoderStage.whole`).

    Attributes:
        ids: [I, n] which patch of which unit a token is; hidden: [I, n, D] their states; there is no [CLS] row.
    """

    cls = False

    def __init__(self, view: EncoderView, shape: VisualShape, ids: Tensor):
        self._view, self.shape, self.ids = view, shape, ids
        self.keep, self.memory = view.keep, view.memory

    @cached_property
    def hidden(self) -> Tensor:
        """[I, n, D] output of the feature layer."""
        return self._join(self._view.hidden[:, int(self._view.cls) :])

    @cached_property
    def projected(self) -> Tensor:
        """[I, n, D'] embeddings."""
        return self._join(self._view.projected)

    def score(self) -> Tensor:
        """[I, n] float32: `LayerView.score` of each patch in its own unit."""
        return self._view.score().reshape(len(self.ids), -1).gather(1, self.ids)

    def _join(self, rows: Tensor) -> Tensor:
        return gather_rows(rows.reshape(len(self.ids), -1, rows.shape[-1]), self.ids)
