"""The baselines against traces of their official implementations, on the golden checkpoint.

Every trace of these methods in tests/support/golden/traces is compared, whatever its setting and picture: the file's name and
contents say how to run it.  Kept sets and tokens must be equal, states and logits within 2e-5.
"""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import visiondrop
from tests.support import clip, models

FOLDER = Path(__file__).parents[1] / "support" / "golden" / "traces"
TOLERANCE = 2e-5
BASELINES = (
    "cdpruner",
    "cdpruner-longtext",
    "cdpruner-wide",
    "dart",
    "divprune",
    "fastv",
    "flowcut",
    "flowcut-sharp",
    "hiprune",
    "holov",
    "prunesid",
    "pyramiddrop",
    "scope",
    "sparsevlm-v1.5",
    "visionzip",
    "vispruner",
    "vscan",
)
NAMES = sorted(p.stem for p in FOLDER.glob("*.npz") if p.stem.split("_")[0] in BASELINES and "function" not in p.stem)
TOWERS = {
    "hiprune": "deep",
    "flowcut": "deep",
    "flowcut-sharp": "sharp",
    "vscan": "deep",
}  # of the traces made with 24 tower layers


@pytest.fixture(scope="module")
def load():
    """`load(kind)`, the model for traces of a kind."""

    @functools.cache
    def made(tower: str, wide: bool):
        return models.native(2, hidden_size=256) if wide else models.native(tower=tower)

    return lambda kind: made(TOWERS.get(kind, ""), kind.endswith("-wide"))


@pytest.fixture
def model(request, load):
    name = request.node.callspec.params["name"] if hasattr(request.node, "callspec") else ""
    return load(name.split("_")[0])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return str(clip.folder(tmp_path_factory.mktemp("clip")))


def settings(name: str, trace: dict) -> dict:
    """Arguments of `visiondrop.apply` for a trace."""
    kind, setting, _ = name.split("_")
    if kind == "fastv":
        return dict(method="fastv", k=int(trace["K"]), keep=int(trace["keep"]))
    if kind == "pyramiddrop":
        given = re.fullmatch(r"l([\d-]+)x([\d.]+)", setting)
        chosen = {"layers": given[1].replace("-", ","), "ratio": given[2]} if given else {"preset": setting}
        return dict(method="pyramiddrop", options=chosen)
    if kind == "sparsevlm-v1.5":
        return dict(
            method="sparsevlm", tokens=int(setting), noise=[torch.from_numpy(trace[f"s{s}_noise"]) for s in (1, 2, 3)]
        )
    if kind == "vscan":
        keep = int(trace["visual_token_num"]), int(trace["image_token_list"][1])
        return dict(method=kind, tokens=int(setting)) if setting != "32" else dict(method=kind, keep=keep)
    if kind == "dart":
        return dict(method=kind, keep=int(trace["keep"]))
    if kind == "prunesid":
        return dict(method=kind, tokens=int(setting), noise=[torch.from_numpy(trace["random_matrix"])])
    if kind == "holov":
        return dict(method=kind, tokens=int(trace["visual_token_num"]), windows=int(trace["num_patches"]))
    if kind == "divprune" and "." in setting:
        return dict(method=kind, ratio=float(setting))
    return dict(method=kind.split("-")[0], tokens=int(setting))


def compare_fastv(trace: dict, report) -> None:
    (stage,) = report.stages
    assert stage.dominant[0].tolist() == trace["kept_stage1"].tolist() and len(stage.reference[0]) == 0
    close(stage.hidden[0], trace["hidden_stage1"])
    close(stage.scores[0], trace["scores_stage1"], 1e-6)
    # The official file appends layer K-1's keys twice; a clean cache holds them once.
    wanted = trace["cache_lengths"].copy()
    wanted[trace["K"] - 1] //= 2
    assert report.cache_lengths[0] == wanted.tolist() and wanted[trace["K"] - 1] == 633
    assert report.positions[0][0] == [633] * 32  # unpruned positions in every layer


def compare_pyramiddrop(trace: dict, report) -> None:
    assert [stage.layer for stage in report.stages] == trace["layer_list"].tolist()
    for s, stage in enumerate(report.stages, start=1):
        assert stage.dominant[0].tolist() == trace[f"kept_stage{s}"].tolist() and len(stage.reference[0]) == 0
        close(stage.hidden[0], trace[f"hidden_stage{s}"])
        close(stage.scores[0], trace[f"scores_stage{s}"], 1e-6)
    assert report.cache_lengths[0] == trace["cache_lengths"].tolist()
    assert report.positions[0][0] == trace["cache_lengths"].tolist()  # contiguous with each stage's cache


