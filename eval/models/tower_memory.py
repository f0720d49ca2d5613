"""The vision tower's work on a picture, remembered: runs of one process that ask about the same pictures share it.

A pruning method changes nothing in the tower: its encoder stage reads queries and keys of the layer whose output LLaVA
takes.  Up to that layer the states of a picture are therefore the same under every method and every question; they
are kept here, and only that layer runs again where its queries and keys are wanted.

    memory = TowerMemory()
    memory.attach(model, owner="checkpoint 1f0a, float32, cpu, sdpa")     # `model` of our llava classes
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from visiondrop.reuse.store import fingerprint
from visiondrop.tower.encoder import Probe, tower_features

LIMIT_BYTES = 1 << 30


class TowerMemory:
    """States of pictures by their pixels; the least recently used leave first.

    Attributes:
        limit_bytes: most bytes of states held.
        hits, misses: pictures found and pictures computed, counted per state.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES):
        self.limit_bytes, self.hits, self.misses = limit_bytes, 0, 0
        self._states: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._bytes, self._owner = 0, ""

    def attach(self, model: nn.Module, owner: str) -> bool:
        """Stand in front of the tower of `model`; False where it has no CLIP tower of ours (videos, hub classes).

        Args:
            owner: whose states these are (weights, dtype, device, attention); those of another owner are forgotten.
        """
        find = getattr(model, "get_vision_tower", None)
        clip = getattr(find(), "clip", None) if find is not None else None
        if not hasattr(clip, "features"):
            return False
        if owner != self._owner:
            self._states.clear()
            self._bytes, self._owner = 0, owner
        # On this one tower only; `features` of the class stays as it is.
        clip.features = lambda pixels, select_layer, probe=None: self._features(clip, pixels, select_layer, probe)
        return True

    def _features(self, clip: nn.Module, pixels: Tensor, select_layer: int, probe: Probe | None) -> Tensor:
        """What `CLIPVisionTransformer.features` returns, [U, 1 + n, D]."""
        names = [fingerprint(unit) for unit in pixels]
        last = select_layer if select_layer >= 0 else len(clip.encoder.layers) + 1 + select_layer

        def entering(which: list[int]) -> Tensor:
            return tower_features(clip, pixels[which], last - 1)

        def leaving(which: list[int]) -> Tensor:
            layer = clip.encoder.layers[last - 1]
            before = self._recall(
                "entering", [names[i] for i in which], lambda more: entering([which[i] for i in more])
            )
            with nullcontext() if probe is None else probe.watch(layer.self_attn):
                return layer(before, None)

        return leaving(list(range(len(names)))) if probe is not None else self._recall("leaving", names, leaving)

    def _recall(self, state: str, names: list[str], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """[U, ...] states of the named pictures; `compute` gets the indices of those that are not known."""
        found = {name: self._states.get((state, name)) for name in names}
        new = [names.index(name) for name, known in found.items() if known is None]
        self.hits, self.misses = self.hits + len(names) - len(new), self.misses + len(new)
        if new:
            found.update(zip((names[i] for i in new), compute(new).unbind(0)))
        for name, tensor in found.items():
            self._keep((state, name), tensor)
        return torch.stack([found[name] for name in names])

    def _keep(self, key: tuple[str, str], tensor: Tensor) -> None:
        if key not in self._states:
            self._states[key] = tensor.clone()  # a view would hold its whole batch
            self._bytes += tensor.numel() * tensor.element_size()
        self._states.move_to_end(key)
        while self._bytes > self.limit_bytes:
            _, gone = self._states.popitem(last=False)
            self._bytes -= gone.numel() * gone.element_size()
