"""Questions that share an image share its pruned cache (`--reuse on`): grouping, and answers from a prefix.

GQA asks about 31 questions per image, POPE 18.  Images are told apart by their pixels, not by names, so it works for
every data set; each image is decoded once more for that.  Exact for methods that do not read the question
(visiondrop/session.py); the others are refused.
"""

from typing import Any

import torch
from lmms_eval.api.instance import Instance
from tqdm import tqdm

from eval.errors import EvaluationError
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import tokenizer_image_token
from visiondrop.session import PrefixStore, continue_prefix, encode_prefix, fingerprint, refuse_text_guided

LIMIT_BYTES = 2 << 30  # keys and values of prefixes held at once


class ImageReuse:
    """Answers the questions of a `LlavaVisionDrop` through prefixes.

    Attributes:
        lm: the model object; it decodes images and writes prompts.
        prefixes: what is held; `prefixes.hits` and `.misses` tell how it fared.
    """

    def __init__(self, lm: Any, pruner: Any, limit_bytes: int = LIMIT_BYTES):
        refuse_text_guided(pruner)
        if lm.sharded:
            raise EvaluationError(
                "--reuse on needs a whole model per process: with shared-out weights (ZeRO-3) processes get out of step"
            )
        self.lm, self.prefixes = lm, PrefixStore(limit_bytes)
        self._keys: dict[int, str] = {}

    def note(self, requests: list[Instance]) -> None:
        """Look at the images of all requests once, so that they can be grouped."""
        for request in tqdm(requests, desc="images", unit="q", disable=self.lm.rank != 0):
            self.key(request)

    def key(self, request: Instance) -> str:
        """Equal for requests whose prompts are equal up to and including the last image; "" without an image."""
        if id(request) not in self._keys:
            images = self.lm._images(request)
            prefix, question = self._split(request, images)
            known_by = [getattr(image, "path", image) for image in images]  # videos are files, decoded later
            self._keys[id(request)] = fingerprint(*known_by, prefix) if prefix and question else ""
        return self._keys[id(request)]

    def answer(self, requests: list[Instance], settings: dict[str, Any]) -> list[str]:
        """Answers of requests of one key, which share their generation settings."""
        lm, key = self.lm, self.key(requests[0])
        images = lm._images(requests[0])
        prefix = self.prefixes.get(key)
        if prefix is None:
            ids = torch.tensor([self._split(requests[0], images)[0]], device=lm.device)
            sizes = [getattr(image, "size", None) for image in images]
            made = encode_prefix(lm.model, ids, images=lm._pixels(images, requests[:1]), image_sizes=sizes)
            prefix = self.prefixes.put(key, made)
        pad = lm.tokenizer.pad_token_id
        pad = lm.tokenizer.eos_token_id if pad is None else pad
        rows = [self._split(request, images)[1] for request in requests]
        new = continue_prefix(lm.model, prefix, rows, pad_token_id=pad, **settings)
        return lm.tokenizer.batch_decode(new, skip_special_tokens=True)

    def _split(self, request: Instance, images: list) -> tuple[list[int], list[int]]:
        """Ids up to and including the last image, and those behind it."""
        ids = list(
            tokenizer_image_token(self.lm._prompt(request.args[0], images), self.lm.tokenizer, IMAGE_TOKEN_INDEX)
        )
        behind = ids[::-1].index(IMAGE_TOKEN_INDEX) if IMAGE_TOKEN_INDEX in ids else len(ids)
        return ids[: len(ids) - behind], ids[len(ids) - behind :]