def compare_sparsevlm(trace: dict, report) -> None:
    ids = {}  # the trace's name for merged token j of stage s -> the patch whose id it carries with us
    for s, stage in enumerate(report.stages, start=1):
        assert stage.layer == trace[f"s{s}_layer"] + 1 and len(stage.reference[0]) == trace[f"s{s}_clusters"]
        before = np.array(stage.origin[0])
        assert set(stage.reference[0].tolist()) <= set(before[trace[f"s{s}_merge_slots"]].tolist())
        ids.update({-(100 * s + 1 + j): patch for j, patch in enumerate(stage.reference[0].tolist())})
        wanted = [ids.get(token, token) for token in trace[f"s{s}_tokens"].tolist()]
        assert stage.kept(0).tolist() == wanted
        assert stage.dominant[0].tolist() == before[trace[f"s{s}_kept_slots"]].tolist()
        clustered = stage.merged[0][stage.assignment[0] >= 0].tolist() + stage.reference[0].tolist()
        assert sorted(clustered) == sorted(before[trace[f"s{s}_merge_slots"]].tolist())
        close(stage.hidden[0], trace[f"s{s}_hidden"][35 : 35 + len(wanted)])
        close(stage.hidden[0][len(stage.dominant[0]) :], trace[f"s{s}_merged"])
        close(stage.scores[0], trace[f"s{s}_score"], 1e-6)
    assert report.cache_lengths[0] == trace["kv_lengths"].tolist() == report.positions[0][0]


def compare_visionzip(trace: dict, report) -> None:
    (stage,) = report.stages
    assert stage.layer == "encoder" and stage.dominant[0].tolist() == [-1, *trace["enc_dominant"].tolist()]
    assert stage.reference[0].tolist() == trace["enc_reference"].tolist()
    assert stage.merged[0].tolist() == trace["enc_merged"].tolist()
    assert stage.assignment[0].tolist() == trace["enc_assignment"].tolist()
    close(stage.hidden[0], trace["enc_tokens"])
    close(4 * stage.scores[0], trace["enc_cls_score"], 1e-6)  # ours is the mean of the 4 heads, theirs the sum
    assert report.cache_lengths[0] == [57 + len(trace["enc_tokens"])] * 32


def compare_vispruner(trace: dict, report) -> None:
    (stage,) = report.stages
    assert stage.layer == "encoder" and stage.dominant[0].tolist() == trace["kept_grid"].tolist()
    assert len(stage.reference[0]) == 0 and report.cache_lengths[0] == [57 + len(trace["kept_grid"])] * 32
    close(stage.hidden[0], trace["clip_features"][trace["kept_grid"]])
    close(stage.scores[0], trace["cls_attention"], 1e-6)


def compare_divprune(trace: dict, report) -> None:
    (stage,) = report.stages
    assert stage.layer == 0 and stage.dominant[0].tolist() == trace["kept_grid"].tolist()
    close(stage.hidden[0], trace["input_embeds"][35 : 35 + trace["kept_count"]])
    assert report.cache_lengths[0] == [57 + trace["kept_count"]] * 32 == report.positions[0][0]


def compare_scope(trace: dict, report) -> None:
    (stage,) = report.stages
    assert stage.layer == "encoder" and stage.dominant[0].tolist() == trace["kept_grid"].tolist()
    close(4 * stage.scores[0], trace["cls_attention_sum"], 1e-6)  # ours is the mean of the 4 heads, theirs the sum
    assert report.cache_lengths[0] == trace["kv_lengths"].tolist() == report.positions[0][0]


def compare_hiprune(trace: dict, report) -> None:
    (stage,) = report.stages
    assert stage.layer == "encoder" and stage.dominant[0].tolist() == trace["kept_grid"].tolist()
    close(stage.scores[0], trace["deep_score"], 1e-6)
    assert report.cache_lengths[0] == trace["kv_lengths"].tolist() == report.positions[0][0]


def compare_flowcut(trace: dict, report) -> None:
    (stage,), count = report.stages, int(trace["target_num"])
    assert [cut.layer for cut in report.tower] == trace["cut_layers"].tolist()
    for s, cut in enumerate(report.tower):
        assert cut.kept().tolist() == [-1, *trace[f"kept_cut{s}"].tolist()]
        assert np.abs(cut.scores[0].numpy() / trace[f"running_cut{s}"] - 1).max() <= 2e-5
    close(report.tower[0].hidden[0][:33], trace["tower_after_layer1"])
    assert stage.layer == "encoder" and stage.dominant[0].tolist() == trace["kept"].tolist()
    close(stage.hidden[0], trace["tower_out"][1:])
    assert report.cache_lengths[0] == trace["cache_lengths"].tolist() == [57 + count] * 32 == report.positions[0][0]


def compare_vscan(trace: dict, report) -> None:
    first, second = report.stages
    assert first.layer == "encoder" and first.reference[0].tolist() == trace["kept"].tolist() == first.kept().tolist()
    assert first.merged[0].tolist() == trace["merged_ids"].tolist()
    assert first.assignment[0].tolist() == trace["assignment"].tolist()
    close(first.hidden[0], trace["visual_in"])
    assert second.layer == trace["layer_list"][0] and second.kept().tolist() == trace["llm_kept_grid"].tolist()
    close(second.scores[0], trace["llm_score"], 1e-6)
    close(second.hidden[0], trace["hidden_after_stage"][35 : 35 + len(trace["llm_kept_grid"])])
    assert report.cache_lengths[0] == trace["cache_lengths"].tolist() == report.positions[0][0]


