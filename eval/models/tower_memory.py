"""The vision tower's work on a picture, remembered: runs of one process that ask about the same pictures share it.

Up to the layers whose queries and keys a method reads, the states of a picture are the same under every method and every
question; they are kept here, and only those layers run again.  A stage inside the tower shortens what comes after it: what
comes before is kept.

    memory = TowerMemory()
    memory.attach(model, owner="checkpoint 1f0a, float32, cpu, sdpa")     # `model` of our llava classes
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from visiondrop.reuse.store import fingerprint
from visiondrop.tower.encoder import Probe

LIMIT_BYTES = 1 << 30


class TowerMemory:
    """States of pictures by their pixels; the least recently used leave first.

    Attributes:
        limit_bytes: most bytes of states held.
        hits, misses: pictures found and pictures computed, counted per state.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES):
        self.limit_bytes, self.hits, self.misses = limit_bytes, 0, 0
        self._states: OrderedDict[tuple[int, str], Tensor] = OrderedDict()
        self._bytes, self._owner = 0, ""

    def attach(self, model: nn.Module, owner: str) -> bool:
        """Become the memory of the tower of `model`; False where it has no CLIP tower of ours (videos, hub classes).

        Args:
            owner: whose states these are (weights, dtype, device, attention); those of another owner are forgotten.
        """
        find = getattr(model, "get_vision_tower", None)
        clip = getattr(find(), "clip", None) if find is not None else None
        if not hasattr(clip, "memory"):
            return False
        if owner != self._owner:
            self._states.clear()
            self._bytes, self._owner = 0, owner
        clip.memory = self
        return True

    def run(self, tower: nn.Module, hidden: Tensor, last: int, probes: Mapping[int, Probe]) -> Tensor:
        """What `visiondrop.tower.encoder.run_layers` returns for layers 0 … `last`; [U, R, D] -> [U, R, D]."""
        names, layers = [fingerprint(unit) for unit in hidden], tower.encoder.layers
        kept = sorted({*probes, last, last + 1})

        def entering(level: int, units: list[int]) -> Tensor:
            below = max((other for other in kept if other < level), default=None)

            def compute(new: list[int]) -> Tensor:
                new = [units[i] for i in new]
                states = hidden[new] if below is None else entering(below, new)
                for layer in layers[below or 0 : level]:
                    states = layer(states, None)
                return states

            return self._recall(level, [names[i] for i in units], compute)

        every = list(range(len(names)))
        for i, probe in probes.items():
            with probe.watch(layers[i].self_attn):
                states = layers[i](entering(i, every), None)
        return states if last in probes else entering(last + 1, every)

    def _recall(self, state: int, names: list[str], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """[U, R, D] states of the named pictures entering layer `state`; `compute` gets the indices of those that are not known."""
        found = {name: self._states.get((state, name)) for name in names}
        new = [names.index(name) for name, known in found.items() if known is None]
        self.hits, self.misses = self.hits + len(names) - len(new), self.misses + len(new)
        if new:
            found.update(zip((names[i] for i in new), compute(new).unbind(0)))
        for name, tensor in found.items():
            self._keep((state, name), tensor)
        return torch.stack([found[name] for name in names])

    def _keep(self, key: tuple[int, str], tensor: Tensor) -> None:
        if key not in self._states:
            self._states[key] = tensor.clone()  # a view would hold its whole batch
            self._bytes += tensor.numel() * tensor.element_size()
        self._states.move_to_end(key)
        while self._bytes > self.limit_bytes:
            _, gone = self._states.popitem(last=False)
            self._bytes -= gone.numel() * gone.element_size()
