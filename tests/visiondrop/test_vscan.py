"""VScan's windows, averages and amounts against plain loops; what is refused."""

import pytest
import torch

import visiondrop
from visiondrop.methods.staged import vscan
from visiondrop.plans.shape import VisualShape


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def two_halves(early: list[float], deep: list[float], local: int, side: int, count: int) -> list[int]:
    """By the definition: windows row by row, then the rest."""
    wide, kept = side // 4, []
    for top in range(4):
        for left in range(4):
            window = [(top * wide + y) * side + left * wide + x for y in range(wide) for x in range(wide)]
            kept += sorted(window, key=lambda patch: -early[patch])[:local]
    rest = sorted((p for p in range(side * side) if p not in kept), key=lambda patch: -deep[patch])
    return sorted(kept + rest[: count - len(kept)])


@pytest.mark.parametrize("local, count", [(0, 5), (1, 16), (3, 60), (4, 64)])
def test_two_halves(local, count):
    early, deep = draw(2, 64), draw(2, 64, seed=1)
    wanted = [two_halves(a.tolist(), b.tolist(), local, 8, count) for a, b in zip(early, deep)]
    assert vscan.two_halves(early, deep, local, 8, count).tolist() == wanted


def test_equal_scores_go_to_the_smallest_patch_and_none_is_chosen_twice():
    flat, zero = torch.full((1, 64), 0.5), torch.zeros(1, 64)
    chosen = vscan.two_halves(flat, zero, 1, 8, 20)[0].tolist()
    assert chosen == sorted({0, 2, 4, 6, 16, 18, 20, 22, 32, 34, 36, 38, 48, 50, 52, 54, 1, 3, 5, 7})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_average(dtype):
    states, kept = draw(2, 12, 5, seed=2).to(dtype) - 0.5, torch.tensor([[1, 4, 9], [0, 2, 11]])
    value, rest, joined = vscan.average(states, kept)
    assert value.dtype == dtype
    for u in range(2):
        groups = {k: [k] for k in kept[u].tolist()}
        for slot, to in zip(rest[u].tolist(), joined[u].tolist()):
            cosine = [torch.cosine_similarity(states[u, slot].double(), states[u, k].double(), dim=0) for k in groups]
            assert max(cosine) - cosine[to] <= 1e-6
            groups[kept[u, to].item()].append(slot)
        means = torch.stack([states[u, members].double().mean(0) for members in groups.values()])
        assert (value[u].double() - means).abs().max() <= (1e-6 if dtype == torch.float32 else 1e-3)
        assert sorted(sum(groups.values(), [])) == list(range(12))


def test_a_batch_is_its_singles():
    early, deep = draw(3, 576, seed=3), draw(3, 576, seed=4)
    whole = vscan.two_halves(early, deep, 2, 24, 80)
    for i in range(3):
        assert torch.equal(vscan.two_halves(early[i : i + 1], deep[i : i + 1], 2, 24, 80)[0], whole[i])


def test_the_rule_of_sixteen():
    plan = visiondrop.plan("vscan", 64)
    assert plan.counts == [96, 32] and plan.stages[0].layer == 16 and plan.encoder.probes == (5, 22)
    assert "48 local + 48 global" in str(plan.ledger())
    lossy = visiondrop.plan("vscan", keep="48,16")
    assert lossy.counts == [40, 16] and lossy.ledger().mean == 28
    assert "16 local + 24 global; 48 was asked for, and 8 are lost" in str(lossy.ledger())
    with pytest.raises(
        visiondrop.VisionDropError, match="budget of 32 tokens is not reachable.*with gaps.*the nearest are 25 and 43"
    ):
        visiondrop.plan("vscan", 32)
    reached = [t for t in range(1, 577) if vscan.VScan().plan(t, VisualShape()) is not None]
    assert {64, 128, 192, 65, 384} <= set(reached) and 32 not in reached and 75 not in reached and max(reached) == 384
    assert all(abs(visiondrop.plan("vscan", t).ledger().mean - t) <= 1 for t in reached)


def test_units_share_the_budget():
    video = VisualShape(patches=64, units=8, nominal_units=8, kind="video", length=8 * 65)
    plan = visiondrop.plan("vscan", keep="32,100", shape=video)
    assert plan.counts == [256, 100]
    crops = visiondrop.plan("vscan", 320, shape=VisualShape(units=5, nominal_units=5))
    assert crops.counts == [480, 160]


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(tokens=64, keep="96,32"), "given together"),
        (dict(keep="96"), "two counts"),
        (dict(keep="96,97"), "no more tokens behind the cut"),
        (dict(tokens=64, local_layer=24), "1 … 23"),
        (dict(tokens=64, layer=32), "0 … 31"),
        (dict(tokens=8, shape=VisualShape(patches=36)), "multiple of 4"),
    ],
)
def test_wrong_requests(settings, words):
    with pytest.raises(visiondrop.VisionDropError, match=words):
        visiondrop.plan("vscan", **settings)


def test_the_projector_sees_every_patch():
    from visiondrop.plans import flops

    plan = visiondrop.plan("vscan", 64)
    assert flops.projected(plan, flops.LLAVA_7B) == 576 == plan.shape.patches
    assert plan.ledger().flops - visiondrop.plan("visionzip", 64).ledger().flops > 0
