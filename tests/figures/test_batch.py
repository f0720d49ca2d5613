"""A batch of runs stops where no later run could escape an error, leaves out what cannot be done, and goes on else."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from eval.errors import EvaluationError, reach_of
from eval.files import ROOT
from eval.results import rows
from figures.reproduce import many, runs
from tests.eval.test_checkpoint import write_answering_checkpoint
from tests.support import datasets_small


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, and the data of SQA but not of POPE."""
    folder = tmp_path_factory.mktemp("batch")
    write_answering_checkpoint(folder / "model")
    datasets_small.write_sqa(folder / "data")
    return folder


class Wanted(SimpleNamespace):
    """A run, as far as a batch looks at it."""

    def arguments(self) -> list[str]:
        return [self.benchmark, "--tokens", str(self.tokens)]


def batch(place, tmp_path, monkeypatch, *wanted, kind="testbed", jobs=1, **changes):
    """A batch over (benchmark, tokens) pairs; changes are arguments of eval.run."""
    named = {
        "model": place / "model",
        "data": place / "data",
        "out": tmp_path / "rows.jsonl",
        "runs": tmp_path / "runs",
    }
    shared = [str(x) for name, value in {**named, **changes}.items() for x in (f"--{name}", value)]
    monkeypatch.setattr(runs, "eval_arguments", lambda variant, run, args: [*run.arguments(), *shared])
    found = [(SimpleNamespace(kind=kind), Wanted(benchmark=name, tokens=tokens)) for name, tokens in wanted]
    return found, SimpleNamespace(jobs=jobs)


def budgets(path) -> list[int]:
    return [row["tokens"] for row in rows.load(path)[0]] if path.exists() else []


@pytest.mark.parametrize(("kind", "jobs"), [("testbed", 1), ("testbed", 2), ("paper", 1)])
def test_a_missing_model_stops_the_batch(place, tmp_path, monkeypatch, capfd, kind, jobs):
    wanted = [("sqa", n) for n in (8, 12, 16, 20, 24)]
    found, args = batch(place, tmp_path, monkeypatch, *wanted, kind=kind, jobs=jobs, model="./does-not-exist")
    with pytest.raises(EvaluationError, match=f"{5 - jobs} runs were left out.*every later run") as error:
        runs.do(found, args)
    assert reach_of(error.value) == "batch" and "start the same command again" in str(error.value)
    told = capfd.readouterr()
    assert (told.out + told.err).count("does-not-exist does not exist") == jobs


def test_an_output_that_cannot_be_written_stops_the_batch(place, tmp_path, monkeypatch):
    found, args = batch(place, tmp_path, monkeypatch, ("sqa", 8), ("sqa", 12), ("sqa", 16), out=tmp_path)
    with pytest.raises(EvaluationError, match="2 runs were left out"):
        runs.do(found, args)


def test_missing_data_leaves_out_one_benchmark(place, tmp_path, monkeypatch, capsys):
    found, args = batch(place, tmp_path, monkeypatch, ("pope", 8), ("sqa", 8), ("pope", 12), ("sqa", 12), ("pope", 16))
    assert runs.do(found, args) == 2
    told = capsys.readouterr().err
    assert "this run failed: pope --tokens 8" in told and "pope --tokens 12" not in told
    assert "2 runs were left out, since every run of pope" in told and "2 runs are done" in told
    assert budgets(tmp_path / "rows.jsonl") == [8, 12]


def test_an_error_of_one_run_lets_the_others_be_done(place, tmp_path, monkeypatch, capsys):
    found, args = batch(place, tmp_path, monkeypatch, ("sqa", 7000), ("sqa", 8), ("sqa", 12))
    assert runs.do(found, args) == 2
    told = capsys.readouterr().err
    assert "this run failed: sqa --tokens 7000" in told and "left out" not in told
    assert budgets(tmp_path / "rows.jsonl") == [8, 12]


def test_a_batch_goes_on_where_it_stopped(place, tmp_path, monkeypatch):
    wanted = [("sqa", 8), ("sqa", 12)]
    with pytest.raises(EvaluationError):
        runs.do(*batch(place, tmp_path, monkeypatch, *wanted, model="./nowhere"))
    assert runs.do(*batch(place, tmp_path, monkeypatch, *wanted)) == 0
    assert runs.do(*batch(place, tmp_path, monkeypatch, *wanted)) == 0
    assert budgets(tmp_path / "rows.jsonl") == [8, 12]


def test_codes_tell_how_far_an_error_reaches():
    assert [many.code_of(*x) for x in ((0, ""), (2, "run"), (2, "benchmark"), (2, "batch"), (130, ""))] == [
        0,
        2,
        3,
        4,
        130,
    ]
    assert reach_of(OSError(28, "no space")) == "batch" and reach_of(OSError(2, "no file")) == "run"
    assert reach_of(ValueError()) == "run"


def test_the_table_of_a_model_that_does_not_exist_is_tried_once():
    """The command of the report: 198 runs, one attempt, one sentence."""
    command = ["-m", "figures.reproduce.make", "table1", "--model", "./does-not-exist", "--device", "cpu"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("error: checkpoint folder ./does-not-exist") == 1
    assert "runs were left out, since every later run" in done.stderr
