"""The least time a plan can take on a machine whose two rates were measured: arithmetic and memory.

Per layer the larger of FLOPs / arithmetic rate and weight bytes / memory rate; causal attention, head on the last
position, tower up to its feature layer.
"""

from dataclasses import dataclass

import torch

from visiondrop.plans import flops
from visiondrop.plans.plan import Plan

from .timing import Candidate, interleave


@dataclass(frozen=True)
class Rates:
    """flops: multiply-adds x 2 per second of a large product; bytes: per second of a large copy (read + write)."""

    flops: float
    bytes: float


def measure(device: torch.device, dtype: torch.dtype) -> Rates:
    """Both rates, best of a few rounds."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    source = torch.empty((1 << 30 if device.type == "cuda" else 1 << 26), dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    times = interleave(
        {"product": Candidate(lambda: a @ b), "copy": Candidate(lambda: target.copy_(source))}, 5, device
    )
    return Rates(2 * n**3 / (min(times["product"]) / 1e3), 2 * source.numel() / (min(times["copy"]) / 1e3))


def prefill_ms(plan: Plan, dims: flops.ModelDims, rates: Rates, rows: int, text: int, width: int) -> float:
    """Decoder prefill of `rows` prompts; width: bytes per weight."""
    weights = width * ((2 + 2 * dims.kv_share) * dims.hidden**2 + 3 * dims.hidden * dims.intermediate)
    per_layer = (
        max(rows * flops.block(dims, n + text, causal=True) / rates.flops, weights / rates.bytes)
        for n in plan.tokens_per_layer()
    )
    head = max(rows * flops.head(dims, 1) / rates.flops, width * dims.hidden * dims.vocab / rates.bytes)
    return 1e3 * (sum(per_layer) + head)


def encode_ms(plan: Plan, dims: flops.ModelDims, rates: Rates, rows: int) -> float:
    """Tower up to its feature layer, and the projector."""
    work = flops.tower(dims, plan.shape.patches, dims.vision_layers - 1, plan.shape.units) + flops.projector(
        dims, plan.entry
    )
    return 1e3 * rows * work / rates.flops


def decode_ms(plan: Plan, dims: flops.ModelDims, rates: Rates, rows: int, text: int, width: int) -> float:
    """One decoding step: weights and cached keys and values are read once."""
    weights = dims.layers * ((2 + 2 * dims.kv_share) * dims.hidden**2 + 3 * dims.hidden * dims.intermediate)
    weights += dims.hidden * dims.vocab
    cached = 2 * dims.kv_share * dims.hidden * sum(n + text for n in plan.tokens_per_layer())
    work = rows * (sum(flops.block(dims, 1, past=n + text) for n in plan.tokens_per_layer()) + flops.head(dims, 1))
    return 1e3 * max(width * (weights + rows * cached) / rates.bytes, work / rates.flops)
