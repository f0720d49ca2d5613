"""Peak memory of the decoder's stages against the number of visual tokens, seen from outside the process."""

import subprocess
import sys

PROGRAM = """
import resource, sys
import torch
import visiondrop
from eval.efficiency import models

torch.set_num_threads(1)
model = models.build("thin", device="cpu", dtype=torch.float32, attention="sdpa")
for units in map(int, sys.argv[1:]):
    shape = models.crops(units, model.config.num_hidden_layers)
    model.visual_shape = lambda *_: shape
    visiondrop.apply(model, "visiondrop", shape.tokens // 2, encoder="off")
    hidden, layout = models.stack_input(model, 1, shape)
    with torch.inference_mode():
        model.model(inputs_embeds=hidden, layout=layout(), use_cache=True)
    print(shape.tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_resident_memory_grows_linearly():
    # Ascending sizes in one process: its high-water mark after each is that of the largest so far.
    run = subprocess.run([sys.executable, "-c", PROGRAM, "1", "10", "20"], capture_output=True, text=True, check=True)
    (_, base), (few, small), (many, large) = (map(int, line.split()) for line in run.stdout.splitlines())
    assert (few, many) == (5760, 11520)
    # A map of 11,520 x 11,520 float32 numbers, for one head alone, would be 506 MiB.
    assert large - base <= 200 * 1024, (base, small, large)  # KiB
    assert large - small <= 1.5 * (small - base) + 30 * 1024, (base, small, large)
