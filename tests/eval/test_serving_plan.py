"""The queue against M/D/1 and hand-made schedules; the roofline against hand arithmetic; plans and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest

from eval.serving import __main__ as tool
from eval.serving import capacity, plan
from eval.serving.capacity import Card, Point
from eval.serving.queueing import Engine, Work, engines, most, p95, poisson, simulate


def fixed(ms: float, **more) -> Engine:
    return Engine(lambda work: ms, **{"batched": 100, "cache": 10**9, "seqs": 1, **more})


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_waits_as_long_as_in_an_md1_queue(load):
    service = 10.0
    found = simulate(fixed(service), poisson(1e3 * load / service, 60_000, 1), 100, 1)
    assert found.mean() - service == pytest.approx(service * load / (2 * (1 - load)), rel=0.06)


def test_a_schedule_by_hand():
    """Prompts of 6, steps of 8 tokens: 6 + 2 of the second, then 4 of the second beside one token of the first, …"""
    seen: list[Work] = []
    engine = Engine(lambda work: seen.append(work) or 1.0, batched=8, cache=1000, seqs=10)
    assert simulate(engine, [0.0, 0.0], 6, 3).tolist() == [1.0, 2.0]
    assert [w.chunks for w in seen] == [((6, 0), (2, 0)), ((4, 2),), (), ()]
    assert [w.pictures for w in seen] == [2, 0, 0, 0] and [w.decoding for w in seen] == [0, 1, 2, 1]
    assert [w.finished for w in seen] == [1, 1, 0, 0] and [w.held for w in seen] == [0, 7, 8 + 7, 8]


def test_the_cache_lets_in_what_it_can_hold():
    engine = Engine(lambda work: 1.0, batched=1000, cache=20, seqs=10)
    found = simulate(engine, [0.0] * 4, 9, 1)  # 10 tokens each: two at a time
    assert found.tolist() == [1.0, 1.0, 2.0, 2.0]
    assert np.isinf(simulate(engine, [0.0], 20, 1)).all()
    assert simulate(fixed(1.0), [0.0, 0.0], 9, 1).tolist() == [1.0, 2.0]  # one inside at a time


def test_the_fewest_engines_are_found():
    engine, rate, limit = fixed(10.0), 450.0, 30.0
    found = engines(engine, rate, limit, 100, 1)
    assert p95(engine, rate / found, 100, 1, 3000) <= limit < p95(engine, rate / (found - 1), 100, 1, 3000)
    assert engines(engine, 1.0, limit, 100, 1) == 1 and engines(engine, rate, 9.0, 100, 1) is None


def test_one_engine_is_full_where_a_second_one_is_needed():
    full = most(fixed(10.0), 30.0, 100, 1)
    assert p95(fixed(10.0), full, 100, 1, 3000) <= 30 < p95(fixed(10.0), 1.02 * full, 100, 1, 3000)
    assert most(fixed(10.0), 9.0, 100, 1) == 0


CARD = Card("card", 800e12, 4e12, 80e9, "made up", compute=0.5, traffic=0.4, tower=0.6, start=3.0)
D, M, V, LAYERS = 4096, 11008, 32000, 32


def test_passes_by_hand():
    layers, head = LAYERS * (4 * D * D + 3 * D * M), D * V
    assert capacity.weights(capacity.DIMS) == 2 * (layers + head)
    n = 64 + 63
    work = 16 * (LAYERS * (2 * n * (4 * D * D + 3 * D * M) + 4 * D * n * (n + 1) / 2) + 2 * head)
    expected = 1e3 * max(work / (0.5 * 800e12), 2 * (layers + head) / (0.4 * 4e12))
    assert capacity.predicted(CARD, Point("prefill", "visionzip", 64, 16, 1.0, graphs=True)) == pytest.approx(expected)
    # One token of one answer moves all weights and its cache, which takes longer than its arithmetic.
    moved = 2 * (layers + head) + 4 * LAYERS * D * (576 + 63)
    assert capacity.predicted(CARD, Point("decode", "none", None, 1, 1.0, graphs=True)) == pytest.approx(moved / 1.6e9)
    assert capacity.predicted(CARD, Point("decode", "none", None, 1, 1.0)) == CARD.launch


def test_what_fits_by_hand():
    held = 4 * LAYERS * D * (576 + 63 + 128) + 2 * (3 * M + 4 * D) * (576 + 63)
    left = 80e9 - capacity.all_weights(capacity.DIMS)
    assert capacity.fits(Point("fits", "none", None, 1, 0).plan, 80e9, 128) == left // held
    assert 7.0e9 < capacity.all_weights(capacity.DIMS) / 2 < 7.1e9  # LLaVA-1.5-7B has 7.06 billion parameters


def points_from(card: Card) -> list[Point]:
    cases = [
        ("first", 1, True),
        ("decode", 1, True),
        ("prefill", 16, False),
        ("encode", 16, False),
        ("decode", 1, False),
    ]
    cases += [("encode", 1, False)]
    kinds = [(method, tokens, *case) for method, tokens in (("none", None), ("visionzip", 64)) for case in cases]
    made = [Point(phase, method, tokens, batch, 1.0, graphs) for method, tokens, phase, batch, graphs in kinds]
    return [replace(p, value=capacity.predicted(card, p)) for p in made]


def test_constants_come_back_from_what_they_predict_and_one_disturbed_row_moves_nothing():
    true = replace(CARD, compute=0.47, traffic=0.61, tower=0.7, start=2.0, launch=31.0, launch_tower=9.0)
    points = points_from(true)
    for given in (points, [*points, replace(points[2], value=5 * points[2].value)]):
        found = capacity.calibrated(CARD, given)
        for name in capacity.FITTED:
            assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.03), name
    only = capacity.calibrated(CARD, [p for p in points if p.phase == "prefill"])
    assert only.compute == pytest.approx(0.47, rel=0.01) and only == replace(CARD, compute=only.compute)


def test_a_step_is_the_pass_that_was_checked():
    """The queue's step and the model of measured passes are the same arithmetic."""
    point = Point("first", "visionzip", 64, 3, 1.0, graphs=True)
    engine, prompt = capacity.engine(CARD, point.plan, 8192, 256, 0.9), 64 + 63
    step = engine.step_ms(Work(3, ((prompt, 0),) * 3, 0, 0, 3))
    assert step == pytest.approx(capacity.predicted(CARD, point), rel=1e-9)
    step = engine.step_ms(Work(0, (), 5, 5 * prompt, 0))
    assert step == pytest.approx(capacity.predicted(CARD, replace(point, phase="decode", batch=5)), rel=1e-6)
    # Cut in two, a prompt takes as many FLOPs.
    big = replace(CARD, bytes=1e18)
    engine = capacity.engine(big, point.plan, 8192, 256, 0.9)
    parts = engine.step_ms(Work(1, ((100, 0),), 0, 0, 0)) + engine.step_ms(Work(0, ((27, 100),), 0, 0, 1))
    assert parts == pytest.approx(engine.step_ms(Work(1, ((prompt, 0),), 0, 0, 1)), rel=1e-9)


