"""The README's picture: one photograph, and the patches that VisionDrop lets into the LLM at three budgets.

    python -m figures.reproduce.photo            # writes docs/images/kept.png from visiondrop/demo/examples/coffee.jpg

The tower is the testbed's, which was trained on drawn scenes, so the picture shows how much is kept and not how well it is
chosen.  The photograph is `coffee` of scikit-image's data (Pikolo Espresso Bar and Rachel Michetti, CC0), cropped.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

import visiondrop
from eval.files import ROOT
from llava.mm_utils import open_image, process_images
from llava.model.builder import load_pretrained_model
from visiondrop.demo.fates import follow, standing_for_others
from visiondrop.demo.show import CELL, beside, colours, paint, square, titled
from visiondrop.errors import command_line

PHOTO, KEPT = ROOT / "visiondrop/demo/examples/coffee.jpg", ROOT / "docs/images/kept.png"
BUDGETS = (192, 64)


def panels(photo: Path, model: str) -> list[Image.Image]:
    """The photograph, then what each budget keeps after the encoder stage and at the end of the decoder."""
    _, network, processor, _ = load_pretrained_model(model, None, "llava", device_map="cpu", torch_dtype=torch.float32)
    picture, grid = open_image(photo), network.get_vision_tower().num_patches_per_side
    base = [square(picture, grid * CELL)]
    out = [titled(paint(base, grid, None, {}), f"unpruned: {grid * grid} tokens in every layer")]
    ids = torch.tensor([[network.config.bos_token_id, -200]])  # the choice does not depend on the question
    for tokens in BUDGETS:
        with visiondrop.apply(network, tokens=tokens, report=True) as handle, torch.no_grad():
            network(input_ids=ids, images=process_images([picture], processor, network.config))
            steps = follow(handle.report)[:1]
            title = f"--tokens {tokens}: {steps[0].dominant} kept + {steps[0].contextual} merged into the first layers"
            out.append(titled(paint(base, grid, steps[0], colours(standing_for_others(steps))), title))
    return out


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m figures.reproduce.photo", description=__doc__.split("\n")[0])
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--model", default=str(ROOT / "checkpoints/testbed"))
    parser.add_argument("--out", type=Path, default=KEPT)
    args = parser.parse_args(argv)
    beside(panels(args.photo, args.model)).save(args.out)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
