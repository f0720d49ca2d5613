"""A tokenizer of 512 entries shaped like LLaMA's, trained on the sentences below, as tokenizer.model or .json."""

import io
import json
from functools import lru_cache

import sentencepiece

VOCABULARY_SIZE = 512


def write_json(path, content):
    """Write `content` as JSON."""
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _sentences():
    """What the small tokenizer is trained on: LLaVA's system sentence and questions about simple pictures."""
    yield "A chat between a curious user and an artificial intelligence assistant."
    yield "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: ASSISTANT:"
    yield "Answer the question using a single word or phrase."
    yield "Answer with the option's letter from the given choices directly."
    yield "  two  spaces,   three spaces; 0 1 2 3 4 5 6 7 8 9 (yes) [no]! A. B. C. D."
    for colour in ("red", "green", "blue", "yellow", "orange", "purple", "white", "black"):
        for shape in ("circle", "square", "triangle", "cat", "umbrella"):
            yield f"What is left of the {colour} {shape}? Is there a small {shape} in the image?"
            yield f"The {shape} is {colour}."


@lru_cache
def sentencepiece_model():
    """Bytes of a BPE SentencePiece model like LLaMA's: <unk>, <s>, </s> = 0, 1, 2, bytes as a fallback, 512 entries."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(),
        model_writer=model,
        vocab_size=VOCABULARY_SIZE,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def raw_sentencepiece():
    """The SentencePiece library's own processor, to compare with."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(sentencepiece_model())
    return processor


def _tokenizer_json():
    """The same vocabulary as a tokenizer.json with the normaliser and post-processor of LLaMA's published one."""
    processor = raw_sentencepiece()
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    merges = []  # ids of BPE pieces are in order of merging
    for piece in vocabulary:
        merges += [
            [piece[:k], piece[k:]] for k in range(1, len(piece)) if piece[:k] in vocabulary and piece[k:] in vocabulary
        ]
    special = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, token in enumerate(("<unk>", "<s>", "</s>"))
    ]
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, begin, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def write_tokenizer(folder, tokenizer="model", **settings):
    """tokenizer.model ("model") or tokenizer.json ("json"), and a tokenizer_config.json as of transformers 4.31."""
    if tokenizer == "model":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    else:
        write_json(folder / "tokenizer.json", _tokenizer_json())
    token = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": token | {"content": "<s>"},
        "clean_up_tokenization_spaces": False,
        "eos_token": token | {"content": "</s>"},
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": token | {"content": "<unk>"},
    }
    write_json(folder / "tokenizer_config.json", config | settings)
