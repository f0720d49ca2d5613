"""LLaVA, rebuilt on transformers: original parameter names, prompts and preprocessing, with the pruning stages visible
in the model.

The surface is the one of the original package (`constants`, `conversation`, `mm_utils`, `model.builder`), so that
programs written for it, lmms-eval's own `llava` model among them, run on this one.
"""

from llava import adapter  # registers how pruning is attached to our model class

__all__ = ["adapter"]
