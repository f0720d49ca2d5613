"""The golden checkpoint's CLIP text tower and projections: weights that are a function of their names.

`golden_checkpoint.py` has CLIP's vision tower only; CDPruner also asks CLIP's text tower, its two projections and its
tokenizer.  Everything here is drawn as there, by the published CLIP names (`text_model.…`, `text_projection.weight`,
`visual_projection.weight`); only the token embeddings are given a larger scale, so that the text matters.

The tokenizer is CLIP's byte-level BPE with an empty merge list: 256 bytes, the same 256 as the last byte of a word
("…</w>"), begin-of-text, end-of-text - the order of the published vocabulary, so that, as there, the two special ids are
the largest and the end is the largest of all.
"""

import re

import numpy as np

from .golden_checkpoint import TEXT, VISION
from .golden_checkpoint import tensor as plain_tensor

CLIP_TEXT = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    vocab_size=514,
    max_position_embeddings=77,
    projection_dim=VISION["projection_dim"],
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=1,
)  # legacy ids, as published
# For the traces called `cdpruner-wide_*`.  The projected features of the usual checkpoint (LLM width 128) span 128 dimensions,
# the last of them at the level of float32 rounding: a determinantal choice of more than 120 tokens is made of rounding errors there.
WIDE_TEXT = dict(TEXT, hidden_size=256, num_hidden_layers=2)
BEGIN, END = 512, 513  # real ids of begin-of-text and end-of-text (49406, 49407 in the published vocabulary)
# The published tokenizer's pattern with letters and digits in ASCII: enough for the questions below.
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")

QUESTIONS = {
    0: "What color is the largest circle?",
    1: "Is there a dog on the left?",
    2: "How many blobs can be seen near the top edge of the picture?",
    3: "Read the sign.",
    # 214 ids = two whole segments of 77, which hold no end-of-text, and 60 more.
    "long": "Look at the picture and tell which of these is true. A. A red ball lies beneath the table. B. The window is open "
    "and the lamp is off. C. Two people are walking toward the river. D. None of these things can be seen, but there is "
    "a house with 27 windows and a blue door.",
    # 78 ids: the second segment holds end-of-text alone.
    "edge": "What is written in the upper right corner of the yellow poster that hangs on the wall near it?",
}


def tensor(name, shape):
    """float32 array, a function of `name` and `shape` alone."""
    scale = np.float32(8.0 if "token_embedding" in name else 1.0)
    return np.asarray(plain_tensor(name, shape) * scale)


def fill(state_dict, prefix=""):
    """Overwrite every floating-point tensor of a torch `state_dict` in place, by `prefix` + name."""
    import torch

    for name, value in state_dict.items():
        if value.is_floating_point() and "inv_freq" not in name:
            value.copy_(torch.from_numpy(tensor(prefix + name, tuple(value.shape))).to(value.dtype))


def visual_projection():
    """(64, 64) float32, as stored by a Linear: out x in."""
    return tensor("visual_projection.weight", (VISION["projection_dim"], VISION["hidden_size"]))


def byte_symbols():
    """The 256 printable stand-ins of the byte-level vocabulary, in vocabulary order, and the byte each stands for."""
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in order]
    for byte in range(256):
        if byte not in order:
            symbols.append(chr(256 + len(order) - 188))
            order.append(byte)
    return symbols, order


def text_ids(text):
    """Token ids of `text`: begin, its lower-cased words byte by byte, end; neither cut nor padded."""
    place = {byte: i for i, byte in enumerate(byte_symbols()[1])}
    ids = [BEGIN]
    for word in WORDS.findall(re.sub(r"\s+", " ", text).strip().lower()):
        codes = [place[byte] for byte in word.encode()]
        ids += [*codes[:-1], codes[-1] + 256]
    return [*ids, END]


def vocabulary():
    """(token -> id, merges) of the byte-level tokenizer, to write as vocab.json and merges.txt."""
    symbols = byte_symbols()[0]
    names = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    return {name: i for i, name in enumerate(names)}, []


def segments(ids, length=CLIP_TEXT["max_position_embeddings"]):
    """(M, 77) ids and (M, 77) mask: cut every 77, the last one padded with id 0 and mask 0, as CDPruner does."""
    count = (len(ids) - 1) // length + 1
    padded = np.zeros(count * length, np.int64)
    mask = np.zeros(count * length, np.int64)
    padded[: len(ids)], mask[: len(ids)] = ids, 1
    return padded.reshape(count, length), mask.reshape(count, length)
