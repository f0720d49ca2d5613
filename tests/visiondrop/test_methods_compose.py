"""Typed methods and their string form; two methods composed: against one alone, dense maps, one pass, singles."""

import dataclasses
import json

import pytest
import torch

import visiondrop
from tests.support import models
from visiondrop import (
    CDPruner,
    FastV,
    FlowCut,
    PyramidDrop,
    Random,
    SparseVLM,
    Uniform,
    VisionDrop,
    VisionZip,
    VisPruner,
    compose,
    parse,
)
from visiondrop.methods.registry import _METHODS, method_class, request
from visiondrop.plans.plan import Kept, Plan, Stage
from visiondrop.plans.shape import VisualShape

LAYERS = 8
TOLERANCE = 1e-5
PAIRS = {
    "vispruner+fastv": compose(encoder=VisPruner(), decoder=FastV(), tokens=80),
    "visionzip+visiondrop": compose(encoder=VisionZip(), decoder=VisionDrop(encoder=False), tokens=80),
    "visionzip+pyramiddrop": compose(encoder=VisionZip(), decoder=PyramidDrop(), tokens=80, encoder_share=0.8),
    "flowcut+fastv": compose(encoder=FlowCut(), decoder=FastV(), tokens=80),
    "vispruner+random": compose(encoder=VisPruner(), decoder=Random(seed=3), tokens=80),
}
SETTINGS = [
    VisionDrop(tokens=64, merge=False, layers=(8, 16, 20), dominant_ratio=0.5),
    FastV(keep=30, k=3),
    PyramidDrop(ratio=(0.5, 0.25, 0.125)),
    PyramidDrop(ratio=0.5, score="visual", score_mask="queries"),
    SparseVLM(tokens=100, strict_budget=True, seed=4),
    VisionZip(dominant=54, contextual=10),
    visiondrop.Pool(grid=(16, 12)),
    Uniform(tokens=64),
    *PAIRS.values(),
    compose(encoder=VisionZip(dominant=100, contextual=20), decoder=FastV(k=4), tokens=64),
]


@pytest.fixture(scope="module")
def native():
    return models.native(LAYERS)


def facts(plan: Plan) -> tuple:
    return plan.tokens, plan.counts, [s.layer for s in plan.stages], [s.kept for s in plan.stages], plan.options


@pytest.mark.parametrize("value", SETTINGS, ids=lambda value: value.name)
def test_a_value_and_its_words_are_the_same_method(value):
    name, tokens, options = request(value, None, {})
    assert json.loads(json.dumps(options)) == options
    assert parse(name, tokens, options) == value
    assert parse(name, tokens, {k: str(v) for k, v in options.items()}) == value
    assert facts(visiondrop.plan(value)) == facts(visiondrop.plan(name, tokens, options=options))


def test_options_are_the_fields():
    for name in visiondrop.available():
        cls = method_class(name)
        told = [f for f in dataclasses.fields(cls) if f.name != "tokens"]
        assert cls.name == name and all(f.metadata["help"] for f in told)
        assert cls() == parse(name) and parse(name).options() == {}
    assert VisionDrop(merge="off", layers="8,16,24") == VisionDrop(merge=False, layers=(8, 16, 24))
    with pytest.raises(TypeError, match="scroe"):
        VisionDrop(scroe="text")
    with pytest.raises(visiondrop.VisionDropError, match="'on' and 'off'"):
        VisionDrop(merge="maybe")
    with pytest.raises(dataclasses.FrozenInstanceError):
        VisionDrop().merge = False


def test_a_setting_is_given_once():
    assert visiondrop.plan(VisPruner(), 64).counts == [64]
    for settings in (dict(tokens=32), dict(important_ratio=0.3)):
        with pytest.raises(visiondrop.VisionDropError, match="set it in the value"):
            visiondrop.plan(VisPruner(tokens=64), **settings)
    with pytest.raises(visiondrop.VisionDropError, match="give a name"):
        visiondrop.plan(VisPruner)


