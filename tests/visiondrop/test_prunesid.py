"""PruneSID's groups, queues and shares against the official function's trace and plain loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import visiondrop
from visiondrop.methods.encoder import prunesid

TRACE = Path(__file__).parents[1] / "support" / "golden" / "traces" / "prunesid-wide_64_0.npz"


def wide(case: int, crops: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The made-up features and attention of the wide traces."""
    g = np.random.default_rng(7000 + case)
    x = g.standard_normal((crops, 577, 12)) @ g.standard_normal((crops, 12, 1024)) * 0.5
    x = (x + g.standard_normal((crops, 577, 1024)) * 0.7).astype(np.float32)
    a = np.exp(1.5 * g.standard_normal((crops, 16, 577)))
    return torch.from_numpy(x), torch.from_numpy((a / a.sum(-1, keepdims=True)).astype(np.float32))


def test_the_official_function_at_the_width_of_clip():
    trace = dict(np.load(TRACE))
    x, a = wide(int(trace["case"]), int(trace["batch"]))
    assert np.array_equal(x[0, (0, 1, 576), :4].numpy(), trace["feature_check"])
    group = prunesid.groups(x[:, 1:], torch.from_numpy(trace["random_matrix"])[None])
    assert np.array_equal(group, trace["group_of_patch"])
    kept = prunesid.queue(x[:, 1:], a.mean(1)[:, 1:], group, 16, 64, 63)
    assert np.array_equal(kept + 1, trace["rows_in_order"][:, 1:])


def by_definition(x: np.ndarray, a: np.ndarray, group: list[int], count: int, total: int) -> list[int]:
    """Queues and shares in float64, group by group."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit @ unit.T
    threshold = total / 32 * cosine[np.triu_indices(len(x), 1)].mean()
    queues, taken = [], []
    for g in range(count):
        left, first = sorted((i for i in range(len(x)) if group[i] == g), key=lambda i: -a[i]), []
        dropped = []
        while left:
            best = left.pop(0)
            first.append(best)
            dropped += [i for i in left if cosine[best, i] > threshold]
            left = [i for i in left if cosine[best, i] <= threshold]
        queues.append(first + sorted(dropped, key=lambda i: -a[i]))
        taken.append(len(first))
    upper = [min(5 * math.ceil(total / 64), len(q), k) for q, k in zip(queues, taken)]
    while sum(upper) < total:
        upper = [min(u + 1, len(q)) for u, q in zip(upper, queues)]
    lower = [min(1, len(q)) for q in queues]
    rest = max(0, total - 1 - sum(lower))
    edges = [0] + [int(np.rint(np.float32(c) / np.float32(sum(taken)) * np.float32(rest))) for c in np.cumsum(taken)]
    share = [min(b - a + n, u) for a, b, n, u in zip(edges, edges[1:], lower, upper)]
    for g in sorted(range(count), key=lambda g: -taken[g]):
        share[g] += min(upper[g] - share[g], total - 1 - sum(share))
    return [i for q, n in zip(queues, share) for i in q[:n]]


@pytest.mark.parametrize("total", [8, 17, 40, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_plain_loops_and_a_batch_is_its_singles(total, dtype):
    draw = torch.Generator().manual_seed(total)
    x = (torch.randn(3, 90, 10, generator=draw) + 0.8).to(dtype).float()
    a, group = torch.rand(3, 90, generator=draw), torch.randint(0, 7, (3, 90), generator=draw) ** 2 // 6
    got = prunesid.queue(x, a, group, 7, total, total - 1)
    for i in range(3):
        assert got[i].tolist() == by_definition(x[i].double().numpy(), a[i].numpy(), group[i].tolist(), 7, total)
        one = slice(i, i + 1)
        assert torch.equal(prunesid.queue(x[one], a[one], group[one], 7, total, total - 1)[0], got[i])


def test_equal_attention_goes_to_the_smallest_patch_and_equal_patches_are_one():
    x = torch.eye(4).repeat(3, 1)[None]  # patches 4 to 11 repeat 0 to 3
    kept = prunesid.queue(x, torch.ones(1, 12), torch.zeros(1, 12, dtype=torch.long), 1, 8, 7)
    assert kept.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert prunesid.distinct(x, torch.ones(1, 12), torch.zeros(1, 12, dtype=torch.long), 8)[0].sum() == 4


def test_the_matrix_follows_from_the_picture_not_from_the_batch():
    both = prunesid.draw([5, 9, 5], 6, 2, 0, None)
    assert torch.equal(both[0], both[2]) and not torch.equal(both[0], both[1])
    assert torch.equal(prunesid.draw([9], 6, 2, 0, None)[0], both[1])
    assert not torch.equal(prunesid.draw([9], 6, 2, 1, None)[0], both[1])


def test_requests():
    assert visiondrop.plan("prunesid", 64).seeded and visiondrop.plan("prunesid", 64).encoder.order == "places"
    assert not visiondrop.plan("prunesid", 64, noise=[torch.zeros(576, 16)]).seeded
    with pytest.raises(visiondrop.VisionDropError, match="16 columns"):
        visiondrop.plan("prunesid", 64, noise=[torch.zeros(576, 8)])
    with pytest.raises(visiondrop.VisionDropError, match="64, the patches"):
        prunesid.draw([1], 64, 16, 0, torch.zeros(63, 16))
    with pytest.raises(visiondrop.VisionDropError, match="not reachable"):
        visiondrop.plan("prunesid", 3)
