"""A model of transformers at full size with random weights, pruned through hooks, against itself unpruned.

Prefill (tower included) and a decoding step, interleaved; batches of equal pictures and prompts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import visiondrop
from visiondrop.api import handle_of
from visiondrop.compat import CACHE
from visiondrop.plans.shape import VisualShape

from .timing import Candidate, interleave, ratio, summary

NAME = "Qwen2.5-VL-7B"
BEFORE, AFTER = 15, 48  # text tokens before and after the picture
IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
# https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct, config.json
WIDTHS = {
    "7b": (
        dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28),
        dict(depth=32, hidden_size=1280, out_hidden_size=3584, intermediate_size=3420, num_heads=16),
    ),
    "thin": (
        dict(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=2),
        dict(depth=2, hidden_size=64, out_hidden_size=256, intermediate_size=96, num_heads=2),
    ),
}


@dataclass(frozen=True)
class Case:
    """A method at a budget; method None is the model as it comes."""

    method: str | None
    tokens: str | None = None

    def __str__(self) -> str:
        return "stock" if self.method is None else f"{self.method} {self.tokens}"


def build(size: str, dtype: torch.dtype, device: str, seed: int = 0) -> nn.Module:
    """The model with random weights."""
    text, vision = WIDTHS[size]
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            "num_key_value_heads": 4 if size == "7b" else 1,
            "vocab_size": 152064,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "max_position_embeddings": 32768,
            "eos_token_id": None,
        },
        vision_config={**vision, "fullatt_block_indexes": [7, 15, 23, 31] if size == "7b" else [1]},
        **IDS,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False)


def inputs(model: nn.Module, batch: int, side: int) -> dict[str, Tensor]:
    """`batch` prompts with one picture of side x side tokens each."""
    config, draw = model.config, torch.Generator().manual_seed(0)
    vision = config.vision_config
    patches, width = 4 * side * side, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    ids = torch.randint(3, 1000, (batch, BEFORE + side * side + AFTER), generator=draw)
    ids[:, BEFORE : BEFORE + side * side] = config.image_token_id
    pixels = torch.randn(batch * patches, width, generator=draw)
    out = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": pixels.to(model.dtype),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]] * batch),
    }
    return {name: value.to(model.device) for name, value in out.items()}


def measure(
    model: nn.Module, cases: list[Case], batch: int, side: int, rounds: int, steps: int
) -> list[dict[str, Any]]:
    """One row per case: milliseconds of a prefill and of a decoding step, and their share of the FLOP ratio.

    Args:
        cases: the first is the base of all ratios.
    """
    given, candidates = inputs(model, batch, side), {}
    token = torch.full((batch, 1), 7, device=model.device)
    held: dict[str, Any] = {}

    def switch(case: Case) -> None:
        handle = handle_of(model)
        if handle is not None:
            handle.remove()
        if case.method is not None:
            visiondrop.apply(model, case.method, case.tokens)

    def prefill() -> None:
        held["cache"] = DynamicCache(config=model.config.text_config)
        model(**given, use_cache=True, logits_to_keep=1, **{CACHE: held["cache"]})

    def filled(case: Case) -> None:
        switch(case)
        prefill()

    def decode() -> None:
        for _ in range(steps):
            model(input_ids=token, use_cache=True, logits_to_keep=1, **{CACHE: held["cache"]})

    for case in cases:
        candidates[case, "prefill"] = Candidate(prefill, lambda case=case: switch(case))
        candidates[case, "decode"] = Candidate(decode, lambda case=case: filled(case), steps)
    times = interleave(candidates, rounds, model.device)
    flops = {case: _flops(model, case, side) for case in cases}
    rows = []
    for case in cases:
        speedup = ratio(times[cases[0], "prefill"], times[case, "prefill"])
        fewer = flops[cases[0]] / flops[case]
        rows.append(
            {
                "kind": "family",
                "family": NAME,
                "method": case.method or "stock",
                "tokens": case.tokens,
                "visual_tokens": side * side,
                "batch": batch,
                "attention": model.config._attn_implementation,
                "clock": "cuda events" if model.device.type == "cuda" else "thread cpu time",
                "ms": {phase: summary(times[case, phase]) for phase in ("prefill", "decode")},
                "ratio": {
                    "prefill": speedup,
                    "decode": ratio(times[cases[0], "decode"], times[case, "decode"]),
                },
                "flop_ratio": fewer,
                "realised": speedup["median"] / fewer,
            }
        )
    switch(Case(None))
    return rows


def _flops(model: nn.Module, case: Case, side: int) -> float:
    """Of a prefill of one picture, what need not be computed left out (`Ledger.lean_flops`)."""
    handle = visiondrop.apply(model, case.method or "none", case.tokens)
    layers = model.config.text_config.num_hidden_layers
    shape = VisualShape(layers, side * side, cls=False, source=f"{side}x{side}", grid=(1, side, side))
    out = handle.plan_for(shape).ledger(handle.dims, BEFORE + AFTER).lean_flops
    handle.remove()
    return out
