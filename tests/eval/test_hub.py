"""lmms-eval's own wrappers around pruned models: their requests, our answers, rows that tell."""

import inspect
import json

import pytest
import torch
import transformers
from lmms_eval.models import get_model

import visiondrop
from eval import run
from eval.benchmarks.data import dataset_cache
from eval.errors import EvaluationError
from eval.models import hub, qwen_pictures
from eval.models.plugin import WRAPPERS
from eval.results import rows
from eval.results.folder import RunFiles
from eval.settings import ModelSettings
from tests.support import datasets_more, datasets_small, hub_folders

QUESTIONS = 6


def wrapper_of(name: str) -> str:
    return WRAPPERS["llava_onevision" if name == "onevision" else name]


@pytest.fixture(scope="module", params=list(hub_folders.FAMILIES))
def family(request):
    """A family whose wrapper can be imported here."""
    if request.param != "internvl":
        pytest.importorskip(
            "decord", reason="lmms-eval's wrapper imports decord, which requirements.txt has on x86 only"
        )
    return request.param


@pytest.fixture(scope="module")
def place(tmp_path_factory, family):
    """A checkpoint and GQA's small set."""
    root = tmp_path_factory.mktemp(family)
    (root / "tiny").mkdir()
    hub_folders.save(
        family, root / "tiny", side=16 if family == "qwen3_vl" else 14
    )  # what its wrapper takes for granted
    datasets_small.write_gqa(root / "data", QUESTIONS)
    for name in ("docvqa", "mmmu"):
        datasets_more.WRITERS[name](root / "data")
    with dataset_cache(root / "cache"):
        yield root


def arguments(place, folder, *more, benchmark: str = "gqa") -> list[str]:
    places = ["--data", str(place / "data"), "--out", str(folder / "rows.jsonl"), "--runs", str(folder / "runs")]
    return [benchmark, "--model", str(place / "tiny"), *places, *map(str, more)]


def last(folder) -> tuple[dict, list[str]]:
    row = rows.load(folder / "rows.jsonl", strict=True)[0][-1]
    return row, [sample["answer"] for sample in RunFiles(folder / "runs" / row["folder"]).samples()]


class Bare:
    """The wrapper as lmms-eval has it (its processor without videos, where torchvision is missing)."""

    def __new__(cls, settings, answers=None):
        base = get_model(settings.wrapper)
        parts = {name: hub.lent(getattr(base, name)) for name in ("__init__", "generate_until")}
        told = {"pretrained": settings.model, "device": "cpu", "device_map": "cpu", "attn_implementation": "sdpa"}
        known = inspect.signature(base.__init__).parameters
        made = type("Bare", (base,), parts)(**{name: value for name, value in told.items() if name in known})
        made.model.to(torch.float32)
        made.store = type("Nothing", (), {"close": lambda self: None})()
        made.ledger, made.compiled, made.processor_facts = visiondrop.plan("none").ledger(), "off", None
        made.unlike_uniform = None
        return made


def requests_of(monkeypatch, call) -> list[dict]:
    """What `generate` is given during the call, tensors and settings."""
    seen, stock = [], transformers.GenerationMixin.generate

    def note(model, *args, **kwargs):
        assert not args
        seen.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})
        return stock(model, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.GenerationMixin, "generate", note)
        call()
    return seen


def alike(a: dict, b: dict) -> bool:
    """Equal settings and bit-equal tensors."""
    same = [torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items() if k in b]
    return a.keys() == b.keys() and all(same)


