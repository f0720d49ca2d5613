"""The score alone, chunked against fused, at the shapes of stages: time and memory, so that adoption rests on numbers.

Fused is adopted by default nowhere: no card was at hand when it was written.  Without one only the chunked path runs.
"""

from typing import Any

import torch

from visiondrop.ops import fused, scores

from .memory import LiveBytes
from .models import BEFORE
from .timing import Candidate, interleave, summary

COUNTS = (96, 576, 768, 2880, 8192)  # LLaVA-1.5, no encoder stage, video, LLaVA-NeXT, long video


def measure(count: int, heads: int, width: int, rounds: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """One size: {"chunked": ms, "fused": ms where it runs, and bytes of each}."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, heads, count, width, generator=draw).to(device, dtype)
    key = torch.randn(1, heads, BEFORE + count, width, generator=draw).to(device, dtype)
    ways = {"chunked": False, **({"fused": True} if fused.usable(query) else {})}

    def run(fuse: bool):
        return scores.received(query, key, width**-0.5, None, fuse=fuse)

    candidates = {name: Candidate(lambda fuse=fuse: run(fuse)) for name, fuse in ways.items()}
    times = interleave(candidates, rounds, query.device)
    held = {}
    for name, fuse in ways.items():
        with torch.inference_mode(), LiveBytes([query, key]) as live:
            run(fuse)
        held[name] = live.peak
    return {
        "visual_tokens": count,
        "heads": heads,
        "head_size": width,
        "ms": {name: summary(values) for name, values in times.items()},
        "memory_bytes": held,
    }
