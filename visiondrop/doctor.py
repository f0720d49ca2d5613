"""Is this environment fit to run?  One line per part: what works, what does not, and the command that mends it.

    python -m visiondrop doctor

Only the standard library is imported before a part is looked at, so that a broken package is a line and not a traceback.
"""

import ast
import importlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from ._versions import RANGE, check_torchvision, transformers_problem
from .errors import VisionDropError

PYTHONS = ((3, 10), (3, 13))
LEAST_DISK = 5 << 30  # bytes; a 7B checkpoint alone needs three times as many
# Releases that broke a package of ours in a later week, and the versions that work.
WORKING = {"filelock": "<4.3", "av": "<16"}
EVALUATION = "bash scripts/setup.sh (a checkout), or: pip install 'visiondrop[eval]'"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        part: what was looked at; state: "ok", "note" (something optional is not there) or "FAIL".
        text: what was found, and for "FAIL" the fix.
    """

    part: str
    state: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<5}{self.part:<14}{self.text}"


def version_of(package: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _imported(part: str, module: str, fix: str) -> Finding:
    """Whether a module can be imported, and its distribution's version."""
    found = version_of(part)
    if found is None:
        return Finding(part, "FAIL", f"is not installed; run: {fix}")
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a broken installation raises
        return Finding(part, "FAIL", f"{found} cannot be imported ({_short(error)}); run: {fix}")
    return Finding(part, "ok", found)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def check_python() -> Finding:
    """The interpreter."""
    version, (low, high) = sys.version_info[:2], PYTHONS
    text = f"{sys.version.split()[0]} ({sys.executable})"
    if not low <= version <= high:
        allowed = f"{low[0]}.{low[1]} … {high[0]}.{high[1]}"
        return Finding(
            "python", "FAIL", f"{text}; supported are {allowed}: BASE_PYTHON=python3.11 bash scripts/setup.sh"
        )
    return Finding("python", "ok", text)


def check_torch() -> Finding:
    """torch itself."""
    return _imported("torch", "torch", "pip install torch==2.13.0")


def check_transformers() -> Finding:
    """transformers: there, in the supported range, and importable beside the torchvision that is installed."""
    problem = transformers_problem()
    if problem is not None:
        return Finding("transformers", "FAIL", problem)
    try:
        check_torchvision()
    except ImportError as error:
        return Finding("torchvision", "FAIL", str(error))
    found = _imported(
        "transformers", "transformers", "bash scripts/setup.sh, or: pip install 'transformers" + RANGE + "'"
    )
    if found.state != "ok":
        return found
    try:
        importlib.import_module("transformers.models.llava.modeling_llava")
    except Exception as error:
        return Finding(
            "transformers", "FAIL", f"{found.text}: its LLaVA cannot be imported ({_short(error)}); {EVALUATION}"
        )
    return found


def check_accelerate() -> Finding:
    """accelerate, for device maps and several processes; the core alone does without."""
    if version_of("accelerate") is None:
        return Finding(
            "accelerate", "note", "not installed, so no device maps and no evaluation; pip install accelerate"
        )
    return _imported("accelerate", "accelerate", "pip install accelerate")


@cache
def _needs_of(file: Path) -> frozenset[str]:
    """Modules that a source file imports outside of any `try`, in functions too; read once, a batch asks before each run."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guarded = {id(n) for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module)
    return frozenset(found)


def _missing(module: str) -> bool:
    """Whether a module is not there, its parents imported on the way."""
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


def check_lmms_eval() -> Finding:
    """lmms-eval: its evaluator imports, and what it will import only while it runs is there as well."""
    found = version_of("lmms-eval")
    if found is None:
        return Finding("lmms-eval", "note", f"not installed, so nothing can be evaluated; {EVALUATION}")
    try:
        evaluator = importlib.import_module("lmms_eval.evaluator")
    except Exception as error:
        blamed = getattr(error, "name", None) or ""
        return Finding("lmms-eval", "FAIL", _blame(found, blamed, _short(error)))
    for module in sorted(_needs_of(Path(str(evaluator.__file__)))):
        if _missing(module):
            return Finding("lmms-eval", "FAIL", _blame(found, module, f"there is no module {module}"))
    return Finding("lmms-eval", "ok", found)


def _blame(found: str, module: str, what: str) -> str:
    """The sentence about a module that lmms-eval needs and does not find."""
    package = module.split(".")[0]
    version = version_of(package) if package else None
    if version is None:
        return f"{found} does not run here ({what}); run: {EVALUATION}"
    works = WORKING.get(package) or _locked(package)
    if works is None:
        return f"{found} does not run with {package} {version} ({what}); run: {EVALUATION}"
    return (
        f"{found} does not run with {package} {version} ({what}); it works with {package}{works}: "
        f"{sys.executable} -m pip install '{package}{works}'"
    )


def _locked(package: str) -> str | None:
    """The version of a package in this checkout's lock, as ==VERSION, or None."""
    lock = Path(__file__).resolve().parents[1] / "requirements.txt"
    if not lock.is_file():
        return None
    found = re.search(rf"(?mi)^{re.escape(package)}(==[^\s;]+)", lock.read_text(encoding="utf-8"))
    return found[1] if found else None


