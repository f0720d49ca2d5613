"""The arithmetic of the methods against loops and dense attention maps, and the two switches across methods."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import visiondrop
from tests.support import models
from visiondrop.methods.controls import pool, uniform
from visiondrop.methods.controls import random as random_control
from visiondrop.methods.decoder import pyramiddrop, sparsevlm
from visiondrop.methods.encoder import vispruner
from visiondrop.methods.registry import _METHODS, parse, register
from visiondrop.ops.clustering import density_peaks
from visiondrop.ops.scores import received
from visiondrop.plans.grids import cls_slots, grids, spread
from visiondrop.plans.plan import Kept
from visiondrop.plans.shape import VisualShape

FOLDER = Path(__file__).parents[1] / "support" / "golden" / "traces"
LAYERS = 8
FIRST, LAST = 35, 611  # the picture's slots in the prompts used here


@pytest.fixture(scope="module")
def model():
    return models.native(LAYERS)


@pytest.fixture(scope="module")
def dense():
    """Attention maps [H, T, T] and states [T, D] of the unpruned model, by layer, for picture 3."""
    stock = models.native(LAYERS, attn="eager")
    out = stock(
        input_ids=torch.tensor([models.prompt(5)]),
        images=models.pixels(3),
        output_attentions=True,
        output_hidden_states=True,
    )
    return [a[0] for a in out.attentions], [h[0] for h in out.hidden_states]


def run(model, **settings):
    with visiondrop.apply(model, report=True, **settings) as handle:
        model(input_ids=torch.tensor([models.prompt(5)]), images=models.pixels(3))
        return handle.report


def chosen(plan, view):
    """What the plan's first decoder stage selects."""
    return plan.stages[0].select(view, plan.stages[0].kept)


def best(scores: torch.Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda j: -float(scores[j]))[:count])


def test_fastv_ranks_by_the_last_row_of_the_last_full_layer(model, dense):
    attention, _ = dense
    for k in (1, 3):
        (stage,) = run(model, method="fastv", k=k, keep=40).stages
        wanted = attention[k - 1][:, -1, FIRST:LAST].mean(0)
        assert stage.layer == k and (stage.scores[0] - wanted).abs().max() <= 1e-6
        assert stage.dominant[0].tolist() == best(wanted, 40)


def test_pyramiddrop_ranks_with_the_next_layer(model, dense):
    attention, states = dense
    report = run(model, method="pyramiddrop", ratio="0.3,0.1", options={"layers": "2,5"})
    wanted = attention[2][:, -1, FIRST:LAST].mean(0)
    stage = report.stages[0]
    assert stage.layer == 2 and (stage.scores[0] - wanted).abs().max() <= 1e-6
    assert stage.dominant[0].tolist() == best(wanted, int(576 * 0.3))
    assert (stage.hidden[0] - states[2][FIRST + stage.dominant[0]]).abs().max() <= 1e-5
    assert set(report.stages[1].dominant[0].tolist()) <= set(stage.dominant[0].tolist())


