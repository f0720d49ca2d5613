"""The wheel: what it holds, and that it works from a folder that is not the repository."""

import ast
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


# Imported where they are used, behind a sentence or a test that they are there.
ELSEWHERE = {
    "av": "videos; llava/video.py names the package where it is missing",
    "torchvision": "looked at only where it is installed",
    "triton": "comes with torch's CUDA builds; visiondrop/ops/fused.py asks for it first",
    "tokenizers": "transformers requires it",
    "safetensors": "transformers requires it",
    "huggingface_hub": "transformers requires it",
    "tqdm": "transformers requires it",
    "matplotlib": "the extra advise; visiondrop/advice/report.py names it where it is missing",
    "vllm": "the extra serve; imported only in modules that vLLM itself asks for",
    "gradio": "the extra demo",
    "fastapi": "gradio requires it",
    "starlette": "gradio requires it",
    "uvicorn": "gradio requires it",
}


def test_the_demos_files_come_with_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (ROOT / "visiondrop/demo").rglob("*.*"):
        if "__pycache__" not in file.parts:
            assert file.relative_to(ROOT).as_posix() in names


def imported(file: Path) -> set[str]:
    """Top-level names of the modules that a source file imports absolutely, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_what_the_packages_import_is_required(wheel):
    """Nothing is found only because the evaluation's environment happens to hold it."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    lines = (line.split(": ", 1)[1] for line in text.splitlines() if line.startswith("Requires-Dist: "))
    required = {Requirement(line).name for line in lines if "extra ==" not in line}
    homes = metadata.packages_distributions()
    files = [file for top in ("visiondrop", "llava") for file in (ROOT / top).rglob("*.py")]
    theirs = (
        set().union(*map(imported, files)) - set(sys.stdlib_module_names) - {"visiondrop", "llava"} - ELSEWHERE.keys()
    )
    undeclared = {name for name in theirs if not required & {d.lower() for d in homes.get(name, [])}}
    assert {"torch", "transformers", "PIL", "numpy", "sentencepiece"} <= theirs and not undeclared, undeclared


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
