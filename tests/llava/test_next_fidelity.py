"""LLaVA-NeXT against traces of the official codes (VisionZip, VisionDrop's path, VisPruner, SCOPE, CDPruner, HiPrune, VScan,
FlowCut, DivPrune)."""

from pathlib import Path

import numpy as np
import pytest
import torch

import visiondrop
from llava import anyres
from tests.support import clip, models, next_models

TRACES = Path(__file__).parents[1] / "support" / "golden" / "traces"
PATCHES = 576


@pytest.fixture(scope="module")
def loaded():
    return next_models.native(32, side=336)


@pytest.fixture(params=["fixed-2880", "anyres"])
def model(loaded, request):
    """Newlines and unpadding do not survive an encoder stage, so both layouts must give the official result."""
    anyres.use_layout(loaded, request.param)
    return loaded


def answer(model, crops, size, handle) -> tuple[list[int], np.ndarray]:
    """(8 tokens, logits) with a report of the prefill in `handle`."""
    settings = dict(images=crops[None], image_sizes=[size])
    ids = torch.tensor([models.prompt()])
    tokens = model.generate(ids, **settings, do_sample=False, max_new_tokens=8)[0].tolist()
    return tokens, model(input_ids=ids, **settings).logits[0, -1].numpy()


def local(ids: torch.Tensor, rows: int = 5) -> np.ndarray:
    """Ids of all crops as grid ids of each crop."""
    return (ids.view(rows, -1) - PATCHES * torch.arange(rows)[:, None]).numpy()


@pytest.mark.parametrize("method, tokens", [("visionzip", 320), ("visiondrop", 160)])
def test_encoder_and_stages_equal_the_official_code(model, method, tokens):
    trace = dict(np.load(TRACES / f"{method}next_{tokens}_0.npz"))
    with visiondrop.apply(model, method=method, tokens=tokens, report=True) as handle:
        found, logits = answer(model, models.pixels(*range(10, 15)), (672, 672), handle)
        report = handle.report
    assert found == trace["tokens"].tolist()
    assert np.abs(logits - trace["logits"]).max() <= 2e-5
    stage = report.stages[0]
    dominant = stage.dominant[0].view(5, -1)
    assert dominant[:, 0].tolist() == [-1, -2, -3, -4, -5]
    assert np.array_equal(local(dominant[:, 1:]), trace["enc_dominant"])
    assert np.array_equal(local(stage.reference[0]), trace["enc_reference"])
    expected = trace["enc_tokens"][trace["row_tile"], trace["row_slot"]]
    assert np.abs(stage.hidden[0].numpy() - expected).max() <= 2e-5
    unit = torch.cat([dominant, stage.reference[0].view(5, -1)], dim=1)
    sequence = unit[torch.from_numpy(trace["row_tile"]).long(), torch.from_numpy(trace["row_slot"]).long()]
    assert torch.equal(stage.kept(), sequence)
    for k, stage in enumerate(report.stages[1:], start=1):
        assert stage.layer == 8 * k
        assert torch.equal(stage.dominant[0], sequence[trace[f"stage{k}_dominant"]])
        assert torch.equal(stage.reference[0], sequence[trace[f"stage{k}_reference"]])
        assert np.abs(stage.hidden[0].numpy() - trace[f"stage{k}_visual_out"]).max() <= 2e-5
        assert np.abs(stage.scores[0].numpy() - trace[f"stage{k}_score"]).max() <= 1e-6
        sequence = stage.kept()
    assert len(report.stages) == (4 if method == "visiondrop" else 1)