def compare_cdpruner(trace: dict, report) -> None:
    (stage,) = report.stages
    assert (
        stage.layer == "encoder" and stage.dominant[0].tolist() == trace["kept_grid"].tolist() == stage.kept().tolist()
    )
    close(stage.scores[0], trace["relevance"], 1e-6)
    wide = "input_embeds_every_8th_column" in trace
    wanted = trace["input_embeds_every_8th_column" if wide else "input_embeds"][35 : 35 + len(trace["kept_grid"])]
    close(stage.hidden[0][:, :: 8 if wide else 1], wanted)
    layers = int(trace["llm_layers"])
    assert report.cache_lengths[0] == [57 + len(trace["kept_grid"])] * layers == report.positions[0][0]


def compare_holov(trace: dict, report) -> None:
    (stage,) = report.stages
    wanted = trace["kept_in_order"]
    assert stage.layer == "encoder" and stage.kept().tolist() == wanted.tolist()
    assert (stage.hidden[0][torch.from_numpy(wanted) < 0] == 0).all()
    close(stage.scores[0], trace["cls_attention"], 1e-6)
    close(embeddings(stage, trace), trace["input_embeds"])
    assert report.cache_lengths[0] == trace["kv_lengths"].tolist() == report.positions[0][0]


def compare_prunesid(trace: dict, report) -> None:
    (stage,) = report.stages
    assert stage.layer == "encoder" and (stage.kept() + 1).tolist() == trace["rows_in_order"].tolist()
    close(4 * stage.scores[0], trace["cls_attention_sum"], 1e-6)  # ours is the mean of the 4 heads, theirs the sum
    assert report.cache_lengths[0] == trace["kv_lengths"].tolist() == report.positions[0][0]


def compare_dart(trace: dict, report) -> None:
    (stage,) = report.stages
    assert (
        stage.layer == trace["layer"] and stage.dominant[0].tolist() == trace["kept"].tolist() == stage.kept().tolist()
    )
    close(stage.hidden[0][:: max(1, int(np.diff(trace["hidden_rows"])[0]))], trace["hidden"])
    assert report.cache_lengths[0] == trace["kv_lengths"].tolist()
    assert report.positions[0][0] == [633] * 32  # unpruned positions in every layer


def embeddings(stage, trace: dict) -> torch.Tensor:
    """Of the visual rows among those of the LLM's input that a trace stores (every fourth); its text rows are left out."""
    rows = trace["input_embeds_rows"]
    visual = (rows >= 35) & (rows < 35 + len(stage.hidden[0]))
    trace["input_embeds"] = trace["input_embeds"][visual]
    return stage.hidden[0][rows[visual] - 35]


def close(got: torch.Tensor, wanted: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert np.abs(got.numpy() - wanted).max() <= tolerance


def test_all_baselines_have_traces():
    assert {name.split("_")[0] for name in NAMES} == set(BASELINES)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_official_code(name, model, clip_folder):
    trace = dict(np.load(FOLDER / f"{name}.npz"))
    kind, picture = name.split("_")[0], int(name.split("_")[-1])
    ids, pictures = torch.tensor([models.prompt()]), models.pixels(picture)
    more = {"clip": clip_folder} if kind.startswith("cdpruner") else {}
    question = [str(trace.get("question", "unread"))]
    with visiondrop.apply(model, report=True, **settings(name, trace), **more) as handle, handle.questions(question):
        out = model.generate(
            ids,
            images=pictures,
            image_sizes=[(336, 336)],
            do_sample=False,
            max_new_tokens=8,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert out.sequences[0].tolist() == trace["tokens" if "tokens" in trace else "generated"].tolist()
        close(torch.cat(out.logits), trace["step_logits"])
        globals()[f"compare_{kind.split('-')[0]}"](trace, handle.report)
        logits = model(input_ids=ids, images=pictures, image_sizes=[(336, 336)]).logits[0, -1]
        close(logits, trace["logits" if "logits" in trace else "logits_last"])
        assert handle.report.tokens_per_layer[0] == handle.plan.tokens_per_layer()


def test_the_third_party_setting_with_four_stages_has_its_documented_sizes():
    chosen = {"layers": "2,8,16,24", "ratio": 0.581}
    assert visiondrop.plan("pyramiddrop", options=chosen).counts == [576, 334, 194, 112, 65]


def test_noise_decides_between_sparsevlm_clusters(model):
    """The comparison above could have failed: other noise gives other logits at budget 64 (a lone
    or doubled nearest neighbour makes equal densities, which only the noise tells apart)."""
    trace = dict(np.load(FOLDER / "sparsevlm-v1.5_64_0.npz"))
    ids, pictures = torch.tensor([models.prompt()]), models.pixels(0)
    zero = [torch.zeros(len(trace[f"s{s}_noise"])) for s in (1, 2, 3)]
    with visiondrop.apply(model, method="sparsevlm", tokens=64, noise=zero):
        logits = model(input_ids=ids, images=pictures).logits[0, -1].numpy()
    assert np.abs(logits - trace["zero_noise_logits"]).max() <= TOLERANCE
    assert np.abs(logits - trace["logits"]).max() > 1e-2