def test_sparsevlm_first_stage_by_loops(model, dense):
    """Raters, scores, kept tokens, clusters and means as docs/methods/sparsevlm.md says, one number at a time."""
    attention, states = dense
    visual, text = states[0][FIRST:LAST].double(), states[0][LAST:].double()
    fit = (visual @ text.T).softmax(1).mean(0)
    raters = [j for j in range(len(text)) if fit[j] > fit.mean()]
    assert 0 < len(raters) < len(text)
    scores = torch.stack([attention[2].mean(0)[LAST + j, FIRST:LAST] for j in raters]).mean(0)
    kept = best(scores, 66)
    pruned = sorted(set(range(576)) - set(kept), key=lambda j: -float(scores[j]))
    size = int(0.3 * len(pruned)) + 1
    noise = torch.rand(size, generator=torch.Generator().manual_seed(1))
    points = [states[3][FIRST + j].double().numpy() for j in pruned[:size]]
    centres, labels = naive_density_peaks(points, size // 10 + 1, noise.double().numpy())
    means = [np.mean([p for p, label in zip(points, labels) if label == c], axis=0) for c in range(len(centres))]

    later = [torch.zeros(n) for n in (16, 5)]  # feeds the stages this test is not about
    report = run(model, method="sparsevlm", keep="66,30,17", noise=[noise, *later], options={"layers": "3,5,7"})
    stage = report.stages[0]
    assert (stage.scores[0] - scores).abs().max() <= 1e-6
    assert stage.dominant[0].tolist() == kept
    assert stage.reference[0].tolist() == [pruned[c] for c in centres]
    fate = dict(zip(stage.merged[0].tolist(), stage.assignment[0].tolist()))
    assert set(fate) == set(range(576)) - set(kept) - {pruned[c] for c in centres}
    for place, patch in enumerate(pruned):
        if patch in fate:
            assert fate[patch] == (labels[place] if place < size else -1)
    assert np.abs(stage.hidden[0][66:].numpy() - np.stack(means)).max() <= 2e-5


def naive_density_peaks(points, clusters, noise):
    """Density-peak clustering as docs/methods/sparsevlm.md says, by loops, in float64."""
    m, width = len(points), len(points[0])
    distance = [[math.sqrt(((a - b) ** 2).sum() / width) for b in points] for a in points]
    density = [
        math.exp(-np.mean([d * d for d in sorted(row)[:clusters]])) + 1e-6 * u for row, u in zip(distance, noise)
    ]
    far = max(map(max, distance))
    separation = [min([distance[i][j] if density[j] > density[i] else far for j in range(m)]) for i in range(m)]
    centres = sorted(range(m), key=lambda i: -density[i] * separation[i])[:clusters]
    labels = [min(range(clusters), key=lambda c: distance[centres[c]][i]) for i in range(m)]
    for c, centre in enumerate(centres):
        labels[centre] = c
    return centres, labels


@pytest.mark.parametrize("size, clusters", [(40, 5), (16, 2), (5, 1), (1, 1)])
def test_density_peaks_by_loops(size, clusters):
    # Two tokens nearest to each other have equal densities but for the noise, which float32 can round away: not here.
    generator = torch.Generator().manual_seed(size + 1)
    states, noise = torch.randn(3, size, 6, generator=generator), torch.rand(3, size, generator=generator)
    centres, labels = density_peaks(states, clusters, noise)
    for i in range(3):
        wanted = naive_density_peaks(list(states[i].double().numpy()), clusters, noise[i].double().numpy())
        assert (centres[i].tolist(), labels[i].tolist()) == wanted


def test_sparsevlm_lets_all_the_text_rate_where_none_stands_out():
    text = torch.ones(1, 4, 8)
    wanted = torch.tensor([[False, True, True, True]])
    view = SimpleNamespace(hidden=torch.randn(1, 10, 8), suffix_hidden=lambda: (text, wanted), memory={})
    sparsevlm.find_raters(view)
    assert view.memory["raters"].tolist() == [[1, 1, 1, 0, 0]]


def test_sparsevlm_noise_follows_the_image_and_the_seed(model):
    ids, mask = models.pad([models.prompt(), models.prompt(1, 35, 9)])

    def clusters(seed, *pictures):
        prompts = (ids, mask) if len(pictures) == 2 else (torch.tensor([models.prompt()]), None)
        with visiondrop.apply(model, method="sparsevlm", tokens=64, seed=seed, report=True) as handle:
            model(input_ids=prompts[0], attention_mask=prompts[1], images=models.pixels(*pictures))
            # In the last stage all five densities are 1, so the noise alone chooses the centre.
            return [stage.hidden[0] for stage in handle.report.stages], handle.report.stages[-1].reference[0].tolist()

    alone, in_batch, again = clusters(0, 0), clusters(0, 0, 1), clusters(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(alone[0], again[0])) and alone[1] == again[1] == in_batch[1]
    assert max((a - b).abs().max() for a, b in zip(alone[0], in_batch[0])) <= 1e-5
    assert any(clusters(seed, 0)[1] != alone[1] for seed in range(1, 6))


def naive_diverse(features, pool, count):
    """Removal of near-duplicates as docs/methods/vispruner.md says, by loops, in float64."""
    unit = [f / np.linalg.norm(f) for f in features]
    while len(pool) > count:
        even, odd = pool[::2], pool[1::2]
        ranked = sorted(even, key=lambda e: -max(unit[e] @ unit[d] for d in odd))
        pool = ranked[min(8, len(pool) - count, len(even)) :] + odd
    return pool


@pytest.mark.parametrize("size, count", [(60, 20), (61, 20), (33, 8), (19, 3), (12, 4), (9, 1), (5, 5)])
def test_vispruner_diversity_by_loops(size, count):
    """Even and odd pools, and counts below eight, which the original cannot do."""
    features = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(size))
    pool_ids = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(i))[:size] for i in range(2)])
    got = vispruner.diverse(features, pool_ids, count)
    for i in range(2):
        assert got[i].tolist() == naive_diverse(list(features[i].double().numpy()), pool_ids[i].tolist(), count)


