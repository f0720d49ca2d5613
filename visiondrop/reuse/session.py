"""One image, many questions: the pruned cache of (system prompt + image) is computed once and continued by each.

Visual-only scores never see what stands after the image, so the kept tokens and their keys and values are the same
for every question; continuing them is exact.  Text-guided methods choose by the question and are refused.

    session = visiondrop.encode(model, image, tokenizer=tokenizer, image_processor=processor, tokens=64)
    answers = session.ask(["What is on the table?", "How many cups are there?"], max_new_tokens=16)

Below text and pictures there is a layer of ids and pixels, for evaluation and for other templates: `reuse.prefix`.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from ..api import apply
from ..compat import Model
from ..errors import UnsupportedError, VisionDropError
from ..families import adapter_for, loader
from ..families.guards import PLACEHOLDER, PLACEHOLDER_ID, refuse_placeholder_ids, refuse_spelled_placeholder
from ..families.loading import put_before
from ..pruner import current_choice, current_pruner
from .prefix import Prefix, continue_prefix, encode_prefix, next_logits, refuse_text_guided
from .recent import fingerprint
from .store import PrefixStore
from .tower import remembering


class Session:
    """An encoded image; made by `encode`.

    Attributes:
        prefix: the cache of system prompt and image.
    """

    def __init__(self, model: Model, prefix: Prefix, tokenizer, behind: str):
        self.model, self.prefix, self._tokenizer, self._behind = model, prefix, tokenizer, behind

    @property
    def bytes(self) -> int:
        """Bytes of keys and values the session holds."""
        return self.prefix.bytes

    def ask(
        self,
        questions: Sequence[str | Sequence[int]] | str,
        *,
        max_new_tokens: int = 128,
        batch_size: int | None = None,
        **settings: Any,
    ) -> list[str] | str | list[list[int]]:
        """Answers in the order of the questions (a single string is answered by one).

        Args:
            questions: of any lengths; they are run together, `batch_size` at a time (default: all at once).  Without
                a tokenizer, questions and answers are ids: everything after the image, and what is generated.
            settings: anything of `generate`; greedy unless told otherwise.
        """
        single = isinstance(questions, str)
        rows = [self._ids(question) for question in ([questions] if isinstance(questions, str) else questions)]
        settings = {"do_sample": False, "max_new_tokens": max_new_tokens, **settings}
        size, answers = max(1, len(rows)) if batch_size is None else batch_size, []
        if size < 1:
            raise VisionDropError(f"batch_size={batch_size}: give a positive number, or leave it out for one batch")
        for start in range(0, len(rows), size):
            new = continue_prefix(self.model, self.prefix, rows[start : start + size], **settings)
            if self._tokenizer is None:
                answers += new.tolist()
            else:
                answers += [text.strip() for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]
        return answers[0] if single else answers

    def logits(self, questions: Sequence[str | Sequence[int]]) -> Tensor:
        """[B, V] logits of the token after each question."""
        return next_logits(self.model, self.prefix, [self._ids(question) for question in questions])

    def _ids(self, question: str | Sequence[int]) -> list[int]:
        if not isinstance(question, str):
            refuse_placeholder_ids(list(question), self._placeholders())
            return list(question)
        refuse_spelled_placeholder(question)
        if self._tokenizer is None:
            raise VisionDropError(
                f"question {question!r}: text needs a tokenizer; encode with tokenizer=, or ask with ids"
            )
        ids = tokenize(self._tokenizer, self._behind.replace("{question}", question), first=False)
        refuse_placeholder_ids(ids, self._placeholders())
        return ids

    def _placeholders(self) -> tuple[int, ...]:
        """Ids that stand for a picture or a video, in our classes or in those of transformers."""
        config = getattr(self.model, "config", None)
        hub = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
        return (PLACEHOLDER_ID, *(token for token in hub if token is not None))


def tokenize(tokenizer: Any, text: str, first: bool) -> list[int]:
    """Ids of one piece of a prompt; only the first keeps the start token (as LLaVA tokenises around images)."""
    ids = tokenizer(text).input_ids
    return ids if first or not ids or ids[0] != tokenizer.bos_token_id else ids[1:]


def encode(
    model: Model,
    image: Any,
    *,
    tokenizer: Any = None,
    image_processor: Any = None,
    processor: Any = None,
    prompt: str | None = None,
    ids: Sequence[int] | None = None,
    method: str | None = None,
    tokens: int | None = None,
    store: PrefixStore | None = None,
    **options: Any,
) -> Session:
    """Encode one image for many questions.

    Args:
        model: our `llava` classes, or a model of transformers (docs/models.md).
        image: a PIL image, or preprocessed pixels [3, H, W] (or [1, 3, H, W]); Video-LLaVA: also a video's, [3,
            frames, H, W] (`llava.video.load_video`).
        tokenizer, image_processor: the model's; the second is not needed for pixels.
        processor: the whole processor of a model of transformers, in place of both, with its own chat template.
        prompt: text with one `<image>` and, after it, `{question}`; by default the conversation template of the
            checkpoint (`llava.prompts`), the same that `ask` and the evaluation use.
        ids: in place of the prompt's text before the image, its ids; then no tokenizer is needed, see `Session.ask`.
        method, tokens, options: applied first, as `visiondrop.apply` does; left out, what is applied stays.
        store: holds the result, and gives it back for the same image, prompt and method; another prompt, method or budget
            finds the prepared picture and the tower's work on it.

    Raises:
        UnsupportedError: the method is text-guided.
    """
    _apply_once(model, method, tokens, options)
    if processor is not None:
        given = {"tokenizer": tokenizer, "image_processor": image_processor, "prompt": prompt, "ids": ids}
        _refuse_beside_processor([name for name, value in given.items() if value is not None])

        def made() -> tuple[dict[str, Any], str]:
            return put_before(processor, image, model.device, model.dtype)

        if store is None:
            arguments, behind = made()
        else:
            arguments, behind = store.prepared(image, [processor], (model.device, model.dtype), made)
        return Session(model, _prefix_of(model, arguments, store), processor.tokenizer, behind)
    if prompt is None:
        prompt = loader().prompt_of(model.config, "{question}")
    before, placeholder, behind = prompt.partition(PLACEHOLDER)
    if not placeholder or "{question}" not in behind or PLACEHOLDER in behind:
        raise VisionDropError(f"prompt {prompt!r}: it must hold one {PLACEHOLDER} and, behind it, {{question}}")
    if ids is None and tokenizer is None:
        raise VisionDropError("encode needs tokenizer= for the prompt's text, or ids= of what stands before the image")
    ids = tokenize(tokenizer, before, first=True) if ids is None else list(ids)

    def make() -> dict[str, Any]:
        return adapter_for(model).inputs(ids, image, image_processor)

    if store is None:
        arguments = make()
    else:  # the configuration says how pictures are laid out
        settings = (model.device, model.dtype, ids, model.config)
        arguments = store.prepared(image, [model, image_processor], settings, make)
    return Session(model, _prefix_of(model, arguments, store), tokenizer, behind)


def _refuse_beside_processor(names: list[str]) -> None:
    if names:
        raise VisionDropError(f"processor= and {', '.join(names)}: the processor brings them, leave them out")


def _prefix_of(model: Model, arguments: dict[str, Any], store: PrefixStore | None) -> Prefix:
    """The prefix of these arguments, from the store where it has it."""
    pruner = current_pruner(model)
    key = None if store is None else fingerprint(*arguments.values(), None if pruner is None else pruner.settings)
    prefix = store.get(key) if store is not None else None
    if prefix is None or prefix.owner is not current_choice(model) or prefix.model() is not model:
        with nullcontext() if store is None else remembering(store.towers):
            prefix = encode_prefix(model, **arguments)
        if store is not None:
            store.put(key, prefix)
    return prefix


def _apply_once(model: Model, method: str | None, tokens: int | None, options: dict[str, Any]) -> None:
    """Apply a method unless it is applied already: earlier sessions of the same settings stay good."""
    pruner = current_pruner(model)
    if method is None and tokens is None:
        return refuse_text_guided(pruner)
    wanted = (method or "visiondrop", tokens, options)
    if pruner is not None and (pruner.method, pruner.tokens, pruner.options) == wanted:
        return refuse_text_guided(pruner)
    handle = apply(model, wanted[0], tokens, **options)
    try:
        refuse_text_guided(current_pruner(model))
    except UnsupportedError:
        handle.remove()
        raise
