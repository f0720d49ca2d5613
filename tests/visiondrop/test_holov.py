"""HoloV's choice against the official function's traces and a plain loop; zeros and what replaces them; one sequence."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import visiondrop
from visiondrop.methods.encoder import holov
from visiondrop.plans.shape import VisualShape

TRACES = Path(__file__).parents[1] / "support" / "golden" / "traces"


def by_definition(x: np.ndarray, a: np.ndarray, windows: int, count: int) -> list[int]:
    """In float64, strip by strip."""
    strips = [s.tolist() for s in np.array_split(np.arange(len(a)), windows) if len(s)]
    scores = []
    for s in strips:
        unit = x[s] / (np.linalg.norm(x[s], axis=1, keepdims=True) + 1e-6)
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, 0)
        if len(s) == 1:
            scores.append(a[s[0]])
            continue
        mean = cosine.sum(1, keepdims=True) / (len(s) - 1)
        spread = ((cosine - mean) ** 2).sum(1) / (len(s) - 1)
        scaled = spread * (1000 * a[s]).mean() / (spread.mean() + 1e-6)
        scores.append((1000 * a[s] + 0.09 * scaled).mean())
    weight = np.array(scores) / (sum(scores) + 1e-6)
    given = [math.floor(w * count) for w in weight]
    for p in sorted(range(len(strips)), key=lambda p: -weight[p])[: count - sum(given)]:
        given[p] += 1
    out = []
    for s, n in zip(strips, given):
        out += s if n >= len(s) else sorted(s, key=lambda i: -a[i])[:n]
    return (out + [-1] * count)[:count]


@pytest.mark.parametrize("case", range(5))
def test_the_official_function(case):
    trace = np.load(TRACES / "holov_function_cases.npz")
    _, _, windows, count = trace[f"c{case}_shape"].tolist()
    x, a = (torch.from_numpy(trace[f"c{case}_{name}"])[None] for name in ("tokens", "attention"))
    got = holov.by_strips(x, a, windows, count, zeros=True)[0].tolist()
    assert got == trace[f"c{case}_kept"].tolist()
    kept = [g for g in got if g >= 0]
    refilled = holov.by_strips(x, a, windows, count, zeros=False)[0].tolist()
    assert len(set(refilled)) == count and set(kept) <= set(refilled)
    left = sorted(set(range(a.shape[1])) - set(kept), key=lambda i: -a[0, i])
    assert set(refilled) - set(kept) == set(left[: count - len(kept)])


@pytest.mark.parametrize("windows, count", [(1, 3), (4, 11), (7, 20), (40, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_loop_and_a_batch_is_its_singles(windows, count, dtype):
    draw = torch.Generator().manual_seed(windows)
    x = torch.randn(3, 30, 6, generator=draw).to(dtype)
    a = torch.rand(3, 30, generator=draw).pow(3)
    got = holov.by_strips(x, a, windows, count, zeros=True)
    assert got.tolist() == [by_definition(s.double().numpy(), w.double().numpy(), windows, count) for s, w in zip(x, a)]
    for i in range(3):
        assert torch.equal(holov.by_strips(x[i : i + 1], a[i : i + 1], windows, count, True)[0], got[i])


def test_equal_attention_goes_to_the_smallest_slot():
    got = holov.by_strips(torch.ones(1, 12, 3), torch.full((1, 12), 0.1), 3, 5, zeros=True)
    assert got.tolist() == [[0, 1, 4, 5, 8]]


def test_strips_and_lengths():
    assert [holov.strips(576, t) for t in (192, 128, 64, 32)] == [5, 8, 16, 32]
    assert holov.sequence_length(VisualShape(units=5, nominal_units=5, length=2304 + 36, canvas=(36, 48))) == 2304
    plan = visiondrop.plan("holov", 160, shape=VisualShape(units=5, nominal_units=5, length=2340, canvas=(36, 48)))
    assert plan.entry == 160 and plan.encoder.select.keywords["windows"] == 16
    assert visiondrop.plan("holov", 64, windows=7).encoder.select.keywords["windows"] == 7
    with pytest.raises(visiondrop.VisionDropError, match="overflow='drop'"):
        visiondrop.plan("holov", 64, overflow="drop")


def test_composes_with_a_stage_in_the_decoder():
    plan = visiondrop.plan("holov+fastv", 64)
    assert abs(plan.ledger().mean - 64) <= 1 and plan.counts[0] > plan.counts[1] > 0