def test_vispruner_equals_the_official_code(model):
    trace = dict(np.load(TRACES / "vispruner-next_32x5_0.npz"))
    size = tuple(trace["image_size"].tolist())
    with visiondrop.apply(model, method="vispruner", tokens=160, report=True) as handle:
        found, logits = answer(model, models.pixels(*trace["crop_seeds"].tolist()), size, handle)
        kept = handle.report.stages[0].kept()
    assert np.array_equal(torch.stack([kept // PATCHES, kept % PATCHES], dim=1).numpy(), trace["sequence_source"])
    masks = np.zeros((5, PATCHES), bool)
    masks[kept // PATCHES, kept % PATCHES] = True
    assert np.array_equal(masks, trace["kept_masks"])
    assert found == trace["generated"].tolist()
    assert np.abs(logits - trace["logits"]).max() <= 2e-5


def test_scope_equals_the_official_code(model):
    trace = dict(np.load(TRACES / "scope-next_160_0.npz"))
    size = tuple(trace["image_size_wh"].tolist())
    with visiondrop.apply(model, method="scope", tokens=160, report=True) as handle:
        found, logits = answer(model, models.pixels(*trace["crop_seeds"].tolist()), size, handle)
        kept = handle.report.stages[0].kept()
    assert np.array_equal(torch.stack([kept // PATCHES, kept % PATCHES], dim=1).numpy(), trace["sequence_source"])
    assert found == trace["generated"].tolist()
    assert np.abs(logits - trace["logits"]).max() <= 2e-5


def test_holov_equals_the_official_code(loaded):
    """One choice over base picture and unpadded canvas, newlines left out."""
    anyres.use_layout(loaded, "anyres")
    trace = dict(np.load(TRACES / "holov-next_160_0.npz"))
    size = tuple(trace["image_size_wh"].tolist())
    with visiondrop.apply(loaded, method="holov", tokens=160, report=True) as handle:
        found, logits = answer(loaded, models.pixels(*trace["crop_seeds"].tolist()), size, handle)
        kept = handle.report.stages[0].kept()
    assert np.array_equal(torch.stack([kept // PATCHES, kept % PATCHES], dim=1).numpy(), trace["sequence_source"])
    assert found == trace["generated"].tolist()
    assert np.abs(logits - trace["logits"]).max() <= 2e-5


def test_prunesid_equals_the_official_code(model):
    """Places exchanged among a tile's patches, as there; with `next_order=raster` each has its own."""
    trace = dict(np.load(TRACES / "prunesid-next_160_0.npz"))
    size, noise = tuple(trace["image_size_wh"].tolist()), [torch.from_numpy(trace["random_matrix"])]
    crops = models.pixels(*trace["crop_seeds"].tolist())
    with visiondrop.apply(model, method="prunesid", tokens=160, noise=noise, report=True) as handle:
        found, logits = answer(model, crops, size, handle)
        kept = handle.report.stages[0].kept().numpy()
    source = np.stack([kept // PATCHES, kept % PATCHES], axis=1)
    source[kept < 0] = np.stack([-1 - kept[kept < 0], np.full((kept < 0).sum(), -1)], axis=1)
    assert np.array_equal(source, trace["sequence_source"])
    assert found == trace["generated"].tolist()
    assert np.abs(logits - trace["logits"]).max() <= 2e-5
    with visiondrop.apply(model, "prunesid", tokens=160, noise=noise, next_order="raster", report=True) as handle:
        answer(model, crops, size, handle)
        raster = handle.report.stages[0].kept().numpy()
    assert sorted(raster) == sorted(kept) and not np.array_equal(raster, kept)


def test_cdpruner_equals_the_official_code(model):
    trace = dict(np.load(TRACES / "cdpruner-next_32x5_0.npz"))
    size, question = tuple(trace["image_size_wh"].tolist()), [str(trace["question"])]
    options = dict(tokens=160, clip=(clip.model(), clip.tokenizer), report=True)
    with visiondrop.apply(model, "cdpruner", **options) as handle, handle.questions(question):
        found, logits = answer(model, models.pixels(*trace["crop_seeds"].tolist()), size, handle)
        stage = handle.report.stages[0]
    kept = stage.kept()
    assert np.array_equal(torch.stack([kept // PATCHES, kept % PATCHES], dim=1).numpy(), trace["sequence_source"])
    assert np.abs(stage.scores[0].view(5, -1).numpy() - trace["relevance"]).max() <= 1e-6
    assert np.abs(stage.hidden[0].numpy() - trace["input_embeds"][35 : 35 + 160]).max() <= 2e-5
    assert found == trace["tokens"].tolist()
    assert np.abs(logits - trace["logits"]).max() <= 2e-5


def sources(ids: torch.Tensor) -> list[tuple[int, int]]:
    """(crop, grid id) of every id, newlines (-1, -1)."""
    return [(-1, -1) if i < 0 else (i // PATCHES, i % PATCHES) for i in ids.tolist()]


def test_vscan_equals_the_official_code():
    """The sequence as it is packed: padding gone, newlines kept, so that its length is the picture's own."""
    trace = dict(np.load(TRACES / "vscannext_96-160_0.npz"))
    deep = next_models.native(32, side=336, tower="deep")
    anyres.use_layout(deep, "anyres")
    size = tuple(trace["image_size_wh"].tolist())
    with visiondrop.apply(deep, method="vscan", tokens=320, report=True) as handle:
        found, logits = answer(deep, models.pixels(*trace["crop_seeds"].tolist()), size, handle)
        first, second = handle.report.stages
        lengths = handle.report.cache_lengths[0]
    assert sources(first.kept()) == [tuple(pair) for pair in trace["sequence_source"].tolist()]
    assert np.array_equal(local(first.reference[0]), trace["kept"])
    assert np.abs(first.hidden[0][: len(trace["visual_in_first"])].numpy() - trace["visual_in_first"]).max() <= 2e-5
    assert np.array_equal(second.kept().numpy(), first.kept()[trace["llm_kept_slots"]].numpy())
    assert np.abs(second.scores[0].numpy() - trace["llm_score"]).max() <= 1e-6
    assert np.abs(second.hidden[0].numpy() - trace["hidden_after_stage_visual"]).max() <= 2e-5
    assert lengths == trace["cache_lengths"].tolist()
    assert found == trace["tokens"].tolist()
    assert np.abs(logits - trace["logits"]).max() <= 2e-5


def test_flowcut_equals_the_official_code():
    trace = dict(np.load(TRACES / "flowcutnext-sharp_160_0.npz"))
    sharp = next_models.native(32, side=336, tower="sharp")
    anyres.use_layout(sharp, "anyres")
    size = tuple(trace["image_size_wh"].tolist())
    with visiondrop.apply(sharp, method="flowcut", tokens=160, report=True) as handle:
        found, logits = answer(sharp, models.pixels(*trace["crop_seeds"].tolist()), size, handle)
        (first, second), tower = handle.report.stages, handle.report.tower
        lengths = handle.report.cache_lengths[0]
    for s, cut in enumerate(tower):
        assert np.array_equal(local(cut.kept()[cut.kept() >= 0]), trace[f"kept_cut{s}"])
    assert sources(first.kept()) == [tuple(pair) for pair in trace["sequence_source"].tolist()]
    assert np.array_equal(second.kept().numpy(), first.kept()[trace["llm_kept_slots"]].numpy())
    assert np.abs(second.scores[0].numpy() / trace["llm_score"] - 1).max() <= 2e-5
    assert lengths == trace["cache_lengths"].tolist()
    assert found == trace["tokens"].tolist()
    assert np.abs(logits - trace["logits"]).max() <= 2e-5


@pytest.mark.parametrize("layout", ["fixed-2880", "anyres"])
def test_hiprune_equals_the_official_code(layout):
    deep = next_models.native(32, side=336, tower="deep")
    anyres.use_layout(deep, layout)
    trace = dict(np.load(TRACES / "hiprune-next_160_0.npz"))
    size = tuple(trace["image_size_wh"].tolist())
    with visiondrop.apply(deep, method="hiprune", tokens=160, report=True) as handle:
        found, logits = answer(deep, models.pixels(*trace["crop_seeds"].tolist()), size, handle)
        kept = handle.report.stages[0].kept()
    assert np.array_equal(torch.stack([kept // PATCHES, kept % PATCHES], dim=1).numpy(), trace["sequence_source"])
    assert found == trace["generated"].tolist()
    assert np.abs(logits - trace["logits"]).max() <= 2e-5


@pytest.mark.parametrize(
    ("layout", "name"), [("anyres", "divprune-next_160_0"), ("fixed-2880", "divprune-next2880_160_0")]
)
def test_divprune_equals_the_official_code(loaded, layout, name):
    """One choice over all crops; in the layout with newlines exactly one of them is kept."""
    trace = dict(np.load(TRACES / f"{name}.npz"))
    anyres.use_layout(loaded, layout)
    crops, size = models.pixels(*trace["crop_seeds"].tolist()), tuple(trace["image_size_wh"].tolist())
    with visiondrop.apply(loaded, method="divprune", ratio=float(trace["ratio"]), report=True) as handle:
        found, logits = answer(loaded, crops, size, handle)
        (stage,) = handle.report.stages
    kept = [(-1, -6 - i) if i < 0 else (i // PATCHES, i % PATCHES) for i in stage.kept().tolist()]
    assert kept == [tuple(pair) for pair in trace["sequence_source"].tolist()]
    assert np.abs(stage.hidden[0].numpy() - trace["input_embeds"][35 : 35 + 160]).max() <= 2e-5
    assert found == trace["tokens"].tolist()
    assert np.abs(logits - trace["logits"]).max() <= 2e-5
