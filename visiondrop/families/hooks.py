"""What every adapter of transformers' classes shares: the hooks that drive a pruned pass on one model object.

What is hooked, and undone by `handle.remove()`:
- the calls that encode pictures (`feature_calls`, wrapped on the instance): what a family makes of the encoder stage.
- `model.model` (pre-hook): note the ids, so that images can be found.
- the decoder stack (hooks): start the run.
- its layers: call `run.enter` before each. The first has a pre-hook, so that what the library records of its input is what
  it got; the others are wrapped on the instance, because a module with hooks costs torch several microseconds a call.
- `model.generate` (wrapped on the instance) and `model` (pre-hook): refuse what would be computed wrongly.
"""

import functools
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..compat import HOOKS_RUN_AGAIN, Model, cache_in, will_recompute, with_cache
from ..errors import UnsupportedError, VisionDropError
from ..pruner import Pruner, Unpicklable
from ..stack.cache import PrunedCache
from ..stack.layout import Image, Layout, number_images
from ..stack.passes import ContinueRun, PrefillRun
from .guards import refuse_placeholders_without_pictures

ANY_4D = torch.zeros(1, 1, 1, 1)  # makes the stack skip its own mask; every layer is handed another


class Pass(threading.local):
    """What the hooks of one pass hand to each other; every thread has its own.

    Attributes:
        run: the run that drives the stack, or None; ids: [B, T] where the pass brings images, else None.
        places: by placeholder, [B, T] which image of its kind a position belongs to, -1 elsewhere; found once per pass.
        prompts: ids of every row, for encoder stages that read the question, or None.
        pixels: the images one by one; images, videos: what the layout must know about them, as they were encoded.
        encoded: the same for the families of `families.table`, by kind; encoding: a call that encodes is under way.
        apart: a call that has left torch.compile is under way.
    """

    def __init__(self) -> None:
        self.run: PrefillRun | ContinueRun | None = None
        self.ids: Tensor | None = None
        self.places: dict[int, Tensor] = {}
        self.prompts: list[list[int]] | None = None
        self.apart = False
        self.forget()

    def forget(self) -> None:
        """The next batch is a new one; what its images are is found out when they are encoded."""
        self.pixels: list[Tensor] = []
        self.images: list[Image] = []
        self.videos: list[Image] = []
        self.encoded: dict[str, Any] = {}
        self.encoding = False


