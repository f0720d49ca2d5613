"""Memory above weights: bytes of tensors that a piece of work holds at once.

On CUDA the allocator's own peak is read.  On the CPU a dispatch mode follows every tensor that an operator returns
until its storage is freed; what an operator allocates and frees inside itself is not seen.
"""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Counts bytes of tensors made inside the block, as long as they live.

    Attributes:
        now, peak: bytes; largest: elements of the largest single tensor.
    """

    def __init__(self, known: list[Tensor] = ()):
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known = {x.untyped_storage().data_ptr() for x in known}
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if storage.data_ptr() in self._known or key in self._alive:
            return

        def freed(_, key=key, size=size):
            self._alive.pop(key, None)
            self.now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.largest = max(self.largest, tensor.numel())


def peak(work: Callable[[], object], model: nn.Module) -> int:
    """Most bytes that `work` holds above the weights and its inputs."""
    with torch.inference_mode():
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
            torch.cuda.reset_peak_memory_stats(model.device)
            before = torch.cuda.memory_allocated(model.device)
            work()
            torch.cuda.synchronize(model.device)
            return torch.cuda.max_memory_allocated(model.device) - before
        with LiveBytes([*model.parameters(), *model.buffers()]) as live:
            work()
        return live.peak


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
