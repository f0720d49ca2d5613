"""Tokenizers of LLaVA checkpoints: ids equal to those of the SentencePiece library, from `tokenizer.model` or
`tokenizer.json`.

The original package used transformers' slow LlamaTokenizer, a thin layer over SentencePiece; transformers 5 rebuilds
the vocabulary in another library, for which it needs a protobuf release that matches SentencePiece's, and drops one
word-boundary mark where a piece begins with a space (the " " between two images). Here `tokenizer.model` is given to
SentencePiece itself, and a tokenizer rebuilt from `tokenizer.json` gets the mark back.
"""

import json
import os
import re
from pathlib import Path

from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizer, PreTrainedTokenizerBase

from visiondrop.errors import VisionDropError, first_line

WORD_START = "\u2581"  # SentencePiece writes a space, and the beginning of a text, as this character
# Protobuf's rule is that later fields win: ModelProto.normalizer_spec (field 3) { add_dummy_prefix (field 3): false }.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
# What sentencepiece and transformers raise on damaged tokenizer files.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


class SentencePieceTokenizer(PreTrainedTokenizer):
    """LLaMA's tokenizer over the SentencePiece library itself.

    vocab_file: path of `tokenizer.model`; legacy: whether SentencePiece's leading space is put before every stretch of
    text between special tokens (true, the older behaviour and the default, as in transformers 4), or before the first
    one only (false).
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(self, vocab_file, legacy=None, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **kwargs):
        self.vocab_file = vocab_file
        self.legacy = True if legacy is None else legacy
        self.add_bos_token = kwargs.pop("add_bos_token", True)
        self.add_eos_token = kwargs.pop("add_eos_token", False)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        self._pieces = _sentencepiece(Path(vocab_file).read_bytes())
        self._pieces_inside = self._pieces
        if not self.legacy:
            self._pieces_inside = _sentencepiece(self._pieces.serialized_model_proto() + _NO_DUMMY_PREFIX)
        super().__init__(unk_token=unk_token, bos_token=bos_token, eos_token=eos_token, legacy=self.legacy, **kwargs)

    @property
    def vocab_size(self):
        """Number of entries of the SentencePiece model, without added tokens."""
        return self._pieces.get_piece_size()

    def get_vocab(self):
        """All tokens, added ones included, as a dict of token to id."""
        vocab = {self._pieces.id_to_piece(index): index for index in range(self.vocab_size)}
        return vocab | self.added_tokens_encoder

    def tokenize(self, text, **kwargs):
        """Tokens of `text` as strings; added tokens (`</s>` and so on) are found first, the text between them goes to
        SentencePiece.
        """
        added = self.added_tokens_encoder
        splitter = "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True))
        tokens = []
        for segment in re.split(f"({splitter})", text) if added else [text]:
            if segment in added:
                tokens.append(segment)
            elif segment:
                tokens.extend((self._pieces_inside if tokens else self._pieces).encode(segment, out_type=str))
        return tokens

    def _convert_token_to_id(self, token):
        return self._pieces.piece_to_id(token)

    def _convert_id_to_token(self, index):
        # Embeddings may have more rows than the vocabulary (the hub pads them to a multiple of 64); such an id has no
        # text.
        return self._pieces.id_to_piece(index) if index < self.vocab_size else ""

    def convert_tokens_to_string(self, tokens):
        """Text of a list of tokens; added tokens are written as they are."""
        added, text, run = self.added_tokens_encoder, "", []
        for token in tokens:
            if token in added:
                text, run = text + self._pieces.decode_pieces(run) + token, []
            elif token:
                run.append(token)
        return text + self._pieces.decode_pieces(run)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        """`<s>` before every sequence and, if asked for in the tokenizer's config, `</s>` after it."""
        before = [self.bos_token_id] if self.add_bos_token else []
        after = [self.eos_token_id] if self.add_eos_token else []
        sequences = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        return [index for sequence in sequences for index in before + list(sequence) + after]

    def save_vocabulary(self, save_directory, filename_prefix=None):
        """Write `tokenizer.model` into `save_directory`; returns the path in a tuple."""
        path = Path(save_directory) / ((f"{filename_prefix}-" if filename_prefix else "") + "tokenizer.model")
        path.write_bytes(self._pieces.serialized_model_proto())
        return (str(path),)


