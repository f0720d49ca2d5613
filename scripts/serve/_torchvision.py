"""Makes `import torchvision` work beside torch's build for processors, in the environment that runs this.

PyPI's torchvision for Linux is built for CUDA: without torch's CUDA libraries its operators cannot be loaded, and its import
then ends at two of them, for which it registers stand-ins.  vLLM and transformers want its image transforms only.
So these operators are declared where torchvision has found that it has none.  Nothing is done where the import works.
Run: .venv-serve/bin/python scripts/serve/_torchvision.py
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

MISSING = "operator torchvision::nms does not exist"
DECLARED = """
if not _has_ops():  # added by visiondrop's scripts/serve/_torchvision.py
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def failure() -> str:
    """What `import torchvision` says in a process of its own; nothing where it works."""
    return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True).stderr


def main() -> int:
    """Exit code 0 where torchvision can be imported in the end."""
    said = failure()
    if MISSING in said:
        file = Path(find_spec("torchvision").origin).with_name("extension.py")
        file.write_text(file.read_text(encoding="utf-8") + DECLARED, encoding="utf-8")
        said = failure()
    if said:
        print(f"error: torchvision cannot be imported: {said.strip().splitlines()[-1]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