def test_a_class_of_ones_own_and_a_function_are_registered_alike():
    def stages(tokens, layer):
        return (Stage(layer, Kept(tokens), lambda view, kept: None),)

    @visiondrop.register("own")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(visiondrop.Method):
        layer: int = visiondrop.option(0, "where")

        def plan(self, tokens, shape):
            return Plan("own", shape, stages=stages(tokens, self.layer))

    @visiondrop.register("plain")
    def plain(tokens, shape, *, layer=0):
        return Plan("plain", shape, stages=stages(tokens, int(layer)))

    try:
        for name in ("own", "plain"):
            assert visiondrop.plan(name, 64, layer="2").tokens_per_layer()[1:3] == [576, 64]
            assert visiondrop.plan(name, 64, layer="2").options == {"layer": "2"}
            with pytest.raises(visiondrop.VisionDropError, match="did you mean 'layer'"):
                visiondrop.plan(name, 64, layr=2)
        with pytest.raises(visiondrop.VisionDropError, match="a dataclass itself"):
            visiondrop.register("bare")(type("Bare", (visiondrop.Method,), {}))
    finally:
        del _METHODS["own"], _METHODS["plain"]


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("encoder", [VisPruner(), VisionZip()], ids=lambda m: m.name)
@pytest.mark.parametrize(
    "decoder", [FastV(), PyramidDrop(), VisionDrop(encoder=False), SparseVLM(strict_budget=True)], ids=lambda m: m.name
)
def test_two_methods_meet_one_budget_or_say_which(encoder, decoder, share):
    both = compose(encoder=encoder, decoder=decoder, encoder_share=share)
    reached = []
    for tokens in (16, 64, 128, 192, 300):
        try:
            plan = visiondrop.plan(both, tokens)
        except visiondrop.VisionDropError as error:
            assert "reachable" in str(error)
            continue
        reached.append(tokens)
        assert abs(plan.ledger().mean - tokens) <= 1
        share_of = 0.9 if share is None else share
        assert abs(576 - plan.entry - share_of * (576 - tokens)) <= 0.5
        assert plan.method == both.name and f"method {both.name}" in str(plan.ledger())
        removed = [576 - plan.entry, f"{plan.entry - plan.ledger().mean:.2f}"]
        assert all(str(n) in plan.notes[-1] for n in removed)
        if share == 1.0:
            assert not plan.live_stages and facts(plan)[1][0] == visiondrop.plan(encoder, tokens).entry
    assert len(reached) >= 3 or share == 0.0


