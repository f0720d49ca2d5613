"""The wheel: what it holds, and that it works from a folder that is not the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import visiondrop

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from the files git knows, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    source = folder / "source"
    for name in tracked.stdout.splitlines():
        if name.startswith(("visiondrop/", "llava/", "eval/", "figures/", "testbed/")) or "/" not in name:
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(folder), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel in it; torch and the rest are seen in the running one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    target = next((folder / "lib").glob("python*/site-packages"))
    ours = [p for p in sys.path if p.endswith("site-packages")]
    (target / "rest.pth").write_text("\n".join(ours) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return python


def run(python: Path, *arguments: str) -> str:
    """Standard output of a command in an empty folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([str(python), *arguments], capture_output=True, text=True, cwd=python.parent, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_two_packages_land_in_site_packages(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {n for n in names if not n.endswith(".dist-info")} == {"visiondrop", "llava"}
    assert f"visiondrop-{visiondrop.__version__}-py3-none-any.whl" == wheel.name


def test_every_module_is_in_the_wheel(wheel):
    there = {n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".py")}
    wanted = {str(p.relative_to(ROOT)) for top in ("visiondrop", "llava") for p in (ROOT / top).rglob("*.py")}
    assert wanted == there


def test_the_packages_import_from_any_folder(python):
    code = "import visiondrop, llava, llava.model.builder as b; print(visiondrop.__file__, b.__file__, visiondrop.available())"
    out = run(python, "-c", code)
    assert str(ROOT) not in out.replace(str(python.parents[1]), "") and "visionzip" in out


def test_the_command_runs_from_any_folder(python):
    command = str(python.parent / "visiondrop")
    assert "mean 64.00 tokens per layer" in run(python, command, "plan", "--tokens", "64")
    assert "visionzip" in run(python, command, "methods")
    assert "torch" in run(python, command, "doctor")
    assert "--image" in run(python, command, "ask", "--help")


def test_the_version_is_said_once():
    """Package, changelog and citation agree with `visiondrop.__version__`."""
    version = visiondrop.__version__
    assert f"\n## {version} - 20" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert 'version = "' not in (ROOT / "pyproject.toml").read_text()