def test_committed_rows_are_met_within_the_limit():
    for name in plan.CARDS:
        found = plan.known(name)
        used = [abs(plan.error(p, said)) for _, p, said in found.checks if p.used and p.method in ("none", "visionzip")]
        assert len(used) > 10 and max(used) <= plan.LIMIT


def run(*more) -> int:
    return tool.main(["plan", "--rate", "50/s", "--ttft", "300ms", "--requests", "400", *more])


def test_a_plan_names_gpus_and_costs_and_prints_every_error(capsys):
    assert run("--gpu", "h200", "--price", "2") == 0
    out = capsys.readouterr().out
    assert out.count("%") > 80 and "prefill, visionzip 64, batch 16" in out
    lines = {line[:16].strip(): line[16:].split() for line in out.splitlines() if line.endswith(tuple("0123456789"))}
    gpus, hours, cost = (float(x) for x in lines["unpruned"][:3])
    assert hours == pytest.approx(gpus * 1e6 / 50 / 3600, abs=0.01) and cost == pytest.approx(2 * hours, abs=0.02)
    assert float(lines["visionzip 64"][0]) <= gpus
    assert run("--gpu", "h100") == 0 and "(--price)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, sentence",
    [
        (("--method", "vispruner"), "so nothing is planned"),
        (("--method", "divprune"), "was not measured on such a card"),
        (("--method", "visiondrop"), "inside the decoder"),
        (("--ttft", "3ms"), "one request alone takes"),
        (("--ttft", "soon"), "units ms, s"),
        (("--rate", "0/s"), "above 0"),
        (("--seqs", "0"), "--seqs 0"),
        (("--price", "-1"), "--price -1.0"),
        (("--memory-share", "0.1"), "raise --memory-share"),
    ],
)
def test_what_cannot_be_planned_is_refused(more, sentence, capsys):
    assert run(*more) == 2
    assert sentence in capsys.readouterr().err
