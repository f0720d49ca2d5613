"""One dial: budgets, presets and explicit amounts of every method, the tables in configs/methods, depth, FLOPs."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

import visiondrop
from tests.support import clip, models
from visiondrop.methods.registry import parse
from visiondrop.plans.flops import LLAVA_7B, tower
from visiondrop.plans.plan import Plan
from visiondrop.plans.shape import VisualShape

ROOT = Path(__file__).resolve().parents[2]
TABLES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs" / "methods").glob("*.yaml"))}
BUDGETS = (192, 128, 64, 32)
SPARSEVLM_MEANS = {192: 206.5, 128: 145.40625, 64: 82.25}
UNREACHABLE = {
    ("fastv", 32): "36 … 576",
    ("pyramiddrop", 32): "36 … 576",
    ("sparsevlm", 32): "64, 96, 128, 192",
    ("vscan", 32): "the nearest are",
    ("dart", 32): "36 … 576",
}
METHODS = [name for name in visiondrop.available() if name not in ("none", "toy")]
ROWS = [(name, row) for name, table in TABLES.items() for row in table["settings"]]
PRESETS = [(name, row) for name, table in TABLES.items() for row in table["presets"]]


def shape_of(row: dict) -> VisualShape:
    units = row.get("units", 1)
    return VisualShape(
        layers=row.get("layers", 32),
        patches=row.get("patches", 576),
        units=units,
        nominal_units=units,
        kind=row.get("kind", "image"),
    )


def make(name: str, tokens, row: dict, options: dict) -> Plan:
    return visiondrop.plan(name, tokens, shape=shape_of(row), options=options)


def test_every_method_has_a_table_and_every_table_a_method():
    assert set(TABLES) == {*METHODS, "none"}
    known = {
        "tokens",
        "counts",
        "amounts",
        "mean",
        "status",
        "source",
        "units",
        "patches",
        "layers",
        "kind",
        "options",
        "output_mean",
        "pairs",
        "preset",
    }
    for name, table in TABLES.items():
        assert set(table) == {"method", "code", "rule", "settings", "presets"} and table["method"] == name
        for row in (*table["settings"], *table["presets"]):
            assert set(row) <= known, row
            assert row["status"] in ("given", "derived") and row["source"]


@pytest.mark.parametrize("name, row", ROWS, ids=[f"{name}-{row['tokens']}" for name, row in ROWS])
def test_the_code_does_what_the_tables_say(name, row):
    options = row.get("options", {})
    plan = make(name, row["tokens"], row, options)
    assert plan.counts == row["counts"]
    assert plan.ledger().mean == pytest.approx(row["mean"], abs=1e-9)
    if "pairs" in row:
        assert [[s.dominant, s.contextual] for s in (plan.encoder, *plan.stages)] == row["pairs"]
    if "output_mean" in row:
        assert (
            f"mean {row['output_mean']:.2f}" in plan.notes[0] and f"{row['mean']:.2f} at layer inputs" in plan.notes[0]
        )
    if "amounts" in row:
        explicit = make(name, None, row, row["amounts"])
        assert explicit.counts == row["counts"] and explicit.tokens is None
        assert [s.layer for s in explicit.stages] == [s.layer for s in plan.stages]
        if plan.encoder is not None:
            amounts = {"dominant": plan.encoder.dominant, "contextual": plan.encoder.contextual}
            assert amounts == row["amounts"]


@pytest.mark.parametrize("name, row", PRESETS, ids=[f"{name}-{row['preset']}" for name, row in PRESETS])
def test_presets_are_explicit_amounts_by_name(name, row):
    plan = make(name, None, row, {"preset": row["preset"]})
    explicit = make(name, None, row, row["amounts"])
    assert plan.counts == explicit.counts == row["counts"] and plan.ledger().mean == row["mean"]
    assert [s.layer for s in plan.stages] == [s.layer for s in explicit.stages]
    assert "explicit settings" in str(plan.ledger()) and f"mean {row['mean']:.2f}" in str(plan.ledger())


def test_every_preset_of_the_code_is_in_a_table():
    from visiondrop.methods.decoder import dart, fastv, pyramiddrop, sparsevlm
    from visiondrop.methods.staged import vscan

    for name, module in (("dart", dart), ("fastv", fastv), ("pyramiddrop", pyramiddrop), ("vscan", vscan)):
        assert set(module.PRESETS) == {row["preset"] for row in TABLES[name]["presets"]}
    rows = TABLES["sparsevlm"]["settings"]
    assert {t: list(kept) for t, kept in sparsevlm.TABLES.items()} == {r["tokens"]: r["amounts"]["keep"] for r in rows}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tokens", BUDGETS)
def test_one_dial(method, tokens):
    if (method, tokens) in UNREACHABLE:
        with pytest.raises(visiondrop.VisionDropError, match=UNREACHABLE[method, tokens]):
            visiondrop.plan(method, tokens)
        return
    ledger = visiondrop.plan(method, tokens).ledger()
    if method == "sparsevlm":
        assert ledger.mean == SPARSEVLM_MEANS[tokens]
    else:
        assert abs(ledger.mean - tokens) <= 1
    assert ledger.cache_entries == sum(ledger.tokens_per_layer) + 32 * 63
    assert json.dumps(ledger.as_dict())


@pytest.mark.parametrize("tokens", BUDGETS)
def test_equal_means_cost_equal_flops(tokens):
    flops = {}
    for method in METHODS:
        if (method, tokens) not in UNREACHABLE and method != "sparsevlm":
            plan = visiondrop.plan(method, tokens)
            # Outside the tower: FlowCut makes it shorter, beyond the budget of the language model.
            short, whole = (tower(LLAVA_7B, 576, 24, 1, rows) for rows in (plan.tower_rows(24), None))
            flops[method] = plan.ledger().flops - short + whole
    strict = (
        {} if tokens == 32 else {"sparsevlm": visiondrop.plan("sparsevlm", tokens, strict_budget="on").ledger().flops}
    )
    flops |= strict
    assert len(flops) >= 6 and max(flops.values()) / min(flops.values()) <= 1.03, flops


@pytest.fixture(scope="module")
def deep():
    return models.native()


@pytest.mark.parametrize("method", METHODS)
def test_the_cache_holds_what_the_ledger_says(method, deep):
    ids, pictures = torch.tensor([models.prompt()]), models.pixels(0)
    for tokens in (b for b in BUDGETS if (method, b) not in UNREACHABLE):
        own = {"clip": (clip.model(), clip.tokenizer)} if method == "cdpruner" else {}
        how = dict(report=True, tokenizer=clip.Prompts(), **own)
        with visiondrop.apply(deep, method=method, tokens=tokens, **how) as handle:
            cache = deep(input_ids=ids, images=pictures, use_cache=True, logits_to_keep=1).past_key_values
            ledger = handle.plan.ledger(text_tokens=57)
            lengths = cache.physical_lengths()
            assert lengths == [57 + n for n in ledger.tokens_per_layer] == handle.report.cache_lengths[0]
            assert sum(lengths) == ledger.cache_entries


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "visionzip", "vispruner", "random", "uniform", "pool"])
@pytest.mark.parametrize("layers", [12, 32])
def test_every_reachable_budget_is_met_within_a_token(method, layers):
    floor = {"fastv": 48, "pyramiddrop": 48} if layers == 12 else {"fastv": 36, "pyramiddrop": 36}
    reached = []
    for tokens in range(1, 577):
        plan = parse(method).plan(tokens, VisualShape(layers=layers))  # None = not reachable
        if plan is not None:
            reached.append(tokens)
            assert abs(plan.ledger().mean - tokens) <= 1, tokens
    assert method == "pool" or reached == list(range(reached[0], 577))
    assert reached[0] == floor.get(method, 1) and reached[-1] == 576
    if reached[0] > 1:
        with pytest.raises(visiondrop.VisionDropError, match=f"{reached[0]} … 576"):
            visiondrop.plan(method, reached[0] - 1, layers=layers)


def test_strict_sparsevlm_solves_for_a_true_mean_or_refuses():
    for tokens in range(58, 577, 7):
        plan = visiondrop.plan("sparsevlm", tokens, strict_budget="on")
        assert abs(plan.ledger().mean - tokens) <= 1 and all(s.keep <= n for s, n in zip(plan.stages, plan.counts))
    table = visiondrop.plan("sparsevlm", 192).counts
    near = visiondrop.plan("sparsevlm", 206, strict_budget=True).counts  # the table's own mean is 206.5
    assert all(abs(a - b) <= 1 for a, b in zip(table, near))
    with pytest.raises(visiondrop.VisionDropError, match="57 … 576"):
        visiondrop.plan("sparsevlm", 32, strict_budget="on")


def test_layer_settings_move_with_the_depth_and_fractions_are_solved_again():
    at = {method: [s.layer for s in visiondrop.plan(method, 192, layers=12).stages] for method in METHODS}
    assert (at["fastv"], at["pyramiddrop"], at["sparsevlm"]) == ([1], [1, 3, 6], [1, 3, 6])
    assert visiondrop.plan("fastv", 64, layers=12).counts == [576, 17]  # (12 * 64 - 576) / 11 = 17.45
    assert abs(visiondrop.plan("pyramiddrop", 64, layers=12).ledger().mean - 64) <= 1
    assert visiondrop.plan("fastv", preset="keep-144", layers=12).tokens_per_layer() == [576] + [144] * 11
    default = visiondrop.plan("pyramiddrop", preset="default", layers=12)
    assert default.tokens_per_layer() == [576] * 3 + [288] * 3 + [144] * 3 + [72] * 3
    assert [visiondrop.plan("fastv", tokens, layers=40).counts[-1] for tokens in (192, 128, 64)] == [172, 104, 37]


def test_other_numbers_of_tokens_keep_the_fraction():
    """An unpadded LLaVA-NeXT picture of 2144 tokens, newlines included; budgets are stated for 2880."""
    shape = VisualShape(units=5, nominal_units=5, length=2144, source="anyres")
    for method in ("fastv", "pyramiddrop", "random", "uniform"):
        plan = visiondrop.plan(method, 320, shape=shape)
        assert plan.ledger().mean == pytest.approx(320 * 2144 / 2880, abs=1)
    for method in ("visionzip", "vispruner"):  # by units
        three = VisualShape(units=3, nominal_units=5, length=1176, source="anyres")
        assert visiondrop.plan(method, 320, shape=three).counts == [192]
    with pytest.raises(visiondrop.VisionDropError, match="strict_budget=on"):
        visiondrop.plan("sparsevlm", 320, shape=shape)
    with pytest.raises(visiondrop.VisionDropError, match="no square grid"):
        visiondrop.plan("pool", 320, shape=shape)


@pytest.mark.parametrize(
    "method, settings, words",
    [
        ("fastv", dict(), "tokens=64 .*preset=…, or keep=…"),
        ("fastv", dict(tokens=64, keep=30), "tokens=64 and keep=30 given together"),
        ("fastv", dict(tokens=64, preset="keep-144"), "given together"),
        ("fastv", dict(preset="keep-144", k=3), "given together"),
        ("fastv", dict(preset="keep-145"), "'keep-72', 'keep-144'"),
        ("fastv", dict(keep=577), "0 … 576"),
        ("fastv", dict(tokens=64, k=0), "1 … 31"),
        ("fastv", dict(tokens=64, k=4), "72 … 576"),
        ("pyramiddrop", dict(tokens=128, options={"layers": "8,16,24"}), "144 … 576"),
        ("pyramiddrop", dict(options={"layers": "16,8", "ratio": 0.5}), "ascending"),
        ("pyramiddrop", dict(ratio=1.5), "from 0 to 1"),
        ("pyramiddrop", dict(ratio="0.5,0.25"), "each of the 3 stages"),
        ("pyramiddrop", dict(ratio="0.2,0.5,0.1"), "cannot keep more"),
        ("pyramiddrop", dict(tokens=64, score="both"), "'visual', 'text'"),
        ("pyramiddrop", dict(tokens=64, score_mask="queries"), "needs score='visual'"),
        ("visiondrop", dict(tokens=64, score="text", score_mask="queries"), "needs score='visual'"),
        ("visiondrop", dict(tokens=64, score_mask="none"), "'causal', 'queries', 'bidirectional'"),
        ("sparsevlm", dict(keep="66,30"), "give 3 counts"),
        ("sparsevlm", dict(keep="66,30,17", options={"layers": "0,3,7"}), "first is 1 or more"),
        ("sparsevlm", dict(tokens=64, noise=[torch.zeros(154)]), r"lengths \[154, 16, 5\]"),
        ("sparsevlm", dict(tokens=100), "64, 96, 128, 192"),
        ("sparsevlm", dict(tokens=64, seed=-1), "0 … "),
        ("visionzip", dict(dominant=54), "give both"),
        ("visionzip", dict(dominant=500, contextual=100), "0 … 76"),
        ("vispruner", dict(tokens=64, important_ratio=0), "above 0"),
        ("vispruner", dict(), "tokens=64"),
        ("random", dict(tokens=64, seed="x"), "whole numbers"),
        ("pool", dict(tokens=31), "with gaps"),
        ("pool", dict(grid="25x4"), "up to 24x24"),
    ],
)
def test_wrong_requests_are_answered_with_what_is_allowed(method, settings, words):
    with pytest.raises(visiondrop.VisionDropError, match=words) as error:
        visiondrop.plan(method, **settings)
    assert "\n" not in str(error.value)


def test_explicit_amounts_are_read_from_text_too():
    assert visiondrop.plan("fastv", k="3", keep="144").counts == [576, 144]
    assert visiondrop.plan("pyramiddrop", ratio="0.5,0.25,0.125", options={"layers": "8,16,24"}).counts == [
        576,
        288,
        144,
        72,
    ]
    assert visiondrop.plan("visionzip", dominant="54", contextual="10").counts == [64]
    assert visiondrop.plan("sparsevlm", keep="66,30,17").counts == [576, 82, 32, 18]
    assert visiondrop.plan("pool", grid="16x12").counts == [576, 192]
    assert visiondrop.plan("pyramiddrop", ratio=0.25, options={"layers": 2}).counts == [576, 144]
    noise = [torch.zeros(n) for n in (154, 16, 5)]
    assert (
        json.loads(json.dumps(visiondrop.plan("sparsevlm", 64, noise=noise).ledger().as_dict()))["options"]["noise"][2]
        == [0] * 5
    )


@pytest.mark.parametrize("path", sorted((ROOT / "visiondrop" / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_a_method_file_is_tensor_arithmetic(path):
    """Only torch, the standard library and the package's own modules; short; every public function documented."""
    source = path.read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    assert len(source.splitlines()) <= (220 if path.stem == "sparsevlm" else 150)
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        assert {n.split(".")[0] for n in names} <= {"torch", *sys.stdlib_module_names}, names
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
    assert (
        "transformers" not in source
        and "self_attn" not in source
        and "llava." not in source.lower().replace("llava-", "")
    )
