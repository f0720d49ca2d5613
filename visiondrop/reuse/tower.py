"""The vision tower's work on a picture, remembered: methods, budgets and questions about the same pictures share it.

Up to the layers whose queries and keys a method reads, the states of a picture are the same under every method and every
question; they are kept here, and only those layers run again.  A stage inside the tower shortens what comes after it: what
comes before is kept.

    memory = TowerMemory()
    with remembering(memory):
        ...                                  # every CLIP or SigLIP tower that this thread runs asks it
"""

import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..compat import Model
from ..tower.encoder import Probe
from ..tower.encoder import remembering as _remembering
from .recent import Recent, fingerprint

LIMIT_BYTES = 1 << 30


def remembering(memory: "TowerMemory") -> AbstractContextManager[None]:
    """See `visiondrop.tower.encoder.remembering`."""
    return _remembering(memory)


class TowerMemory:
    """States of pictures by what enters a tower's first layer; the least recently used leave first.

    Attributes:
        owner: whose states these are (weights, dtype, device, attention), for towers that are loaded again and again from one
            checkpoint; None: those of this very tower, whose weights must not change meanwhile.
        hits, misses: pictures found and pictures computed, counted per state.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES, projections: bool = False):
        """limit_bytes: most bytes of states held; projections: keep queries, keys and values too, four times the memory, so
        that a method which reads them runs no layer again."""
        self.owner: str | None = None
        self.projections = projections
        self._states: Recent[Tensor] = Recent(limit_bytes)
        self._lock = threading.RLock()

    @property
    def hits(self) -> int:
        """See the class."""
        return self._states.hits

    @property
    def misses(self) -> int:
        """See the class."""
        return self._states.misses

    def run(self, tower: Model, hidden: Tensor, last: int, probes: Mapping[int, Probe]) -> Tensor:
        """What `visiondrop.tower.encoder.run_layers` returns for layers 0 … `last`; [U, R, D] -> [U, R, D]."""
        with self._lock:
            return _Run(self._states, self._name(tower), tower, hidden, {*probes, last, last + 1}).to(
                last, probes, self.projections
            )

    def _name(self, tower: Model) -> Hashable:
        """Which tower this is: a model may have two, for pictures and for videos."""
        return (
            weakref.ref(tower)
            if self.owner is None
            else (self.owner, fingerprint(tower.encoder.layers[0].layer_norm1.weight))
        )


class _Run:
    """One pass of pictures through a tower."""

    def __init__(self, states: Recent[Tensor], owner: Hashable, tower: Model, hidden: Tensor, levels: set[int]):
        self.states, self.owner, self.layers, self.hidden = states, owner, tower.encoder.layers, hidden
        self.names, self.levels = [fingerprint(unit) for unit in hidden], sorted(levels)

    def to(self, last: int, probes: Mapping[int, Probe], projections: bool) -> Tensor:
        """[U, R, D] states behind layer `last`, the probes filled."""
        every, states = list(range(len(self.names))), None
        for i, probe in probes.items():
            if projections and self._filled(i, probe):
                states = None
                continue
            with probe.watch(self.layers[i].self_attn):
                states = self.layers[i](self._entering(i, every), None)
            if projections:
                self._hold(i, probe, states)
        return states if states is not None and last in probes else self._entering(last + 1, every)

    def _entering(self, level: int, units: list[int]) -> Tensor:
        """[U, R, D] states of some pictures entering a layer."""
        below = max((other for other in self.levels if other < level), default=None)

        def compute(new: list[int]) -> Tensor:
            new = [units[i] for i in new]
            states = self.hidden[new] if below is None else self._entering(below, new)
            for layer in self.layers[below or 0 : level]:
                states = layer(states, None)
            return states

        return self._recall(level, [self.names[i] for i in units], compute)

    def _recall(self, level: int, names: list[str], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """[U, R, D] of the named pictures entering layer `level`; `compute` gets the indices of those that are not known."""
        held = {name: self.states.get((self.owner, level, name)) for name in dict.fromkeys(names)}
        found = {name: tensor for name, tensor in held.items() if tensor is not None}
        new = [names.index(name) for name in held if name not in found]
        if new:
            for i, tensor in zip(new, compute(new).unbind(0)):
                found[names[i]] = tensor
                self._keep(level, names[i], tensor)
        return torch.stack([found[name] for name in names])

    def _keep(self, level: int | str, name: str, tensor: Tensor) -> None:
        # A clone: a view would hold its whole batch.
        self.states.put((self.owner, level, name), tensor.clone(), tensor.numel() * tensor.element_size())

    def _filled(self, layer: int, probe: Probe) -> bool:
        """Fill a probe from what is held; False where a picture is not known."""
        for part in ("query", "key", "value"):
            held = (self.states.get((self.owner, f"{part} {layer}", name)) for name in self.names)
            found = [tensor for tensor in held if tensor is not None]
            if len(found) < len(self.names):
                return False
            setattr(probe, part, torch.stack(found))
        return True

    def _hold(self, layer: int, probe: Probe, states: Tensor) -> None:
        """Keep what a probed layer made of its pictures."""
        for i, name in enumerate(self.names):
            for part in ("query", "key", "value"):
                self._keep(f"{part} {layer}", name, getattr(probe, part)[i])
            self._keep(layer + 1, name, states[i])
