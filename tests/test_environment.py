"""The running environment is the locked one, name by name: nothing is missing, different, or there without a pin."""

import re
import subprocess
import sysconfig
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
INSTALLERS = {"pip", "setuptools", "wheel", "uv"}  # what a fresh virtual environment and a lock's maker bring
COMPANIONS = re.compile(r"nvidia-.*|cuda-.*|triton")  # torch pins and brings them where it is built for CUDA


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(lock: Path) -> dict[str, str]:
    """{name: version} of the lines of a lock whose markers hold here."""
    found = {}
    for line in lock.read_text().splitlines():
        if re.match(r"[a-zA-Z0-9]", line):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                (only,) = requirement.specifier
                assert only.operator == "==", line
                found[canonical(requirement.name)] = only.version
    return found


def differences(installed: dict[str, str], lock: dict[str, str]) -> list[str]:
    """What is wrong with an environment, a sentence each; a local version label (2.13.0+cpu) is no difference."""
    out = [f"{name} is missing (the lock has {version})" for name, version in lock.items() if name not in installed]
    for name, version in installed.items():
        if name in lock:
            if version.split("+")[0] != lock[name]:
                out.append(f"{name} {version} is installed and the lock has {lock[name]}")
        elif name not in INSTALLERS and not COMPANIONS.fullmatch(name):
            out.append(f"{name} {version} is installed and not in the lock")
    return out


def test_the_environment_is_the_locked_one():
    # The environment's own folders only: setuptools, once imported, puts its bundled packages on sys.path.
    folders = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    installed = {canonical(d.metadata["Name"]): d.version for d in metadata.distributions(path=folders)}
    installed.pop("visiondrop", None)
    wrong = differences(installed, pinned(ROOT / "requirements.txt"))
    assert not wrong, "run bash scripts/setup.sh, or regenerate the lock: " + "; ".join(wrong)


def test_differences_are_seen():
    lock = {"torch": "2.13.0", "filelock": "4.2.12", "numpy": "2.4.6"}
    there = {"torch": "2.13.0+cpu", "filelock": "4.3.0", "extra": "1", "nvidia-cublas": "13", "pip": "26"}
    wrong = differences(there, lock)
    assert len(wrong) == 3
    assert any(w.startswith("numpy is missing") for w in wrong)
    assert "filelock 4.3.0 is installed and the lock has 4.2.12" in wrong
    assert "extra 1 is installed and not in the lock" in wrong


def test_the_lock_is_complete_and_names_no_place():
    """Everything chosen is pinned, what is switched off is not, and no address or path of one machine is in it."""
    text = (ROOT / "requirements.txt").read_text()
    assert not re.search(r"https?://|file:|--index|--find-links|(?m:^-e)|(?<!\w)/", text)
    names = pinned(ROOT / "requirements.txt")
    for line in (ROOT / "requirements.in").read_text().splitlines():
        line = line.split("#")[0].strip()
        if line and (Requirement(line).marker is None or Requirement(line).marker.evaluate()):
            assert Requirement(line).specifier.contains(names[canonical(Requirement(line).name)]), line
    for line in (ROOT / "requirements.overrides").read_text().splitlines():
        if line and not line.startswith("#"):
            assert canonical(Requirement(line).name) not in names, line


def test_python_outside_the_lock_is_refused(tmp_path):
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.18" && exit 0\nexit 1\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/setup.sh")],
        env={"BASE_PYTHON": str(fake), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Python 3.9.18" in done.stderr and "3.10 to 3.13" in done.stderr
