"""The words of the grounded sibling: the testbed's, "where", and the edges of patches beyond 9, which stand after them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from testbed.data import tokenizer as base
from testbed.data.scenes import FULL_GRID

VOCABULARY = base.VOCABULARY + ["where"] + [str(edge) for edge in range(10, FULL_GRID + 1)]
IDS = {word: number for number, word in enumerate(VOCABULARY)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that goes into the checkpoint."""
    return base.build_tokenizer(IDS)