def test_vispruner_takes_the_most_attended_first():
    scores = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    for cls in (0, 1):
        hidden = torch.randn(1, 64 + cls, 16, generator=torch.Generator().manual_seed(1))
        view = SimpleNamespace(score=lambda: scores, hidden=hidden, cls=bool(cls), keep=16)
        for important in (16, 11, 0):
            selection = vispruner.select(view, Kept(16), important)
            rows = selection.index[0].tolist()
            assert rows == sorted(set(rows)) and len(rows) == 16 and min(rows) >= cls
            assert set(best(scores[0], important)) <= {row - cls for row in rows}


def test_vispruner_compared_to_few_bits_seldom_turns_on_the_last_ones():
    values = torch.tensor([0.7314, 0.731, -0.0123, 3.0])
    assert vispruner.rounded(values, 4).tolist() == [0.75, 0.75, -0.0126953125, 3.0]
    assert vispruner.rounded(values, None) is values
    generator, changed = torch.Generator().manual_seed(0), {}
    features = torch.randn(24, 576, 32, generator=generator).cumsum(dim=1)
    pool = torch.arange(576).expand(24, -1)
    again = features * (1 + 1e-6 * torch.randn(features.shape, generator=generator))
    for bits in (None, 4):
        pairs = zip(vispruner.diverse(features, pool, 32, bits), vispruner.diverse(again, pool, 32, bits), strict=True)
        changed[bits] = sum(set(a.tolist()) != set(b.tolist()) for a, b in pairs)
    assert changed[None] >= 12 and changed[4] <= 2, changed


