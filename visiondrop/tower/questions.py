"""The question for encoder stages that read it: given by the caller, or read from the ids after the template's picture."""

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import VisionDropError
from .clip_text import ClipText, Question

# Where the user's turn begins and ends, in the templates of LLaVA's checkpoints and their relatives.
USER_BEGINS = re.compile(r"USER:|###\s*Human:|\[INST\]|<\|im_start\|>user|<\|start_header_id\|>user<\|end_header_id\|>")
TURN_ENDS = re.compile(r"\s*(?:ASSISTANT:|###\s*Assistant|\[/INST\]|<\|im_end\|>|<\|eot_id\|>|<\|im_start\|>|</s>)")


class Questions(threading.local):
    """What the calling thread's pictures are asked.

    Attributes:
        given: by `handle.questions`, or None.
    """

    def __init__(self) -> None:
        self.given: list[Question] | None = None

    @contextmanager
    def hold(self, texts: Sequence[Question]) -> Iterator[None]:
        """These are the questions inside the block: one for each picture of a batch, or one for all."""
        if isinstance(texts, str) or not len(texts) or not all(len(text) for text in texts):
            raise VisionDropError(
                f"questions({texts!r}): give a list with one question for each picture of the batch, or with one for all, e.g. "
                "handle.questions(['What color is the bus?'])"
            )
        outer, self.given = self.given, list(texts)
        try:
            yield
        finally:
            self.given = outer

    def of(self, images: Sequence[int], total: int, read: Sequence[str | None], method: str) -> list[Question]:
        """The questions of pictures by their ordinals.

        Args:
            total: pictures of the batch; beams repeat each, side by side.
            read: what was read from the prompts, or None where nothing was.

        Raises:
            VisionDropError: none is known, or their number fits no batch of so many pictures.
        """
        if self.given is not None:
            if total % len(self.given):
                raise VisionDropError(
                    f"{len(self.given)} questions for {total} pictures: give one for each picture of the batch, or one for all"
                )
            repeat = total // len(self.given)
            return [self.given[i // repeat] for i in images]
        missing = [i for i, text in zip(images, read) if not text]
        if missing:
            raise VisionDropError(
                f"method {method!r} reads the question before the language model does, and that of picture {missing[0]} is "
                "not known: with handle.questions(['What color is the bus?']): ..., or apply(..., tokenizer=tokenizer) to have "
                "it read from the prompt behind the picture"
            )
        return list(read)


class Reader:
    """The question half of one pruner: where CLIP's text half comes from, and the prompts' tokenizer.

    Attributes:
        default: folder or hub id of the CLIP that the tower came from, or None.
        tokenizer: of the language model, so that questions can be read from prompts, or None.
    """

    def __init__(self, default: str | None = None, tokenizer: Any = None):
        self.default, self.tokenizer = default, tokenizer
        self.questions = Questions()
        self._halves: dict[Any, ClipText] = {}

    def half(self, clip: Any, device: torch.device) -> ClipText:
        """CLIP's text half, loaded once."""
        key = clip if clip is None or isinstance(clip, str) else id(clip)
        if key not in self._halves:
            self._halves[key] = ClipText.load(clip, self.default, device)
        return self._halves[key]

    def read(self, rows: Iterable[Sequence[int]], visual: set[int], blocks: Sequence[int]) -> list[str | None]:
        """Per picture, the text of its prompt after it, up to the end of the user's turn; None without a tokenizer.

        Where no text stands there, what the user says before the picture.

        Args:
            rows: ids of each prompt; visual: ids that stand for pictures; blocks: how many of them each picture has.
        """
        if self.tokenizer is None:
            return [None] * len(blocks)
        out: list[str | None] = []
        for row in rows:
            first, left = len(out), 0
            texts: list[list[int]] = [[]]  # before the first picture, then after each
            for token in row:
                if token not in visual:
                    texts[-1].append(token)
                    continue
                if left == 0 and len(out) < len(blocks):
                    left = blocks[len(out)]
                    out.append(None)
                    texts.append([])
                left -= 1
            if len(texts) > 1:
                self._fill(out, first, [self.tokenizer.decode([t for t in ids if t >= 0]) for ids in texts])
        return out + [None] * (len(blocks) - len(out))

    def _fill(self, out: list[str | None], first: int, texts: list[str]) -> None:
        """The questions of one prompt's pictures, from place `first` on; pictures side by side share the next text."""
        question = USER_BEGINS.split(texts[0])[-1].strip() or None
        for i in range(len(texts) - 1, 0, -1):
            question = TURN_ENDS.split(texts[i])[0].strip() or question
            out[first + i - 1] = question


class Asked:
    """The question as an encoder stage meets it.

    Attributes:
        text: [U, J] float32, see `ClipText.embed`.
    """

    def __init__(self, half: ClipText, text: Tensor, norm: torch.nn.Module):
        self.text, self._half, self._norm = text, half, norm

    def joint(self, patches: Tensor) -> Tensor:
        """Patches of the tower [U, n, D] in CLIP's joint space: [U, n, J] float32."""
        return self._half.joint(self._norm(patches))
