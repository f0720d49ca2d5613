"""The doctor: every broken part is a line with its fix, and an evaluation refuses to begin in a broken environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from eval import run
from visiondrop import doctor
from visiondrop.errors import VisionDropError

ROOT = Path(__file__).resolve().parents[1]


def lines(*checks) -> list[str]:
    """The report of some checks."""
    return [str(finding) for finding in doctor.examine(checks or doctor.CHECKS)]


def test_a_sound_environment_has_no_failure(capsys):
    assert doctor.main() == 0
    report = capsys.readouterr().out.splitlines()
    assert len(report) == len(doctor.CHECKS) + 1 and report[-1] == "everything needed works"
    for part in ("python", "torch", "transformers", "accelerate", "lmms-eval", "devices", "disk"):
        assert any(line.split()[1] == part for line in report[:-1]), part


@pytest.fixture
def shadow(tmp_path, monkeypatch):
    """Puts a broken package in front of the installed one, in child processes."""

    def put(name: str, version: str, files: dict[str, str]):
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")

    return put


def call(*arguments: str) -> subprocess.CompletedProcess:
    """A module of the repository in a process of its own."""
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd="/")


def newer_filelock() -> dict[str, str]:
    """filelock without its private module, as from 4.3 on: the installed code under other file names."""
    import filelock

    folder = Path(filelock.__file__).parent
    files = {f.name: f.read_text().replace("._api", "._renamed") for f in folder.glob("*.py")}
    files["_renamed.py"] = files.pop("_api.py")
    return files


def test_the_filelock_that_broke_lmms_eval_is_one_sentence(shadow):
    """The break of November 2026: filelock 4.3 without `_api`, which lmms-eval 0.7.3 imports while it runs."""
    shadow("filelock", "4.3.0", newer_filelock())
    done = call("visiondrop", "doctor")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for part in (
        "lmms-eval",
        "filelock 4.3.0",
        "filelock._api",
        "works with filelock<4.3",
        "pip install 'filelock<4.3'",
    ):
        assert part in line, (part, line)
    for command in (("eval.run", "gqa", "--tokens", "64"), ("testbed.quickstart",)):
        done = call(*command)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "pip install 'filelock<4.3'" in done.stderr and done.stderr.startswith("error: ")


def test_packages_that_cannot_be_imported_are_lines(shadow):
    shadow("accelerate", "9.9", {"__init__.py": "raise RuntimeError('built for another world')"})
    done = call("visiondrop", "doctor")
    (line,) = [
        line for line in done.stdout.splitlines() if line.startswith("FAIL  accelerate") or " accelerate " in line
    ]
    assert "9.9 cannot be imported (RuntimeError: built for another world)" in line and "pip install accelerate" in line


def test_the_doctor_runs_where_torch_does_not(shadow):
    shadow("torch", "2.99", {"__init__.py": "raise ImportError('libcudart.so.99: cannot open shared object file')"})
    done = call("visiondrop", "doctor")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "libcudart.so.99" in done.stdout and "torch==2.13.0" in done.stdout
    done = call("visiondrop", "plan", "--tokens", "64")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "python -m visiondrop doctor" in done.stderr


def test_an_old_transformers_is_refused_when_a_name_is_used(shadow):
    shadow("transformers", "4.57.1", {"__init__.py": ""})
    done = call("visiondrop", "doctor")
    assert "needs transformers 5.17 … 5.24 and found 4.57.1" in done.stdout and done.returncode == 1
    use = subprocess.run([sys.executable, "-c", "import visiondrop; visiondrop.apply"], capture_output=True, text=True)
    assert use.returncode == 1 and "found 4.57.1; run: pip install 'transformers>=5.17,<5.25'" in use.stderr


def test_a_missing_evaluator_is_a_note_until_something_is_evaluated(monkeypatch):
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "lmms-eval" else real(name))
    (line,) = lines(doctor.check_lmms_eval)
    assert line.startswith("note") and "scripts/setup.sh" in line
    with pytest.raises(VisionDropError, match="nothing can be evaluated"):
        doctor.require_evaluation()


def test_without_accelerate_the_core_is_sound_and_an_evaluation_refused(monkeypatch):
    """`pip install .` alone brings no accelerate: no failure of the package, but nothing to evaluate with."""
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "accelerate" else real(name))
    (line,) = lines(doctor.check_accelerate)
    assert line.startswith("note") and "pip install accelerate" in line
    with pytest.raises(VisionDropError, match="accelerate not installed.*pip install accelerate"):
        doctor.require_evaluation()


def test_the_driver_asks_before_anything_else(monkeypatch, capsys):
    def broken() -> doctor.Finding:
        return doctor.Finding("accelerate", "FAIL", "is not installed; run: pip install accelerate")

    monkeypatch.setattr(doctor, "NEEDED_TO_EVALUATE", (broken,))
    assert run.main(["no such benchmark", "--tokens", "64"]) == 2
    assert "pip install accelerate" in capsys.readouterr().err


def test_little_room_is_noted(monkeypatch):
    usage = doctor.shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage._replace(free=1 << 30))
    (line,) = lines(doctor.check_disk)
    assert line.startswith("note") and "1 GB free" in line and "HF_HOME" in line


def test_an_unsupported_python_names_those_that_are(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 1))
    (line,) = lines(doctor.check_python)
    assert line.startswith("FAIL") and "3.10 … 3.13" in line
