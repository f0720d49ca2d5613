"""The greedy choices of DivPrune and SCOPE against plain loops in float64."""

import numpy as np
import pytest
import torch

from visiondrop.methods.decoder import divprune
from visiondrop.methods.encoder import scope


def states(seed: int, images: int = 3, count: int = 40, width: int = 12) -> torch.Tensor:
    return torch.randn(images, count, width, generator=torch.Generator().manual_seed(seed))


def cosines(x: np.ndarray) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def farthest(x: np.ndarray, count: int) -> list[int]:
    """DivPrune's choice by its definition."""
    distance = 1 - cosines(x)
    picked = [max(range(len(x)), key=lambda i: min(distance[i][j] for j in range(len(x)) if j != i))]
    while len(picked) < count:
        rest = [i for i in range(len(x)) if i not in picked]
        picked.append(max(rest, key=lambda i: min(distance[i][j] for j in picked)))
    return picked


def covering(x: np.ndarray, weight: np.ndarray, count: int) -> list[int]:
    """SCOPE's choice by its definition."""
    similarity, chosen = cosines(x), []
    covered = np.zeros(len(x))
    while len(chosen) < count:
        rest = [j for j in range(len(x)) if j not in chosen]
        best = max(rest, key=lambda j: np.maximum(similarity[:, j] - covered, 0).sum() * weight[j])
        chosen.append(best)
        covered = np.maximum(covered, similarity[:, best])
    return chosen


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_divprune(count):
    x = states(0)
    wanted = [farthest(row.double().numpy(), count) for row in x]
    assert divprune.farthest(x, count).tolist() == wanted
    assert [divprune.farthest(row[None], count)[0].tolist() for row in x] == wanted  # a batch is its singles


@pytest.mark.parametrize("count", [1, 2, 7, 40])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_scope(count, alpha):
    x = states(1)
    weight = torch.rand(3, 40, generator=torch.Generator().manual_seed(2)) ** alpha
    wanted = [covering(row.double().numpy(), w.double().numpy(), count) for row, w in zip(x, weight)]
    assert scope.covering(x, weight, count).tolist() == wanted
    assert [scope.covering(r[None], w[None], count)[0].tolist() for r, w in zip(x, weight)] == wanted


def test_blocks_of_rows_change_nothing(monkeypatch):
    x = states(3)
    whole = divprune.farthest(x, 10)
    monkeypatch.setattr(divprune, "CELLS", 50)
    assert torch.equal(divprune.farthest(x, 10), whole)


def test_equal_tokens_are_picked_once_and_the_smallest_first():
    x = torch.cat([states(4, 1, 5), states(4, 1, 5)], dim=1)  # each token twice
    for chosen in (divprune.farthest(x, 10)[0].tolist(), scope.covering(x, torch.ones(1, 10), 10)[0].tolist()):
        assert sorted(chosen) == list(range(10))
        assert all(chosen.index(i) < chosen.index(i + 5) for i in range(5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_compared_in_float32(dtype):
    x = states(5).to(dtype)
    assert torch.equal(divprune.farthest(x, 9), divprune.farthest(x.float(), 9))
    assert torch.equal(scope.covering(x, torch.ones(3, 40), 9), scope.covering(x.float(), torch.ones(3, 40), 9))


def test_a_token_without_length_is_no_nan():
    x = states(6)
    x[0, 3] = 0
    assert divprune.farthest(x, 40).sort(dim=1).values.tolist() == [list(range(40))] * 3
    assert scope.covering(x, torch.ones(3, 40), 40).sort(dim=1).values.tolist() == [list(range(40))] * 3
