"""Pictures to the five views of LLaVA-NeXT's layout fixed-2880, and the order of their tokens, as in the loaded model.

The cutting is llava's own (`llava.anyres.crop`), the order visiondrop's (`packed_ids`), so that training sees
what `load_pretrained_model` will see; tests/testbed/test_next.py compares the logits.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from llava.anyres import crop
from testbed.data.scenes import FULL_GRID
from testbed.next.scenes import CROP, SIDE
from visiondrop.tower.units import packed_ids

VIEWS = 5
TOKENS = VIEWS * FULL_GRID**2
# token -> view * 576 + patch: base view, then the canvas of the four crops in raster order
ORDER = packed_ids((2, 2), FULL_GRID, range(2 * FULL_GRID), range(2 * FULL_GRID), newline=False)


def cut(image: np.ndarray) -> np.ndarray:
    """A scene's picture (uint8 [672, 672, 3]) as its five views, uint8 [5, 3, 336, 336]."""
    views = crop(Image.fromarray(image), (SIDE, SIDE), CROP, CROP)
    return np.stack([np.asarray(view) for view in views]).transpose(0, 3, 1, 2)


def line_up(rows: torch.Tensor) -> torch.Tensor:
    """Rows of the views' patches, [B * 5, 576, D], in the order of the visual sequence, [B, 2880, D]."""
    return rows.reshape(-1, TOKENS, rows.shape[-1])[:, ORDER.to(rows.device)]