@pytest.mark.parametrize("benchmark", ["gqa", "docvqa", "mmmu"])
def test_requests_and_answers_are_the_bare_wrappers(place, family, tmp_path, monkeypatch, benchmark):
    command = arguments(place, tmp_path, "--method", "none", benchmark=benchmark)
    ours = requests_of(monkeypatch, lambda: run.main(command))
    row, answers = last(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("eval.models.hub.hub_class", lambda wrapper: Bare)
        theirs = requests_of(patch, lambda: run.main([*command, "--runs", str(tmp_path / "bare"), "--force"]))
    bare = rows.load(tmp_path / "rows.jsonl", strict=True)[0][-1]
    assert len(ours) == len(theirs) == QUESTIONS
    assert all("pixel_values" in mine for mine in ours)
    assert all(sum(alike(mine, other) for other in theirs) == 1 for mine in ours)  # every question has its own words
    samples = RunFiles(tmp_path / "bare" / bare["folder"]).samples()
    assert [s["answer"] for s in samples] == answers and len(set(answers)) > 1
    assert row["wrapper"] == row["conversation"] == wrapper_of(family) and row["processor"]


def test_a_pruned_run_goes_on_where_it_stopped(place, family, tmp_path):
    command = arguments(place, tmp_path, "--tokens", "50%")
    assert run.main(command) == 0
    row, answers = last(tmp_path)
    assert (row["tokens"], row["share"], row["method"]) == (None, "50%", "visiondrop")
    assert row["ledger"]["mean"] < row["ledger"]["unpruned"]
    folder = tmp_path / "runs" / row["folder"]
    kept = (folder / "answers-0.jsonl").read_text().splitlines(keepends=True)
    assert len(kept) == QUESTIONS
    for product in ("row.json", "outcome.json", "samples.jsonl"):
        (folder / product).unlink()
    (folder / "answers-0.jsonl").write_text("".join(kept[:2]))
    assert run.main(command) == 0
    again, same = last(tmp_path)
    assert same == answers and [s["stored"] for s in again["sessions"]] == [0, 2]
    asked = [json.loads(line)["doc_id"] for line in (folder / "answers-0.jsonl").read_text().splitlines()]
    assert sorted(asked) == list(range(QUESTIONS))


def test_errors_of_the_model_are_not_answers(place, family, tmp_path, monkeypatch, capsys):
    """Two of the wrappers log an error and answer with nothing."""

    def broken(self, *args, **kwargs):
        raise RuntimeError("something inside")

    monkeypatch.setattr(transformers.GenerationMixin, "generate", broken)
    assert run.main(arguments(place, tmp_path, "--tokens", "50%")) == 2
    assert "RuntimeError: something inside" in capsys.readouterr().err


def test_questions_share_their_picture(place, family, tmp_path, monkeypatch):
    """GQA's small set has two questions per picture: half as many are encoded, the answers are the same."""
    assert run.main(arguments(place, tmp_path, "--tokens", "50%")) == 0
    _, answers = last(tmp_path)
    encoded, stock = [], hub.encode_prefix
    monkeypatch.setattr(hub, "encode_prefix", lambda *args, **more: encoded.append(1) or stock(*args, **more))
    assert run.main(arguments(place, tmp_path, "--tokens", "50%", "--reuse", "on")) == 0
    row, same = last(tmp_path)
    assert row["reuse"] == "on" and len(encoded) == QUESTIONS // 2 and same == answers


def test_a_wrong_budget_is_told_before_loading(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hub, "hub_class", lambda wrapper: pytest.fail("loaded"))
    assert run.main(arguments(place, tmp_path, "--tokens", "100000")) == 2
    assert "tokens=100000" in capsys.readouterr().err


def test_refusals(tmp_path):
    with pytest.raises(EvaluationError, match="--wrapper no_such cannot be had"):
        hub.hub_class("no_such")
    hub_folders.save("internvl", tmp_path)
    guided = {"method": "fastv", "tokens": 8, "reuse": "on"}
    with pytest.raises(EvaluationError, match="reads the question"):
        hub.hub_class("internvl_hf")(ModelSettings(model=str(tmp_path), wrapper="internvl_hf", device="cpu", **guided))


def test_pictures_are_sized_as_by_qwen_vl_utils():
    """Numbers of qwen-vl-utils 0.0.14, `smart_resize`: its own module needs torchvision."""
    for (width, height), least, most, expected in CASES:
        assert qwen_pictures._sides(width, height, 28, least, most) == expected


CASES = [
    ((640, 480), 3136, 12845056, (644, 476)),
    ((640, 480), 3136, 100352, (364, 252)),
    ((20, 20), 200704, 12845056, (448, 448)),
    ((1000, 10), 3136, 12845056, (1008, 28)),
]