def test_other_sizes_get_their_fractions():
    shape = VisualShape(units=3, nominal_units=5, length=1176, source="anyres")
    plan = visiondrop.plan(compose(encoder=VisPruner(), decoder=FastV(), tokens=320), shape=shape)
    nominal = visiondrop.plan("vispruner+fastv", 320, shape=VisualShape(units=5, nominal_units=5))
    assert plan.encoder.keep == nominal.encoder.keep and abs(nominal.ledger().mean - 320) <= 1
    assert plan.ledger().mean == pytest.approx(320 * 3 / 5, abs=1)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: compose(), "of nothing"),
        (lambda: compose(encoder="vispruner", decoder=FastV()), "give a method's value"),
        (lambda: compose(encoder=VisPruner(), encoder_share=0.5), "leave it out"),
        (lambda: compose(encoder=VisPruner(tokens=64), decoder=FastV()), "to both together"),
        (lambda: compose(encoder=VisPruner(tokens=64), tokens=32), "once"),
        (lambda: compose(encoder=VisPruner(), decoder=FastV(), encoder_share=1.5), "from 0 to 1"),
        (lambda: visiondrop.plan("vispruner+fastv"), "nothing says how much"),
        (lambda: visiondrop.plan("vispruner+fastv+fastv", 64), "two methods can be joined"),
        (lambda: visiondrop.plan("vispruner+fasv", 64), "did you mean 'fastv'"),
        (
            lambda: visiondrop.plan("vispruner+fastv", 64, k=3),
            "did you mean|encoder_share, encoder.tower_stages, encoder.important_ratio",
        ),
        (lambda: visiondrop.plan("fastv+fastv", 64), "acts inside the language model"),
        (lambda: visiondrop.plan("vispruner+visionzip", 64), "acts after the vision tower too"),
        (lambda: visiondrop.plan("vispruner+sparsevlm", 64), "strict_budget=on"),
        (lambda: visiondrop.plan("vispruner+pool", 64), "no square grid"),
        (lambda: visiondrop.plan("vispruner+fastv", 64, options={"decoder.keep": 9}), "decoder.keep=9 given together"),
        (
            lambda: compose(encoder=VisionZip(dominant=9, contextual=1), decoder=FastV(), encoder_share=0.5),
            "given together",
        ),
        (lambda: visiondrop.plan("vispruner+fastv", 20, encoder_share=0), "reachable with these settings: 36"),
    ],
)
def test_wrong_compositions_are_answered_with_what_is_allowed(make, words):
    with pytest.raises(visiondrop.VisionDropError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_explicit_amounts_of_both():
    both = compose(encoder=VisionZip(dominant=100, contextual=20), decoder=FastV(keep=30, k=4))
    assert visiondrop.plan(both).counts == [120, 30] and visiondrop.plan(both).stages[0].layer == 4
    half = compose(encoder=VisionZip(dominant=100, contextual=20), decoder=FastV(), tokens=64)
    assert visiondrop.plan(half).entry == 120 and abs(visiondrop.plan(half).ledger().mean - 64) <= 1


def test_one_part_alone_is_that_method(native):
    assert compose(encoder=VisPruner(), tokens=64) == VisPruner(tokens=64)
    assert compose(decoder=FastV(keep=9)) == FastV(keep=9)
    ids, pictures = torch.tensor([models.prompt()]), models.pixels(0)
    outputs = []
    for value in (VisPruner(tokens=64), compose(encoder=VisPruner(), decoder=FastV(), tokens=64, encoder_share=1.0)):
        with visiondrop.apply(native, value, report=True) as handle:
            outputs.append(native.generate(ids, images=pictures, max_new_tokens=4, do_sample=False))
            outputs.append(native(input_ids=ids, images=pictures).logits[:, -1])
            outputs.append(handle.report.stages[0].kept())
    assert all(torch.equal(a, b) for a, b in zip(outputs[:3], outputs[3:]))


def run(model, value, ids, pictures, **more):
    options = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return model.generate(torch.tensor([ids]), images=pictures, **options, **more)


@pytest.mark.parametrize("name", PAIRS)
def test_cached_equals_one_pass_and_uncached(name, native):
    ids, pictures = models.prompt(), models.pixels(0)
    with visiondrop.apply(native, PAIRS[name], report=True) as handle:
        cached = run(native, name, ids, pictures)
        kept = handle.report.stages[-1].kept().tolist()
        assert handle.report.tokens_per_layer[0] == handle.plan.tokens_per_layer()
        uncached = run(native, name, ids, pictures, use_cache=False)
        assert handle.report.stages[-1].kept().tolist() == kept
        assert torch.equal(cached.sequences, uncached.sequences)
        new = cached.sequences[0].tolist()
        for step, (with_cache, without) in enumerate(zip(cached.logits, uncached.logits)):
            one_pass = native(input_ids=torch.tensor([ids + new[:step]]), images=pictures).logits[:, -1]
            assert (with_cache - without).abs().max() <= TOLERANCE
            assert (with_cache - one_pass).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", PAIRS)
def test_a_batch_equals_singles(name, native):
    """Among them a prompt with two images, and one without any."""
    two = models.prompt(2, 12, 4) + models.prompt(3, 20, 7)[1:]
    prompts = [models.prompt(0), two, [t for t in models.prompt(9, 30, 0) if t >= 0], models.prompt(1, 35, 9)]
    pictures = [models.pixels(0), models.pixels(1, 2), None, models.pixels(3)]
    ids, mask = models.pad(prompts)
    options = dict(do_sample=False, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
    with visiondrop.apply(native, PAIRS[name], report=True):
        batch = native.generate(ids, attention_mask=mask, images=models.pixels(0, 1, 2, 3), **options)
        for row, (prompt, picture) in enumerate(zip(prompts, pictures)):
            single = native.generate(torch.tensor([prompt]), images=picture, **options)
            assert single.sequences[0].tolist() == batch.sequences[row].tolist()
            for a, b in zip(single.logits, batch.logits):
                assert (a[0] - b[row]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", PAIRS)
def test_static_shapes_give_the_same_answer(name, native):
    answers = []
    for compiled in (False, True):
        with visiondrop.apply(models.native(LAYERS) if compiled else native, PAIRS[name], compile=compiled) as handle:
            ids = torch.tensor([models.prompt()])
            answers.append(
                handle.model.generate(ids, images=models.pixels(0), max_new_tokens=6, do_sample=False).tolist()
            )
    assert answers[0] == answers[1]


def test_a_second_turn_on_the_kept_cache_equals_from_scratch(native):
    first, more = models.prompt(), [t for t in models.prompt(7, 12, 0) if t >= 0]
    pictures = models.pixels(0)
    with visiondrop.apply(native, PAIRS["visionzip+visiondrop"]):
        whole = native(input_ids=torch.tensor([first + more]), images=pictures).logits[:, -1]
        cache = native(input_ids=torch.tensor([first]), images=pictures, use_cache=True).past_key_values
        later = native(input_ids=torch.tensor([more]), past_key_values=cache, use_cache=True).logits[:, -1]
    assert (whole - later).abs().max() <= TOLERANCE


def test_vispruner_then_fastv_by_a_model_that_is_fed_the_kept_tokens(native):
    """What VisPruner keeps is handed to the plain stack as embeddings, numbered 0, 1, 2 …; FastV's stage by dense maps."""
    ids, pictures = models.prompt(), models.pixels(3)
    with visiondrop.apply(native, compose(encoder=VisPruner(), decoder=FastV(k=3), tokens=80), report=True) as handle:
        got = native(input_ids=torch.tensor([ids]), images=pictures).logits[0, -1]
        plan, entry, stage = handle.plan, handle.report.stages[0], handle.report.stages[1]
        at_entry, kept = entry.kept().tolist(), stage.kept().tolist()
    with visiondrop.apply(native, VisPruner(tokens=plan.entry), report=True) as handle:
        native(input_ids=torch.tensor([ids]), images=pictures)
        assert handle.report.stages[0].kept().tolist() == at_entry
        visual = handle.report.stages[0].hidden[0]
    visual = native.model.mm_projector(visual) if visual.shape[-1] != native.config.hidden_size else visual
    place = ids.index(-200)
    embed = native.get_input_embeddings()
    parts = [embed(torch.tensor(ids[:place])), visual, embed(torch.tensor(ids[place + 1 :]))]
    states = torch.cat(parts)[None]
    stock = models.native(LAYERS, attn="eager")
    stack, width = stock.model, states.shape[1]
    positions, row = torch.arange(width)[None], torch.zeros(width)
    for i, layer in enumerate(stack.layers):
        if i == 3:
            scores = row[place : place + plan.entry]
            chosen = sorted(scores.topk(plan.stages[0].keep).indices.tolist())
            assert [at_entry[j] for j in chosen] == kept
            columns = [*range(place), *(place + j for j in chosen), *range(place + plan.entry, width)]
            states, positions = states[:, columns], positions[:, columns]
        n = states.shape[1]
        mask = torch.full((n, n), torch.finfo(states.dtype).min).triu(1)[None, None]
        rope = stack.rotary_emb(states, position_ids=positions)
        if i == 2:
            attended = layer.self_attn(layer.input_layernorm(states), attention_mask=mask, position_embeddings=rope)
            row = attended[1][0].mean(0)[-1]
        states = layer(states, attention_mask=mask, position_embeddings=rope, position_ids=None)
        states = states[0] if isinstance(states, tuple) else states
    wanted = stock.lm_head(stack.norm(states))[0, -1]
    assert (got - wanted).abs().max() <= TOLERANCE


def test_what_an_encoder_stage_needs_goes_along():
    """Cuts inside the tower, the question and what choosing costs belong to the encoder's half of a composed plan."""
    both = visiondrop.plan(compose(encoder=CDPruner(clip="somewhere"), decoder=FastV(), tokens=64))
    assert both.question.clip == "somewhere" and both.text_guided and both.encoder.projected
    alone = visiondrop.plan("cdpruner", both.encoder.keep)
    rows = visiondrop.plan(compose(encoder=VisPruner(), decoder=FastV(), tokens=64)).ledger().flops
    extra = alone.ledger().flops - visiondrop.plan("vispruner", both.encoder.keep).ledger().flops
    assert both.ledger().flops - rows == pytest.approx(extra)
    cut = visiondrop.plan(compose(encoder=FlowCut(), decoder=FastV(), tokens=64))
    assert [s.layer for s in cut.tower] == list(range(1, 22, 2)) and cut.tower[-1].keep == cut.encoder.keep + 1
