"""Where a run is made: the code's commit, the versions in use, the device."""

import importlib.metadata
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

from eval.files import ROOT

PACKAGES = ("torch", "transformers", "lmms_eval", "datasets", "accelerate")


@cache
def git_state(root: Path = ROOT) -> tuple[str, bool]:
    """(commit, uncommitted changes) of the checkout; ("unknown", True) outside of one."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def version_of(package: str) -> str:
    """Installed version of a distribution, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Versions that can change an answer or a score."""
    import visiondrop

    ours = getattr(visiondrop, "__version__", None) or version_of("visiondrop")
    return {"python": platform.python_version(), **{p: version_of(p) for p in PACKAGES}, "visiondrop": ours}


def device_name(device: str) -> str:
    """Name of the card or processor."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.search(r"model name\s*:\s*(.+)", text)[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()
