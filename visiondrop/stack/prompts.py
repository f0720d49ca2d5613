"""Where the prompts of conversations end: for text-guided scores, whose query is a prompt's last token.

Uncached decoding and a conversation run from scratch show the stack more text than the first prompt.  For the same
tokens to be kept as with a cache, an end stays where it was: what a prompt was is found again by its ids and images.
(With a cache no pass looks at an earlier prompt: the images it brings come after it.)
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

MOST = 64  # prompts remembered per thread; the least recently continued leave first
SAMPLE = 4096  # numbers of an image that are compared

Ends = list[list[int]]


class Prompts(threading.local):
    """The prompts that one thread has prefilled, and those that a running `generate` holds.

    Attributes:
        frozen: ends that all passes belong to, however long their text has become, or None.
    """

    def __init__(self) -> None:
        self.frozen: Ends | None = None
        self._known: list[tuple[list[list[int]], Ends, list[Tensor]]] = []
        self._next = self._known

    def forget(self) -> None:
        """The next prompt is a new one, whatever it starts with."""
        self._known = self._next = []

    def ends(self, rows: list[list[int]], pixels: Sequence[Tensor | None] | Tensor | None) -> Ends:
        """Per row, ascending coordinates after the last token of each prompt of its conversation.

        They are remembered when the pass is `done`: one that an error ended has never been.

        Args:
            rows: valid ids of each row in unpruned length; pixels: the images, [N, ...] or N tensors, or None;
                compared by a sample of each.
        """
        ends, known = [[len(row)] for row in rows], self._known
        given = [p for p in (() if pixels is None else pixels) if p is not None]
        sample = [p.detach().flatten()[:: max(1, p.numel() // SAMPLE)].float().cpu() for p in given]
        found = max((k for k in known if _continues(rows, sample, k)), key=lambda k: len(k[0][0]), default=None)
        if found is not None:
            ends = [sorted({*old, *new}) for old, new in zip(found[1], ends)]
            self._next = known = [*(k for k in known if k is not found), found]
            if sample and len(sample) == len(found[2]):
                return ends  # nothing new to find again: an image asks for the first end after it
        if found is not None and not sample:  # the images are in the cache
            sample = found[2]
        self._next = [*known, (rows, ends, sample)][-MOST:]
        return ends

    def done(self) -> None:
        """The pass has come to its end: remember its prompts (those of a running `generate` at its own end)."""
        if self.frozen is None:
            self._known = self._next

    @contextmanager
    def hold(self, ends: Ends) -> Iterator[None]:
        """All passes inside the block belong to prompts with these ends."""
        outer, self.frozen = self.frozen, ends
        try:
            yield
        finally:
            self.frozen = outer
        self.done()


def _continues(rows: list[list[int]], sample: list[Tensor], known: tuple) -> bool:
    """Whether ids and images begin with those of a known prompt (a later turn may bring more of both)."""
    old_rows, _, old_sample = known
    same = len(rows) == len(old_rows) and all(new[: len(old)] == old for new, old in zip(rows, old_rows))
    rest = iter(sample)
    return same and (not sample or all(any(torch.equal(old, new) for new in rest) for old in old_sample))
