"""The parts of figures that need a model: scores and kept patches, written to results/figures/*.npz.

    python -m figures.reproduce.capture figure1 figure3 figure4                       # the testbed, its validation scenes
    python -m figures.reproduce.capture figure4 --model liuhaotian/llava-v1.5-7b --image photo.jpg --question "…" --question "…"

A file holds arrays and, under `about`, a JSON text with the model's fingerprint and everything else a caption says.
Drawing reads these files only.  The pictures of the testbed are the first validation scenes that fit, chosen by rule.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from eval.errors import EvaluationError
from eval.files import ROOT
from figures.data import pages, settings
from figures.data.captures import file_of
from figures.data.choose import FIGURES
from figures.data.needs import Capture
from figures.data.probe import Probe
from figures.data.scenes import Scenes
from visiondrop.errors import command_line


def captured() -> dict[str, Capture]:
    """Pages that need a capture, with the need."""
    return {name: need for name, p in pages.every().items() for need in p.needs if isinstance(need, Capture)}


def write(found: dict, probe: Probe, file: Path) -> None:
    """Write a capture.

    Raises:
        EvaluationError: the file cannot be written.
    """
    about = json.dumps({**probe.identity(), **found.pop("about")}, ensure_ascii=False, sort_keys=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, about=np.array(about), **found)
    except OSError as error:
        raise EvaluationError(f"{file} cannot be written: {error.strerror}; choose another --out") from None
    print(f"wrote {file}")


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused."""
    needs = captured()
    parser = argparse.ArgumentParser(prog="python -m figures.reproduce.capture", description=__doc__.split("\n")[0])
    parser.add_argument("figures", nargs="+", choices=tuple(needs))
    parser.add_argument("--model", help="checkpoint folder or hub id; default: the testbed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--image", action="append", help="picture files instead of the testbed's scenes")
    parser.add_argument("--question", action="append")
    parser.add_argument("--count", type=int, default=200, help="pictures of Figure 3's mean map")
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--force", action="store_true", help="make a capture again that is there")
    args = parser.parse_args(argv)
    wanted = [f for f in args.figures if args.force or not file_of(f, args.model, args.out).is_file()]
    if not wanted:
        print("all captures are there; --force makes them again")
        return 0
    probe = Probe(args.model or str(ROOT / settings.variant("figure2")[0].models[0]), args.device)
    scenes = Scenes(args.image, args.question, probe.grid * 14, args.count)
    for name in wanted:
        found = needs[name].take(probe, scenes)
        write(found, probe, file_of(name, args.model, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
