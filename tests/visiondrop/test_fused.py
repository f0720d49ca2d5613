"""The fused score against the chunked torch path, on the CPU through Triton's interpreter, or on a card."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import visiondrop
from eval.efficiency.models import build, crops, stack_input
from visiondrop.ops import fused, scores

CASES = [  # images, heads, key heads, visual, before, head size, mask, padding
    (1, 2, 2, 96, 35, 64, "causal", False),
    (2, 4, 2, 70, 5, 32, "causal", True),
    (1, 2, 1, 130, 0, 20, "bidirectional", False),
    (2, 2, 2, 65, 3, 16, "queries", True),
]


def difference(case, dtype: str, device: str) -> float:
    """Largest difference of the two paths, relative to the largest score."""
    images, heads, key_heads, count, before, width, mask, padded = case
    draw = torch.Generator().manual_seed(0)
    dtype = getattr(torch, dtype)
    query = torch.randn(images, count, heads, width, generator=draw).transpose(1, 2).to(device, dtype)
    key = torch.randn(images, before + count, key_heads, width, generator=draw).transpose(1, 2).to(device, dtype)
    hidden = None
    if padded:
        hidden = torch.zeros(images, before + count, dtype=torch.bool, device=device)
        hidden[0, : before // 2 + 1] = True
    expected = scores.received(query.float(), key.float(), width**-0.5, hidden, mask)
    found = fused.received(query, key, width**-0.5, hidden, mask)
    assert found.shape == expected.shape and found.dtype == torch.float32
    return float((found - expected).abs().max() / expected.max())


@pytest.mark.skipif(not fused.installed(), reason="triton is not installed (its interpreter runs on a CPU)")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here: the kernels are tested on it")
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-3)])
def test_interpreted_kernels_equal_the_chunked_path(dtype, tolerance):
    # The interpreter is chosen when triton is imported, hence a process of its own.
    code = f"from tests.test_speed_fused import *\nprint(json.dumps([difference(c, {dtype!r}, 'cpu') for c in CASES]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert max(json.loads(done.stdout)) <= tolerance, done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-3)])
@pytest.mark.parametrize("case", CASES)
def test_kernels_on_the_card_equal_the_chunked_path(case, dtype, tolerance):
    assert difference(case, dtype, "cuda") <= tolerance


def test_asking_for_it_where_it_cannot_run_changes_nothing():
    if torch.cuda.is_available():
        pytest.skip("a card is here")
    model = build("thin")
    hidden, layout = stack_input(model, 1, crops(1, 4))
    states = []
    for wanted in (False, True):
        with visiondrop.apply(model, tokens=64, fused=wanted):
            states.append(model.model(inputs_embeds=hidden, layout=layout()).last_hidden_state)
    assert torch.equal(*states)
