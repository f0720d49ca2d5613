"""What a stage has projected for its scores is not projected again by the layer that follows.

A stage that scores with the projections of the very layer it stands before (VisionDrop) has computed, on exactly the
states that layer will get, the keys of the text before the image and the queries and keys of every visual token.
Merged tokens are new, and so is the text behind the image for the score; all other rows are handed over, before
rotation, because positions may change.
"""

import torch
from torch import Tensor, nn

from ..ops.selection import gather_rows


class KnownProjections:
    """Unrotated queries and keys of rows that one layer is about to see.

    Attributes:
        query: [B, K, H * E] of the dominant visual tokens.
        key: [B, P + K, Hkv * E] of the P text tokens before the image and the dominant visual tokens.
        lengths: valid tokens per row; rows are padded on the left to `width`.
    """

    def __init__(self, query: Tensor, key: Tensor, lengths: list[int], width: int):
        self.query, self.key = query, key
        self.known, self.before = key.shape[1], key.shape[1] - query.shape[1]
        self._hooks: list = []
        self._place = self._text = None
        if any(n < width for n in lengths):
            pad = torch.tensor([width - n for n in lengths], device=key.device)[:, None]
            column = torch.arange(width, device=key.device)
            coordinate = (column - pad).clamp(min=0)
            self._place = torch.where(coordinate < self.known, coordinate, column)
            self._text = pad + column[: self.before]

    def hand_to(self, attention: nn.Module) -> None:
        """Let the next call of `attention`'s q_proj and k_proj compute only what is missing; the call undoes it."""
        for module, missing, whole in (
            (attention.q_proj, self._missing_query, self._whole_query),
            (attention.k_proj, self._missing_key, self._whole_key),
        ):
            self._once(module, missing, whole)

    def withdraw(self) -> None:
        """Take back what was not called (an error came between)."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _once(self, module: nn.Module, missing, whole) -> None:
        def before(_, args):
            return (missing(args[0]),)

        def after(_, args, output):
            for hook in hooks:
                hook.remove()
            return whole(output)

        hooks = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        self._hooks += hooks

    def _missing_query(self, x: Tensor) -> Tensor:
        if self._text is None:
            text = x[:, : self.before]
        else:
            text = gather_rows(x, self._text)
        return torch.cat([text, x[:, self.known :]], dim=1)

    def _missing_key(self, x: Tensor) -> Tensor:
        return x[:, self.known :]

    def _whole_query(self, fresh: Tensor) -> Tensor:
        return self._order(torch.cat([fresh[:, : self.before], self.query.to(fresh), fresh[:, self.before :]], dim=1))

    def _whole_key(self, fresh: Tensor) -> Tensor:
        return self._order(torch.cat([self.key.to(fresh), fresh], dim=1))

    def _order(self, rows: Tensor) -> Tensor:
        """Move known rows behind each row's padding: [B, width, H * E]."""
        if self._place is None:
            return rows
        return gather_rows(rows, self._place)
