"""The table of benchmarks: strict keys, tasks that exist as described, a script for each, prompts of our twins."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import yaml
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config

from eval import benchmarks
from eval.errors import EvaluationError
from eval.files import ROOT
from eval.tasks import mmbench

PUBLIC = ("gqa", "mmbench", "mmbench_cn", "mme", "pope", "sqa", "vqav2", "textvqa", "vizwiz")
ENTRIES = [b for protocols in benchmarks.load().values() for b in protocols.values()]


def changed(tmp_path: Path, change) -> Path:
    table = yaml.safe_load(benchmarks.TABLE.read_text())
    change(table)
    path = tmp_path / "benchmarks.yaml"
    path.write_text(yaml.safe_dump(table))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["gqa"].update(colour=1), "benchmark gqa: unknown key 'colour'"),
        (lambda t: t["gqa"]["protocols"].update(online={}), "protocols: unknown key 'online'"),
        (lambda t: t["gqa"]["protocols"]["offline"].update(metric="x"), "protocol offline: unknown key 'metric'"),
        (lambda t: t["gqa"]["protocols"]["offline"].pop("split"), "missing key 'split'"),
        (lambda t: t["gqa"]["protocols"]["offline"]["data"][0].update(branch="x"), "data: unknown key 'branch'"),
        (lambda t: t["gqa"]["protocols"]["offline"].update(counts="median"), "counts 'median'"),
        (lambda t: t["gqa"]["protocols"]["offline"].update(headline={}), "either a headline metric or an upload file"),
    ],
)
def test_wrong_keys_are_refused(tmp_path, change, message):
    with pytest.raises(EvaluationError, match=re.escape(message)):
        benchmarks.load(changed(tmp_path, change))


def test_all_public_benchmarks_have_both_protocols():
    assert set(PUBLIC) <= set(benchmarks.load())
    assert all(set(benchmarks.load()[name]) == {"offline", "paper"} for name in PUBLIC)


def test_unknown_names_are_answered_with_the_closest():
    with pytest.raises(EvaluationError, match="unknown benchmark 'mmbnch': did you mean 'mmbench'"):
        benchmarks.get("mmbnch", "offline")
    with pytest.raises(EvaluationError, match="unknown protocol 'papr' for gqa: did you mean 'paper'"):
        benchmarks.get("gqa", "papr")


@pytest.mark.parametrize("limit", [0, -2, 3])
def test_limits_that_cut_what_is_scored_together_are_refused(limit):
    with pytest.raises(EvaluationError, match="multiple of 2"):
        benchmarks.get("mme", "offline").check_limit(limit)
    benchmarks.get("mme", "offline").check_limit(4)


@pytest.mark.parametrize("benchmark", ENTRIES, ids=lambda b: f"{b.name}-{b.protocol}")
def test_task_is_the_one_described(benchmark, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/nowhere")  # two tasks of videos read it when they are imported
    for name in benchmark.imports:
        if importlib.util.find_spec(name) is None:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    manager = TaskManager(include_path=str(benchmark.folder), include_defaults=False)
    assert benchmark.task in manager.all_tasks
    config = load_yaml_config(manager.task_index[benchmark.task]["yaml_path"], mode="full")
    main = benchmark.data[0]
    assert (config["dataset_path"], config.get("dataset_name")) == (main.path, main.config)
    if benchmark.videos:
        assert benchmark.videos.startswith(config["dataset_kwargs"]["cache_dir"])
    assert config["test_split"].strip() == benchmark.split == main.split
    metrics = {m["metric"] for m in config["metric_list"]}
    if benchmark.judged:
        metrics.add("judge_accuracy")  # comes from eval/scoring/judge.py
    if benchmark.counts != "judged":  # verdicts are asked for after lmms-eval has ended
        assert set(benchmark.headline) <= metrics if benchmark.headline else metrics == {"submission"}
    assert all(callable(config[key]) for key in ("doc_to_visual", "doc_to_text"))


def test_every_benchmark_has_a_script_and_every_script_a_benchmark():
    scripts = {f.stem: f.read_text() for f in (ROOT / "scripts" / "eval").glob("*.sh") if not f.stem.startswith("_")}
    groups = benchmarks.groups()
    assert set(scripts) <= set(benchmarks.load()) | set(groups)
    asked = {b for name in scripts for b in groups.get(name, (name,))}
    assert asked >= {b for members in groups.values() for b in members}
    for name, text in scripts.items():
        assert f'_run.sh" {name} "$@"' in text and len(text.splitlines()) <= 5


def test_our_twins_differ_from_the_shipped_tasks_only_where_they_say():
    def config(source, task):
        manager = TaskManager(include_path=str(source), include_defaults=False)
        return load_yaml_config(manager.task_index[task]["yaml_path"], mode="full")

    def default(c):
        return c["lmms_eval_specific_kwargs"]["default"]

    own, shipped = ROOT / "eval" / "tasks", benchmarks.get("vqav2", "offline").folder.parent
    pairs = {
        "textvqa_val_ocr": ("textvqa", "textvqa_val"),
        "vqav2_testdev": ("vqav2", "vqav2_test"),
        "mmbench_cn_dev_static": ("mmbench", "mmbench_cn_dev"),
    }
    for twin, (folder, task) in pairs.items():
        ours, theirs = config(own, twin), config(shipped / folder, task)
        for key in ("dataset_path", "dataset_name", "generation_kwargs", "output_type"):
            assert ours.get(key) == theirs.get(key), (twin, key)
        assert default(ours)["post_prompt"] == default(theirs)["post_prompt"]
        assert ours["doc_to_visual"].__code__ == theirs["doc_to_visual"].__code__
        if twin != "vqav2_testdev":  # ours normalises the answers of the upload file
            assert ours["process_results"].__code__ == theirs["process_results"].__code__
    assert (
        default(config(own, "textvqa_val_ocr"))["ocr"]
        and not default(config(shipped / "textvqa", "textvqa_val"))["ocr"]
    )


def test_mmbench_question_of_llava():
    doc = {"hint": "Look.", "question": "Which?", "A": "red", "B": "blue", "C": "nan", "D": None}
    tail = {"pre_prompt": "", "post_prompt": "\nAnswer."}
    assert mmbench.llava_question(doc, tail) == "Look.\nWhich?\nA. red\nB. blue\nAnswer."
    assert mmbench.llava_question({**doc, "hint": "nan"}, tail) == "Which?\nA. red\nB. blue\nAnswer."
