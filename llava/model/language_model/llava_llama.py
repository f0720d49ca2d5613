"""LLaVA on LLaMA: `LlavaLlamaForCausalLM`, with the parameter names of the original checkpoints."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llava.config import LlavaConfig
from llava.constants import IMAGE_TOKEN_INDEX
from visiondrop.compat import CACHE, cache_in, with_cache
from visiondrop.errors import UnsupportedError, VisionDropError
from visiondrop.stack.cache import PrunedCache
from visiondrop.stack.layout import Layout

from ..llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from .modeling_llama import PrunedLlamaModel


class LlavaLlamaModel(LlavaMetaModel, PrunedLlamaModel):
    """Decoder stack, vision tower and projector."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        if config.vision_config is not None:
            self.build_vision(config)
        self.post_init()


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):
    """Modifications against `LlamaForCausalLM`:

    - `forward` and `generate` take `images` for the -200 placeholders in `input_ids`;
    - `generate` returns new tokens only (as original LLaVA does);
    - prompts travel through `generate` in unpruned length, as tensors with a batch axis, so beams, sampling,
      several turns and assisted decoding need no special cases.
    """

    config_class = LlavaConfig
    config: LlavaConfig
    static = None  # generates with static shapes, where `visiondrop.apply(..., compile=True)` has put it
    _no_split_modules = ["LlamaDecoderLayer", "CLIPEncoderLayer"]  # kept whole when spread over several devices

    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        self.model = LlavaLlamaModel(config)
        self.post_init()

    @property
    def pruner(self):
        """The method applied to this model, or None."""
        return self.model.pruner

    def get_model(self) -> LlavaLlamaModel:
        """The decoder stack with the vision modules."""
        return self.model

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        cache=None,
        inputs_embeds: Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        images=None,
        image_sizes: list[tuple[int, int]] | None = None,
        logits_to_keep: int | Tensor = 0,
        layout=None,
        **kwargs: Any,
    ):
        """Logits of one pass.

        Args:
            input_ids: [B, T0] with -200 where an image stands.
            images: [N, 3, H, W] or N tensors [3, H, W], one per placeholder, row-major; LLaVA-NeXT: [N, crops, 3, H, W]
                or N tensors [crops, 3, H, W]; Video-LLaVA: a list of images [3, H, W] and videos [3, frames, H, W].
            image_sizes: (width, height) of the original images; needed by LLaVA-NeXT only.
            past_key_values, cache: two names of the same argument (transformers 5.24 prefers the second).
            labels: as in `LlamaForCausalLM`, only while nothing is pruned.
            layout: made by `generate`; leave it out.

        Returns:
            `CausalLMOutputWithPast`; logits [B, L', V] of the surviving positions, padded on the left, so that
            `logits[:, -1]` belongs to each row's last token.
        """
        cache = past_key_values if cache is None else cache
        if images is not None:
            past = 0 if cache is None else cache.get_seq_length()
            prompt = self.expand_prompt(input_ids, attention_mask, images, labels, past, image_sizes)
            layout = Layout.build(prompt.ordinals[:, past:], prompt.mask[:, past:], prompt.images)
            if self.pruner is not None:
                self.pruner.place_prompt_ends(layout, prompt.ids[:, past:], images)
            inputs_embeds, attention_mask, labels = prompt.embeds[:, past:], prompt.mask, prompt.labels
            if layout.mask is None and past == 0:
                attention_mask = None
            input_ids = position_ids = None
        elif input_ids is not None and input_ids.shape[1] > 1 and bool((input_ids == IMAGE_TOKEN_INDEX).any()):
            raise VisionDropError(
                f"0 images for {int((input_ids == IMAGE_TOKEN_INDEX).sum())} <image> placeholders (id "
                f"{IMAGE_TOKEN_INDEX}): give images=..., one per placeholder"
            )
        self._refuse_labels(labels, layout, cache)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            layout=layout,
            **{CACHE: cache},
            **kwargs,
        )

    def _refuse_labels(self, labels, layout, cache) -> None:
        pruned = (
            self.pruner is not None
            and layout is not None
            and any(self.pruner.plan_for(s.shape).active for s in layout.spans)
        )
        if labels is not None and (pruned or isinstance(cache, PrunedCache)):
            raise UnsupportedError(
                "labels cannot be matched to a pruned sequence, whose logits are those of the surviving positions; "
                "remove the method (handle.remove()) to compute a loss"
            )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, images=None, image_sizes=None, **kwargs: Any):
        """Generate; returns new tokens only.

        Args:
            inputs: [B, T0] ids with -200 where an image stands (also accepted as `input_ids`).
            images, image_sizes: as in `forward`.
            kwargs: anything of `GenerationMixin.generate`.

        Returns:
            [B or B * num_return_sequences, new] ids, or the library's output object with `sequences` cut to them.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None:
            return super().generate(**kwargs)
        if "prompt_embeds" in kwargs:
            return self._draft(input_ids, kwargs)
        self._refuse_chunks(kwargs)
        answers = None if self.static is None else self.static.generate(input_ids, images, image_sizes, **kwargs)
        if answers is not None:
            return answers
        cache = cache_in(kwargs)
        if cache is not None:
            kwargs = with_cache(kwargs, cache)
        past = cache.get_seq_length() if cache is not None else 0
        mask = kwargs.pop("attention_mask", None)
        prompt = self.expand_prompt(input_ids, mask, images, past=past, image_sizes=image_sizes)
        with self._freeze(prompt, images):
            output = super().generate(
                inputs=prompt.ids,
                attention_mask=prompt.mask.long(),
                prompt_embeds=prompt.embeds,
                prompt_ordinals=prompt.ordinals,
                prompt_images=prompt.images,
                **kwargs,
            )
        length = prompt.ids.shape[1]
        if isinstance(output, Tensor):
            return output[:, length:]
        output.sequences = output.sequences[:, length:]
        return output

    def _draft(self, input_ids: Tensor, kwargs: dict):
        """`generate` as the assistant of another model, which has laid the prompts out already.

        Its image embeddings serve where the widths agree; a narrower assistant drafts from the text alone.
        """
        if kwargs["prompt_embeds"].shape[-1] != self.config.hidden_size:
            kwargs = {k: v for k, v in kwargs.items() if not k.startswith("prompt_")}
        return super().generate(inputs=input_ids, **kwargs)

    def _freeze(self, prompt, images):
        """Hold the prompts' ends while `generate` runs, for text-guided scores."""
        if self.pruner is None or not self.pruner.plan.text_guided:
            return nullcontext()
        rows = [row[ok].tolist() for row, ok in zip(prompt.ids, prompt.mask)]
        return self.pruner.frozen_prompt(self.pruner.prompt_ends(rows, images))

    def _refuse_chunks(self, kwargs: dict) -> None:
        config = kwargs.get("generation_config") or self.generation_config
        size = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        if size is not None and self.pruner is not None:
            raise UnsupportedError(
                f"prefill_chunk_size={size}: an image must be seen whole to be pruned; leave prefill_chunk_size out"
            )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_ordinals: Tensor | None = None,
        prompt_images: list | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The library's inputs, with embeddings and a layout wherever a pass covers positions of the prompt."""
        inputs = super().prepare_inputs_for_generation(input_ids, next_sequence_length=next_sequence_length, **kwargs)
        if prompt_embeds is None:
            return inputs
        new, total = inputs["input_ids"].shape[1], input_ids.shape[1]
        first, prompt = total - new, prompt_embeds.shape[1]
        if first >= prompt or not bool((prompt_ordinals[:, first:] >= 0).any()):
            return inputs
        ids = inputs.pop("input_ids")
        tail = self.model.embed_tokens(ids[:, prompt - first :])
        ordinals = prompt_ordinals[:, first:]
        ordinals = torch.nn.functional.pad(ordinals, (0, tail.shape[1]), value=-1)
        mask = inputs.get("attention_mask")
        inputs["inputs_embeds"] = torch.cat([prompt_embeds[:, first:], tail], dim=1)
        inputs["layout"] = Layout.build(ordinals, None if mask is None else mask[:, first:], prompt_images)
        if self.pruner is not None:
            before = first if mask is None else mask[:, :first].sum(1).tolist()
            self.pruner.place_prompt_ends(inputs["layout"], None, None, before)
        return inputs
