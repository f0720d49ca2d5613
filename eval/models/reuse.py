"""Questions that share an image share its pruned cache (`--reuse on`): grouping, and answers from a prefix.

GQA asks about 31 questions per image, POPE 18.  Images are told apart by their pixels, not by names, so it works for
every data set; each image is decoded once more for that.  Exact for methods that do not read the question
(visiondrop/reuse/session.py); the others are refused.  Where few questions are asked about each image, as in the testbed,
a batch holds several images with their questions.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from torch import nn
from tqdm import tqdm
from transformers import DynamicCache

from eval.errors import EvaluationError
from eval.models.request import Request, pictures
from visiondrop.pruner import current_choice
from visiondrop.reuse.prefix import Prefix, continue_prefix, encode_prefix, prefill, refuse_text_guided
from visiondrop.reuse.recent import fingerprint
from visiondrop.reuse.store import PrefixStore
from visiondrop.stack.cache import PrunedCache

LIMIT_BYTES = 2 << 30  # keys and values of prefixes held at once


@dataclass(frozen=True)
class JoinedPrefix(Prefix):
    """Prefixes of several images with equal text and equal lengths, in one cache.

    Attributes:
        owners: the image of every question that will be asked, [B] row numbers of the cache.
    """

    owners: tuple[int, ...] = ()

    def rows(self, count: int) -> DynamicCache:
        """A cache of `count` rows: each question's image, as often in a row as there are beams."""
        which = torch.tensor(self.owners).repeat_interleave(count // len(self.owners)).to(self.ids.device)
        out = super().rows(len(self.cache.layers[0].keys))
        for layer in out.layers:
            layer.keys, layer.values = layer.keys[which], layer.values[which]
        if isinstance(out, PrunedCache):
            for segment in out.segments:
                segment.map_rows(lambda x: x[which])
        return out


def encode_together(model: nn.Module, ids: list[int], owners: tuple[int, ...], **inputs: Any) -> JoinedPrefix:
    """Prefill the images of `inputs`, one per row, after the same text.

    Args:
        ids: up to and including the placeholder, the same for every image.
        inputs: `images` and `image_sizes` of R images as `encode_prefix` takes those of one.
    """
    rows = torch.tensor([ids] * len(inputs["image_sizes"]), device=model.device)
    cache, seen = prefill(model, rows, **inputs)
    return JoinedPrefix(cache, seen, current_choice(model), owners, model=weakref.ref(model))


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
        self._kinds: dict[str, tuple | None] = {}

    def note(self, requests: list[Instance]) -> None:
        """Look at the images of all requests once, so that they can be grouped."""
        for request in tqdm(requests, desc="images", unit="q", disable=self.lm.rank != 0):
            self.key(request)

    def key(self, request: Instance) -> str:
        """Equal for requests whose prompts are equal up to and including the last image; "" without an image."""
        if id(request) not in self._keys:
            made = self.lm.request(request)
            known_by = [getattr(image, "path", image) for image in made.images]  # videos are files, decoded later
            key = fingerprint(*known_by, made.before) if made.before and made.behind else ""
            alone = not key or len(made.images) != 1 or made.sizes == [None]
            self._keys[id(request)], self._kinds[key] = key, None if alone else (*made.before, *made.sizes[0])
        return self._keys[id(request)]

    def join(self, batches: list[list[str]], by_key: dict[str, Instance], most: int) -> list[list[str]]:
        """Batches of up to `most` questions from batches that are each about one image.

        Joined are neighbours with equal generation settings, equal text before the image and images of one size, so
        that all prefixes have the same length.  With static shapes, which hold one prefix, nothing is joined.

        Args:
            batches: names of questions; by_key: their requests.
        """
        if getattr(self.lm.model, "static", None) is not None:
            return batches
        out: list[list[str]] = []
        kinds: list[tuple | None] = []
        for batch in batches:
            request = by_key[batch[0]]
            kind = self._kinds[self.key(request)]
            kind = kind and (*kind, repr(sorted(request.args[1].items())))
            if out and kind is not None and kinds[-1] == kind and len(out[-1]) + len(batch) <= most:
                out[-1] = out[-1] + batch
            else:
                out.append(batch)
                kinds.append(kind)
        return out

    def answer(self, requests: list[Instance], settings: dict[str, Any]) -> list[str]:
        """Answers of requests of one key, or of keys that `join` put together; they share their generation settings."""
        lm = self.lm
        keys, behind = [self.key(request) for request in requests], []
        first: dict[str, Request] = {}  # of every image, so that each is decoded once
        for key, request in zip(keys, requests):
            made = lm.request(request, first[key].images if key in first else None)
            first.setdefault(key, made)
            behind.append(made.behind)
        prefix = self._single(keys[0], first[keys[0]]) if len(first) == 1 else self._several(keys, first)
        new = continue_prefix(lm.model, prefix, behind, pad_token_id=lm.pad_id, **settings)
        return lm.tokenizer.batch_decode(new, skip_special_tokens=True)

    def _several(self, keys: list[str], first: dict[str, Request]) -> JoinedPrefix:
        """One cache for the images of a joined batch; it is not held, all their questions are in the batch."""
        order, requests = list(first), list(first.values())
        owners = tuple(order.index(key) for key in keys)
        return encode_together(self.lm.model, requests[0].before, owners, **pictures(requests))

    def _single(self, key: str, request: Request) -> Prefix:
        """The prefix of one image, from the store if it is there."""
        prefix = self.prefixes.get(key)
        if prefix is None:
            ids = torch.tensor([request.before], device=self.lm.device)
            prefix = self.prefixes.put(key, encode_prefix(self.lm.model, ids, **pictures([request])))
        return prefix