def test_pool_averages_cells():
    shape = VisualShape(patches=576)
    hidden = torch.randn(2, 576, 4, generator=torch.Generator().manual_seed(0))
    view = SimpleNamespace(hidden=hidden, count=576)
    selection = chosen(pool.Pool().plan(64, shape), view)
    blocks = hidden.view(2, 8, 3, 8, 3, 4).mean(dim=(2, 4)).flatten(1, 2)
    assert torch.allclose(selection.value, blocks, atol=1e-6) and selection.dominant == 0
    assert selection.index[0].tolist() == [(3 * r + 1) * 24 + 3 * c + 1 for r in range(8) for c in range(8)]
    fate = dict(zip(selection.merged[1].tolist(), selection.assignment[1].tolist()))
    assert len(fate) == 512 and all(fate[p] == p // 24 // 3 * 8 + p % 24 // 3 for p in fate)
    for tokens, (h, w) in {192: (12, 16), 128: (8, 16), 32: (4, 8), 576: (24, 24)}.items():
        uneven = pool.Pool().plan(tokens, shape).stages
        if tokens == 576:
            assert uneven[0].keep == 576  # nothing to do
            continue
        value = uneven[0].select(view, uneven[0].kept).value
        edges = [[(math.floor(i * 24 / n), math.ceil((i + 1) * 24 / n)) for i in range(n)] for n in (h, w)]
        image = hidden.view(2, 24, 24, 4)
        wanted = torch.stack([image[:, a:b, c:d].mean(dim=(1, 2)) for a, b in edges[0] for c, d in edges[1]], dim=1)
        assert torch.allclose(value, wanted, atol=1e-6), tokens


def test_uniform_is_a_regular_grid_or_nearly():
    shape = VisualShape(patches=576)
    assert uniform.sub_grid(shape, 64).tolist() == [(3 * r + 1) * 24 + 3 * c + 1 for r in range(8) for c in range(8)]
    for count in range(1, 577):
        places = spread(24, 24, count)
        assert len(places) == count and places.tolist() == sorted(set(places.tolist())) and int(places.max()) < 576
        if count >= 24:
            per_row = torch.bincount(places // 24, minlength=24)
            assert per_row[per_row > 0].max() - per_row[per_row > 0].min() <= 1
    strip = VisualShape(patches=20, length=20)  # no square: every n-th of the sequence
    assert uniform.sub_grid(strip, 5).tolist() == [2, 6, 10, 14, 18]


def test_random_is_drawn_per_image_without_cls():
    shape = VisualShape(patches=576, length=577)  # [CLS] in front
    assert cls_slots(shape) == [0] and cls_slots(VisualShape()) == []
    plan = random_control.Random().plan(64, shape)
    keep = plan.stages[0].keep

    def draw(seed, *images):
        stage = random_control.Random(seed=seed).plan(64, shape).stages[0]
        view = SimpleNamespace(hidden=torch.zeros(len(images), 577, 1), count=577, seeds=list(images), keep=keep)
        return stage.select(view, stage.kept).index

    first, second = draw(0, 11, 12)
    assert plan.seeded and first.tolist() == sorted(set(first.tolist())) and int(first.min()) >= 1 and keep == 64
    assert torch.equal(draw(0, 12, 11)[1], first) and torch.equal(draw(0, 12)[0], second)
    assert not torch.equal(first, second) and not torch.equal(draw(1, 11)[0], first)
    hits = sum(torch.bincount(draw(0, image)[0], minlength=577) for image in range(2000))
    assert (
        hits[0] == 0
        and 0.7 < hits[1:].min() / hits[1:].float().mean()
        and hits[1:].max() / hits[1:].float().mean() < 1.3
    )


def test_controls_find_the_patches_of_frames_and_of_a_canvas():
    video = VisualShape(patches=4, units=2, nominal_units=2, length=10, kind="video")  # [CLS] before each frame
    assert [g.slots().flatten().tolist() for g in grids(video)] == [[1, 2, 3, 4], [6, 7, 8, 9]] and cls_slots(
        video
    ) == [0, 5]
    # A base picture of 2 x 2 patches, then a canvas of 2 x 3 whose rows end with a newline.
    tiles = VisualShape(patches=4, units=3, nominal_units=5, length=12, source="anyres", canvas=(2, 3))
    assert [g.slots().flatten().tolist() for g in grids(tiles)] == [[0, 1, 2, 3], [4, 5, 6, 8, 9, 10]]
    hidden = torch.arange(12.0).view(1, 12, 1)
    selection = chosen(pool.Pool(grid="1x1").plan(None, tiles), SimpleNamespace(hidden=hidden, count=12))
    assert selection.value.flatten().tolist() == [1.5, 6.5, 7.5]  # two cells of 1.5 columns overlap
    assert grids(VisualShape(units=5, nominal_units=5, length=2144, source="anyres")) is None


def test_visual_pyramiddrop_scores_are_visiondrops(model):
    """On equal states: the first stage after eight full layers, and every stage of VisionDrop's own trace."""
    ids, pictures = torch.tensor([models.prompt()]), models.pixels(0)
    scores = []
    for settings in (dict(method="pyramiddrop", score="visual"), dict(method="visiondrop", encoder="off")):
        with visiondrop.apply(model, tokens=192, report=True, options={"layers": "2,4,6"}, **settings) as handle:
            model(input_ids=ids, images=pictures)
            scores.append(handle.report.stages[0].scores[0])
            assert all(len(reference) == 0 for s in handle.report.stages for reference in s.reference) == (
                "score" in settings
            )
    assert torch.equal(*scores)

    seen = []

    @register("both")
    def both(tokens, shape):
        plan, visual = parse("visiondrop").plan(tokens, shape), pyramiddrop.by_image

        def spied(select):
            return lambda view, kept: (seen.append(visual(view, kept).scores[0]), select(view, kept))[1]

        return dataclasses.replace(
            plan, stages=tuple(dataclasses.replace(s, select=spied(s.select)) for s in plan.stages)
        )

    trace = np.load(FOLDER / "visiondrop_64_0.npz")
    try:
        with visiondrop.apply(models.native(), method="both", tokens=64) as handle:
            handle.model(input_ids=ids, images=pictures)
    finally:
        del _METHODS["both"]
    assert len(seen) == 3
    for s, score in enumerate(seen, start=1):
        assert np.abs(score.numpy() - trace[f"stage{s}_score"]).max() <= 1e-6


@pytest.mark.parametrize("mask", ["causal", "queries", "bidirectional"])
def test_score_masks_by_dense_maps(mask):
    generator = torch.Generator().manual_seed(0)
    heads, before, count, width = 3, 4, 9, 8
    query = torch.randn(1, heads, count, width, generator=generator)
    key = torch.randn(1, heads, before + count, width, generator=generator)
    weights = (query @ key.transpose(2, 3) / width**0.5)[0]  # [H, n, P + n]
    if mask != "bidirectional":
        weights = weights.masked_fill(
            torch.ones(count, before + count, dtype=torch.bool).triu(before + 1), float("-inf")
        )
    map_ = weights.softmax(-1).mean(0)[:, before:]
    wanted = map_.sum(0) / (torch.arange(count, 0, -1) if mask == "queries" else count)
    for chunk in (256, 4):
        got = received(query, key, width**-0.5, None, mask, chunk)[0]
        assert (got - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize("method", ["visiondrop", "pyramiddrop"])
def test_score_masks_change_the_choice_but_not_with_the_question(model, method):
    kept = {}
    for mask in ("causal", "queries", "bidirectional"):
        with visiondrop.apply(model, method=method, tokens=100, score="visual", score_mask=mask, report=True) as handle:
            answers = []
            for prompt in (models.prompt(), models.prompt()[:36] + models.prompt(7, 35, 9)[36:]):
                model(input_ids=torch.tensor([prompt]), images=models.pixels(0))
                answers.append([s.kept(0).tolist() for s in handle.report.stages])
            assert answers[0] == answers[1]
            kept[mask] = answers[0]
    assert kept["causal"] != kept["queries"] != kept["bidirectional"] != kept["causal"]
    # The causal score favours early patches, which more queries see; dividing by the queries that see a key undoes that.
    first = -3 if method == "visiondrop" else 0
    assert np.mean(kept["causal"][first]) < np.mean(kept["queries"][first])


def test_visiondrop_with_text_scores_reads_the_question_in_the_decoder_only(model):
    with visiondrop.apply(model, method="visiondrop", tokens=100, score="text", report=True) as handle:
        answers = []
        for prompt in (models.prompt(), models.prompt()[:36] + models.prompt(7, 35, 9)[36:]):
            handle.reset()
            model(input_ids=torch.tensor([prompt]), images=models.pixels(0))
            answers.append([s.kept(0).tolist() for s in handle.report.stages])
    assert handle.plan.text_guided and answers[0][0] == answers[1][0] and answers[0][1] != answers[1][1]