class HubAdapter(Unpicklable):
    """Attaches a pruner to one model of transformers.

    Attributes:
        pixel_names: names under which pixels are given to the model.
    """

    pixel_names: tuple[str, ...] = ("pixel_values",)

    def __init__(self, model: Model):
        self.model, self.inner = model, model.model
        self.stack = self._stack()
        self.pruner: Pruner = None  # until `attach`
        self.now = Pass()

    def _stack(self) -> Model:
        return self.inner.language_model

    def feature_calls(self) -> dict[str, Callable]:
        """By name, the calls of `model.model` that encode pictures, wrapped."""
        raise NotImplementedError(f"{type(self).__name__} wraps no call")

    def attach(self, pruner: Pruner) -> Callable[[], None]:
        """Install the hooks; returns the undo."""
        self.pruner = pruner
        hooks = [
            self.model.register_forward_pre_hook(self._refuse_labels, with_kwargs=True),
            self.inner.register_forward_pre_hook(self._note_inputs, with_kwargs=True),
            self.inner.register_forward_hook(self._forget_ids, always_call=True),
            self.stack.register_forward_pre_hook(self._start, with_kwargs=True),
            self.stack.register_forward_hook(self._close),
        ]
        first, *others = self.stack.layers
        hooks.append(first.register_forward_pre_hook(self._enter_first, with_kwargs=True))
        entered = [functools.partial(self._entered, i, layer.forward) for i, layer in enumerate(others, 1)]
        forwards: list[tuple[Model, Callable]] = list(zip(others, entered))
        wrapped = self.feature_calls()
        for name, call in wrapped.items():
            setattr(self.inner, name, call)
        self.model.generate = self._wrap_generate(self.model.generate)
        forwards += [(m, self._uncompiled(m.forward)) for m in (self.model, self.inner, self.stack)]
        before = [(module, module.__dict__.get("forward")) for module, _ in forwards]  # accelerate puts its own there
        for module, forward in forwards:
            module.forward = forward

        def undo() -> None:
            for module, forward in before:
                del module.forward
                if forward is not None:
                    module.forward = forward
            for hook in hooks:
                hook.remove()
            del self.model.generate
            for name in wrapped:
                delattr(self.inner, name)

        return undo

    def _refuse_labels(self, module, args, kwargs) -> None:
        pruned = isinstance(cache_in(kwargs), PrunedCache) or self._given(kwargs)
        if kwargs.get("labels") is not None and self.pruner.plan.active and pruned:
            raise UnsupportedError(
                "labels cannot be matched to a pruned sequence, whose logits are those of the surviving positions; "
                "remove the method (handle.remove()) to compute a loss"
            )

    def _note_inputs(self, module, args, kwargs) -> None:
        """The ids of this pass, where it brings images."""
        features = (kwargs.get("mm_encoder_outputs") or {}).values()
        brings_images = bool(self._given(kwargs)) or any(f is not None for f in features)
        ids = kwargs.get("input_ids", args[0] if args else None)
        if brings_images and ids is None and self.pruner.plan.active:
            raise VisionDropError(
                "images with inputs_embeds: pruning finds images by their placeholders; give input_ids"
            )
        if not brings_images and ids is not None and ids.shape[1] > 1 and self.pruner.plan.active:
            for token, _ in self._kinds():
                refuse_placeholders_without_pictures(int((ids == token).sum()), token)
        self.now.ids, self.now.places = ids if brings_images else None, {}
        self._note_prompts(ids if brings_images else None)
        if kwargs.get("mm_encoder_outputs"):  # encoded before this pass
            for token, images in self._kinds():
                self._check_places(token, images)

    def _note_prompts(self, ids: Tensor | None) -> None:
        """Remember the prompts for the pictures' encoder stage, where it reads questions out of them."""
        wanted = ids is not None and self.pruner.plan.question is not None and self.pruner.reader.tokenizer is not None
        self.now.prompts = ids.tolist() if wanted else None

    def _forget_ids(self, module, args, output) -> None:
        """After a pass, also one that an error ended: its ids say nothing about the next."""
        self.now.ids, self.now.places = None, {}

    def _kinds(self) -> list[tuple[int, list[Image]]]:
        """Placeholder and images of every kind, in the order in which the model encodes them."""
        return [(self.model.config.image_token_id, self.now.images)]

    def _check_places(self, token: int, images: list[Image]) -> None:
        """Refuse placeholders that do not fit the images, before the library compares numbers of elements."""
        if self.now.ids is not None and self.pruner.plan.active:
            self._places(token, images)

    def _places(self, token: int, images: list[Image]) -> Tensor:
        """[B, T] which of `images` a position of this pass belongs to, -1 elsewhere."""
        if token not in self.now.places:
            visual = (self.now.ids == token).cpu()
            wanted = images or (self.pruner.plan.active and bool(visual.any()))
            self.now.places[token] = number_images(visual, images) if wanted else torch.full(visual.shape, -1)
        return self.now.places[token]

    def _layout(self, mask: Tensor | None, cache) -> Layout | None:
        """The images of this pass, or None where it brings none (a decoding step looks at no data)."""
        if self.now.ids is None:
            return None
        new = self.now.ids.shape[1]
        padded = mask is not None and mask.ndim == 2
        if padded:
            before: list[int] | int = mask[:, :-new].sum(1).tolist()
        else:
            before = 0 if cache is None else cache.get_seq_length()
        ordinals, images = self._number()
        layout = Layout.build(ordinals, mask[:, -new:] if padded else None, images)
        self.pruner.place_prompt_ends(layout, self.now.ids, self.now.pixels, before)
        return layout

    def _number(self) -> tuple[Tensor, list[Image]]:
        """([B, T] which image a position belongs to, -1 for text; the images of all kinds)."""
        ordinals, all_images = torch.full(self.now.ids.shape, -1), list[Image]()
        for token, images in self._kinds():
            found = self._places(token, images)
            ordinals = torch.where(found >= 0, found + len(all_images), ordinals)
            all_images += images
        return ordinals, all_images

    def _given(self, kwargs: dict) -> list[Tensor]:
        """The images among these arguments, one by one."""
        return [image for name in self.pixel_names if kwargs.get(name) is not None for image in kwargs[name]]

    def _start(self, module, args, kwargs):
        """Before the stack: make the run, and keep the stack from building masks of unpruned size."""
        self._refuse_recomputed_hooks(module)
        hidden, cache = kwargs["inputs_embeds"], cache_in(kwargs)
        self.now.run = None
        use_cache = kwargs.get("use_cache")
        if cache is None and (module.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=module.config)
        mask = kwargs.get("attention_mask")
        layout = self._layout(mask, cache)
        features, changed = self._extras(kwargs)
        self.now.run = self.pruner.start(module, hidden, mask, kwargs.get("position_ids"), cache, layout, features)
        if self.now.run is None:
            return None
        return args, with_cache({**changed, "attention_mask": ANY_4D}, cache)

    def _extras(self, kwargs: dict) -> tuple[Tensor | None, dict]:
        """Features that the stack would add to the states after its first layers, and its arguments without them."""
        return None, kwargs

    def _refuse_recomputed_hooks(self, stack) -> None:
        """Gradient checkpointing of older transformers would run our hooks a second time, and prune what is pruned."""
        if HOOKS_RUN_AGAIN and self.pruner.plan.active and will_recompute(stack):
            raise UnsupportedError(
                f"gradient checkpointing through a pruned {type(self.model).__name__} needs a newer transformers, whose "
                "recomputation leaves hooks alone: pip install 'transformers>=5.24,<5.25', or load the checkpoint with "
                "llava.model.builder, or switch it off (gradient_checkpointing_disable)"
            )

    def _enter_first(self, module, args, kwargs):
        if self.now.run is None:
            return None
        hidden, arguments = self.now.run.enter(0, args[0])
        return (hidden, *args[1:]), {**kwargs, **arguments}

    def _uncompiled(self, stock: Callable) -> Callable:
        """`stock`, run as it is within torch.compile too: compiled code would leave our hooks out and prune nothing.

        Leaving the compiler costs as much as several layers' hooks: what is called by one that has left it need not.
        """
        now, apart = self.now, torch.compiler.disable(stock)

        @functools.wraps(stock)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if now.apart:
                return stock(*args, **kwargs)
            now.apart = True
            try:
                return apart(*args, **kwargs)
            finally:
                now.apart = False

        return forward

    def _entered(self, i: int, stock: Callable, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`stock`, the forward of layer `i`, on what the run of the calling thread lets it see."""
        run = self.now.run
        if run is None:
            return stock(hidden, *args, **kwargs)
        hidden, arguments = run.enter(i, hidden)
        return stock(hidden, *args, **{**kwargs, **arguments})

    def _close(self, module, args, output) -> None:
        if self.now.run is not None:
            self.now.run.close()
            self.now.run = self.now.ids = None

    def _wrap_generate(self, stock):
        @functools.wraps(stock)
        def generate(*args, **kwargs):
            config = kwargs.get("generation_config") or self.model.generation_config
            size = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
            if size is not None:
                raise UnsupportedError(
                    f"prefill_chunk_size={size}: an image must be seen whole to be pruned; leave prefill_chunk_size out"
                )
            ids = kwargs.get("input_ids", args[0] if args else None)
            self._note_prompts(ids)  # the library may encode pictures before the first pass
            with self._freeze(ids, kwargs):
                return stock(*args, **kwargs)

        return generate

    def _freeze(self, ids: Tensor | None, kwargs: dict):
        """Hold the prompts' ends while `generate` runs, for text-guided scores."""
        if ids is None or not self.pruner.plan.text_guided:
            return nullcontext()
        mask = kwargs.get("attention_mask")
        rows = [
            row.tolist() if mask is None else row[m.bool()].tolist()
            for row, m in zip(ids, ids if mask is None else mask)
        ]
        return self.pruner.frozen_prompt(self.pruner.prompt_ends(rows, self._given(kwargs)))