def _sentencepiece(model_proto):
    """A SentencePieceProcessor over the bytes of a model file."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model_proto)
    return processor


def load_tokenizer(folder: str | os.PathLike) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, with a pad token and, unless its config says otherwise, padding on the
    left.

    `tokenizer.model` is preferred to `tokenizer.json`, as in the original. Raises VisionDropError where neither is
    there or readable.
    """
    folder = Path(folder)
    settings = _settings(folder)
    if (folder / "tokenizer.model").is_file():
        tokenizer = _from_sentencepiece(folder)
    elif (folder / "tokenizer.json").is_file():
        tokenizer = _from_json(folder, settings)
    else:
        raise VisionDropError(
            f"No tokenizer in {str(folder)!r}: neither tokenizer.model nor tokenizer.json is there; copy one from the "
            "model's repository."
        )
    tokenizer.padding_side = settings.get("padding_side", "left")
    if tokenizer.pad_token is None:
        # The unknown token, as in LLaVA's training code: an evaluator that masks by `ids != pad` must not mask the end
        # of sequence.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _settings(folder):
    """The contents of tokenizer_config.json, empty where it is missing."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VisionDropError(f"{str(path)!r} is not valid JSON ({error}); download it again.") from error


def _from_sentencepiece(folder):
    """SentencePieceTokenizer of a folder with tokenizer.model, its tokenizer_config.json respected."""
    try:
        return SentencePieceTokenizer.from_pretrained(folder)
    except ImportError as error:
        raise VisionDropError(
            "Reading tokenizer.model needs the sentencepiece package: pip install sentencepiece."
        ) from error
    except _DAMAGE as error:
        raise VisionDropError(
            f"Could not read tokenizer.model or the settings beside it in {str(folder)!r} ({first_line(error)}); "
            "download them again."
        ) from error


def _from_json(folder, settings):
    """The tokenizer of a folder with tokenizer.json: LLaMA's class for LLaMA-like vocabularies, else the class the
    folder names.
    """
    try:
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        named = settings.get("tokenizer_class") or ("LlamaTokenizer" if model.get("byte_fallback") else None)
        # Without a name, transformers' bare class would look in config.json, whose model_type "llava" names no
        # tokenizer.
        if named and named.startswith(("LlamaTokenizer", "SentencePieceTokenizer")):
            tokenizer = LlamaTokenizer.from_pretrained(folder)
            # transformers takes this from the file's post-processor alone, whatever the config says.
            tokenizer.add_bos_token = settings.get("add_bos_token", True)
            tokenizer.add_eos_token = settings.get("add_eos_token", False)
            tokenizer.update_post_processor()
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (*_DAMAGE, ImportError) as error:
        raise VisionDropError(
            f"Could not read the tokenizer in {str(folder)!r} ({first_line(error)}); download tokenizer.json and "
            "tokenizer_config.json again."
        ) from error
    if isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.Metaspace):
        _restore_word_start(tokenizer.backend_tokenizer, legacy=settings.get("legacy", True))
    return tokenizer


def _restore_word_start(backend, legacy):
    """Give text that begins with a space its word-boundary mark, which the Metaspace splitter leaves out.

    backend: a `tokenizers.Tokenizer`, changed in place. legacy: as in SentencePieceTokenizer.
    """
    if legacy:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend(WORD_START), normalizers.Replace(" ", WORD_START)]
        )
        backend.pre_tokenizer = None
        return
    # Metaspace prepends nothing to text that begins with its own replacement character. The spaces of the text are
    # marks already when the first splitter looks, so it always prepends (a space, to the first stretch only), and the
    # second turns that into a mark.
    backend.normalizer = normalizers.Replace(" ", WORD_START)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme="never", split=False),
        ]
    )
