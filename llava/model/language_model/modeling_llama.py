"""LLaMA's decoder stack with the pruning stages: transformers' layers, our loop.

Modification against `transformers.LlamaModel`: when a method is applied and there is something to prune (or a pruned
cache to continue), the loop below runs instead of the stock one; `run.enter(i, hidden)` is where stages act.
Otherwise the stock forward runs untouched.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from visiondrop.compat import CACHE
from visiondrop.stack.layout import Layout


class PrunedLlamaModel(LlamaModel):
    """A decoder stack whose layers may hold different numbers of tokens.

    Attributes:
        pruner: the method applied to the model, or None.
    """

    pruner = None

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        cache=None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        layout: Layout | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """As `LlamaModel.forward`, in unpruned lengths.

        Args:
            layout: the images that come with this pass; None = none.

        Returns:
            `last_hidden_state` [B, L', D] of the surviving positions, padded on the left.
        """
        cache = past_key_values if cache is None else cache
        if self.pruner is not None:
            if inputs_embeds is None:
                inputs_embeds, input_ids = self.embed_tokens(input_ids), None
            use_cache = self.config.use_cache if use_cache is None else use_cache
            if use_cache and cache is None:
                cache = DynamicCache(config=self.config)
            run = self.pruner.start(self, inputs_embeds, attention_mask, position_ids, cache, layout)
            if run is not None:
                return self.staged(run, inputs_embeds, cache=cache, use_cache=use_cache, **kwargs)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE: cache},
            **kwargs,
        )

    @merge_with_config_defaults
    @capture_outputs
    def staged(self, run, hidden: Tensor, cache=None, use_cache: bool | None = None, **kwargs):
        """The loop with stages; `run` decides what each layer sees."""
        for i, layer in enumerate(self.layers):
            hidden, arguments = run.enter(i, hidden)
            hidden = layer(hidden, use_cache=use_cache, **{CACHE: cache}, **arguments, **kwargs)
        run.close()
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), **{CACHE: cache})
