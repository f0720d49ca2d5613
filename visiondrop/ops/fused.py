"""The score of `scores.received` in one fused Triton operation: no attention map, not even a chunk of one.

It is used only when asked for (`apply(..., fused=True)`) and only on tensors it can handle; everything else takes
the chunked torch path, which stays the reference.  `python -m eval.efficiency score` compares the two on a device.
"""

import functools
import importlib.util

import torch
from torch import Tensor

TILE = 64  # rows and columns of a tile
LARGEST_HEAD = 128
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@functools.cache
def installed() -> bool:
    """Whether triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def usable(query: Tensor) -> bool:
    """Whether the kernel can take these queries: on a CUDA device, with triton, of a common dtype and head size."""
    return query.is_cuda and installed() and query.dtype in DTYPES and query.shape[-1] <= LARGEST_HEAD


def received(query: Tensor, key: Tensor, scale: float, hidden_keys: Tensor | None, mask: str = "causal") -> Tensor:
    """As `scores.received`, with float32 logits whatever the dtype.

    Args:
        query: [I, H, n, E]; key: [I, Hkv, P + n, E]; the last axis contiguous; Hkv divides H.
        hidden_keys: [I, P + n] bool, True for padding; None = none.
        mask: "causal", "queries" or "bidirectional".

    Returns:
        [I, n] float32.
    """
    from . import fused_kernels

    images, heads, count, width = query.shape
    total, groups = key.shape[2], heads // key.shape[1]
    hidden = query.new_zeros(1, dtype=torch.uint8) if hidden_keys is None else hidden_keys.to(torch.uint8).contiguous()
    lse = torch.empty(images * heads, count, dtype=torch.float32, device=query.device)
    out = torch.empty_like(lse)
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    size = max(16, 1 << (width - 1).bit_length())
    shared = (count, total - count, total, scale, *query.stride()[:3], *key.stride()[:3], heads, groups)
    constants = (mask != "bidirectional", hidden_keys is not None, not query.is_cuda, width, size, TILE, TILE)
    grid = (-(-count // TILE), images * heads)
    fused_kernels.row_lse[grid](query, key, hidden, lse, *shared, *constants)
    fused_kernels.column_sums[grid](query, key, hidden, lse, out, *shared, *constants)
    mean = out.view(images, heads, count).mean(dim=1)
    if mask == "queries":
        return mean / torch.arange(count, 0, -1, device=mean.device)
    return mean / count
