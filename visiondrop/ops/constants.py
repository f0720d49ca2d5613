"""Small tensors that never change, made once per device: a kernel less for every stage that needs one.

They stay for ever, because CUDA graphs that were captured go on reading them; sizes grow in powers of two, so there are few.
"""

import functools

import torch
from torch import Tensor


def _enough(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


@functools.cache
def _ordinals(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(size, device=device)


@functools.cache
def _unit_rows(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.eye(size, dtype=dtype, device=device)


def ordinals(size: int, device: torch.device) -> Tensor:
    """[size] long, 0 … size-1; not to be written to."""
    return _ordinals(_enough(size), device)[:size]


def unit_rows(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[size, size], row i is 1 at place i and 0 elsewhere; not to be written to."""
    return _unit_rows(_enough(size), dtype, device)[:size, :size]