def check_attention() -> Finding:
    """Attention backends besides the two that torch always has."""
    found = version_of("flash-attn")
    if found is None:
        return Finding(
            "attention", "ok", "sdpa, eager (flash_attention_2: pip install flash-attn --no-build-isolation)"
        )
    try:
        importlib.import_module("flash_attn")
    except Exception as error:
        fix = "pip uninstall -y flash-attn, or build it again: pip install flash-attn --no-build-isolation"
        return Finding("attention", "FAIL", f"flash-attn {found} cannot be imported ({_short(error)}); {fix}")
    return Finding("attention", "ok", f"sdpa, eager, flash_attention_2 (flash-attn {found})")


def check_devices() -> Finding:
    """Accelerators and processors."""
    import torch

    cores = os.cpu_count() or 1
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("devices", "ok", f"{', '.join(cards)}; {cores} cores")
    return Finding("devices", "ok", f"no CUDA device, {cores} cores: models run on the CPU")


def check_compiler() -> Finding:
    """What torch.compile needs on a CPU."""
    found = next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)
    if found is None:
        return Finding("compiler", "note", "no C++ compiler, so --compile runs eagerly; Debian: apt-get install g++")
    return Finding("compiler", "ok", str(shutil.which(found)))


def check_fonts() -> Finding:
    """Figures use the font that comes with matplotlib."""
    if version_of("matplotlib") is None:
        return Finding("fonts", "note", f"matplotlib is not installed, so figures cannot be drawn; {EVALUATION}")
    try:
        manager = importlib.import_module("matplotlib.font_manager")
        path = manager.findfont("DejaVu Sans", fallback_to_default=False)
    except Exception as error:
        return Finding(
            "fonts", "FAIL", f"DejaVu Sans is not found ({_short(error)}); pip install --force-reinstall matplotlib"
        )
    return Finding("fonts", "ok", f"DejaVu Sans ({Path(path).name})")


def check_disk() -> Finding:
    """Room where runs and downloaded checkpoints are kept."""
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    places = {"here": Path.cwd(), "downloads": next(p for p in (cache, *cache.parents) if p.exists())}
    free = {name: shutil.disk_usage(place).free for name, place in places.items()}
    text = ", ".join(f"{name} {size / 2**30:.0f} GB free" for name, size in free.items())
    if min(free.values()) < LEAST_DISK:
        return Finding("disk", "note", f"{text}; make room, or set HF_HOME and --runs to another disk")
    return Finding("disk", "ok", text)


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_torch,
    check_transformers,
    check_accelerate,
    check_lmms_eval,
    check_attention,
    check_devices,
    check_compiler,
    check_fonts,
    check_disk,
)
NEEDED_TO_EVALUATE = (check_python, check_torch, check_transformers, check_accelerate, check_lmms_eval)


def examine(checks: tuple[Callable[[], Finding], ...] = CHECKS) -> Iterator[Finding]:
    """The findings, one by one; a part that cannot even be looked at, for want of another, is left to that one."""
    failed = False
    for check in checks:
        if failed and check is check_devices:
            continue
        finding = check()
        failed |= finding.state == "FAIL" and finding.part == "torch"
        yield finding


def require_evaluation() -> None:
    """Refuse to begin an evaluation that this environment cannot finish.

    Raises:
        VisionDropError: the first thing that does not work, with its fix.
    """
    for finding in examine(NEEDED_TO_EVALUATE):
        if finding.state != "ok":
            raise VisionDropError(f"{finding.part} {finding.text} (all of it: python -m visiondrop doctor)")


def main() -> int:
    """Print the report; exit code 1 where something does not work."""
    failed = 0
    for finding in examine():
        print(finding, flush=True)
        failed += finding.state == "FAIL"
    print(f"{failed} of these must be mended" if failed else "everything needed works")
    return int(failed > 0)
