"""The words of the video sibling: the testbed's and six of its own, which stand after them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from testbed.data import tokenizer as base

VOCABULARY = base.VOCABULARY + ["moves", "appears", "changes", "does", "become", "that"]
IDS = {word: number for number, word in enumerate(VOCABULARY)}
CONTEXT = 4096


def question_ids(text: str) -> list[int]:
    """Ids of what stands after the video: the words of the question and "assistant:"."""
    return base.question_ids(text, IDS)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that goes into the checkpoint."""
    return base.build_tokenizer(IDS, CONTEXT)
