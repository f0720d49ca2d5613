"""The testbed's word-level tokenizer: lower case words, the digits, and one entry for the whole system sentence.

    tokenizer = build_tokenizer(); tokenizer.save_pretrained(folder)     # a stock PreTrainedTokenizerFast
    [*PREFIX, IMAGE, *question_ids("What color is the star?")]           # the ids of a whole vicuna_v1 prompt

The vicuna_v1 system sentence is one vocabulary entry and question marks are dropped, so that a prompt is short; the
conversation template, `tokenizer_image_token` and everything after them stay those of LLaVA.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from testbed.data.questions import PLURALS
from testbed.data.scenes import COLOR_NAMES, SHAPES

PAD, BOS, EOS, UNKNOWN, SYSTEM = "<pad>", "<s>", "</s>", "<unk>", "<system>"
_WORDS = (
    "user: assistant: is there a an the what which color shape digit object objects "
    "how many are on has have same as with and of not yes no"
)
VOCABULARY = (
    [UNKNOWN, BOS, EOS, PAD, SYSTEM]
    + _WORDS.split()
    + list(COLOR_NAMES)
    + list(SHAPES)
    + list(PLURALS.values())
    + [str(digit) for digit in range(10)]
)
IDS = {word: number for number, word in enumerate(VOCABULARY)}
PREFIX = (IDS[BOS], IDS[SYSTEM], IDS["user:"])  # what stands before the image
SUFFIX = (IDS["assistant:"],)


def question_ids(text: str, ids: dict[str, int] = IDS) -> list[int]:
    """Ids of what stands after the image: the words of the question and "assistant:"."""
    return [ids[word] for word in text.rstrip("?").lower().split()] + list(SUFFIX)


def build_tokenizer(ids: dict[str, int] = IDS, length: int = 2048) -> PreTrainedTokenizerFast:
    """The tokenizer that goes into the checkpoint; adds <s> in front as LLaMA's does, pads on the left.

    ids: numbers of the words, those of `IDS` and a sibling's own after them; length: longest prompt.
    """
    core = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    sentence = Regex(
        r"A chat between a curious (user|human) and an artificial intelligence assistant\. .*? questions\."
    )
    core.normalizer = normalizers.Sequence([normalizers.Replace(sentence, f" {SYSTEM} "), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s?.,]+"), behavior="removed")
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )
