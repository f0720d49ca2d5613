"""What a selector may ask about the images of one group at one stage.

A view hides where the images stand, how rows are padded, what is cached and which model it is; a method sees
tensors over I images of equal size and does arithmetic on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..compat import Model
from ..ops import scores
from .rows import Group, Rows


@dataclass
class LayerProbe:
    """What the scores of a stage are computed from: one decoder layer, its input, and what it has cached.

    Attributes:
        layer: whose norm and projections are used.
        states: [B, L, D] its input; rope: (cos, sin) of the tokens in hand, each [B or 1, L, E].
        keys: [B, H, P + L, E] its rotated keys of P earlier tokens and, where it `has_run`, of those in hand; or None.
        padding: [B, P] bool, True for padding among the earlier ones, or None.
        chunk: query rows handled at once; fused: see `ops.fused`; own_rotary: see `scores.finish`.
        last_norm: the norm after the stack's last layer, or None.
    """

    layer: Model
    states: Tensor
    rope: tuple[Tensor, Tensor]
    keys: Tensor | None = None
    has_run: bool = False
    padding: Tensor | None = None
    chunk: int = 256
    fused: bool = False
    own_rotary: bool = False
    last_norm: Model | None = None

    @property
    def attention(self) -> Model:
        """The layer's attention."""
        return self.layer.self_attn

    def past(self, rows: list[int]) -> tuple[Tensor, Tensor | None] | None:
        """Keys [I, H, P, E] of what `rows` held before this pass, and which are padding [I, P]; None without a past."""
        length = 0 if self.keys is None else self.keys.shape[2] - (self.states.shape[1] if self.has_run else 0)
        if not length:
            return None
        at = torch.tensor(rows, device=self.states.device)
        return self.keys[at, :, :length], None if self.padding is None else self.padding[at, :length]

    def earlier(self, rows: list[int]) -> Tensor:
        """[I] long: valid tokens that `rows` held before this pass."""
        past = self.past(rows)
        none = torch.zeros(len(rows), dtype=torch.long, device=self.states.device)
        if past is None:
            return none
        return none + past[0].shape[2] if past[1] is None else (~past[1]).sum(dim=1)


@dataclass(frozen=True)
class Meeting:
    """One token of the text and the n visual ones of an image in one decoder layer.

    Attributes:
        query: [I, H, 1, E] of the text's; key: [I, Hkv, n, E] of the visual ones, both rotated.
        own_value: [I, Hkv, 1, E] of the text's; value: [I, Hkv, n, E] of the visual ones.
        scale: what logits are multiplied with.
    """

    query: Tensor
    key: Tensor
    own_value: Tensor
    value: Tensor
    scale: float


class View:
    """I images of n visual tokens each, at the input of a decoder layer.

    Attributes:
        hidden: [I, n, D] residual-stream states of the visual tokens, in sequence order.
        keep: tokens the stage must return.
        memory: dict kept per group over all stages of one prefill.
        seeds: one whole number per image, a fingerprint of its pixels.
        shape: the images' `VisualShape`.
    """

    def __init__(self, rows: Rows, group: Group, keep: int, probe: LayerProbe | None):
        self._rows, self._group, self._probe = rows, group, probe
        self.keep, self.memory, self.shape, self.seeds = keep, group.memory, group.plan.shape, group.seeds
        self._cached: dict[str, Tensor | None] = {}

    @property
    def count(self) -> int:
        """n, visual tokens per image before the stage."""
        return self._group.count

    @property
    def hidden(self) -> Tensor:
        """[I, n, D] states of the visual tokens."""
        return self._take(self._rows.hidden, self._group.starts, self.count)

    def received(self, mask: str = "causal") -> Tensor:
        """[I, n] float32: attention each visual token receives from the visual queries (see `scores.received`)."""
        key, hidden_keys = self._image_keys()
        return scores.received(
            self._cached["query"],
            key,
            self._probe.attention.scaling,
            hidden_keys,
            mask,
            self._probe.chunk,
            self._probe.fused,
        )

    def keys(self) -> Tensor:
        """[I, n, E] rotated keys of the visual tokens, mean over heads."""
        return self._image_keys()[0][:, :, -self.count :].mean(dim=1)

    def key_lengths(self) -> tuple[Tensor, Tensor, Tensor]:
        """L1 norm of the rotated keys over all heads.

        Returns:
            ([I, n] float32 of the visual tokens; [I, S] of what stands after the image, as in `from_suffix`; [I, S] bool,
            True where that is text: nowhere, for an image that nothing follows).
        """
        wanted = self._behind()
        size, ends = wanted.shape[1], self._ends
        image = self._keys_at(self._group.starts, self.count)
        text = self._keys_at([e - size for e in ends], size)
        return image.float().abs().sum(dim=(1, 3)), text.float().abs().sum(dim=(1, 3)), wanted

    def places(self) -> tuple[Tensor, Tensor]:
        """Places in the unpadded row, earlier turns included, as the probe layer counts them.

        Returns:
            ([I] long of the image's first token; [I, S] of what stands after the image, as in `from_suffix`).
        """
        earlier, size = self._probe.earlier(self._group.rows), self._behind().shape[1]
        starts = torch.tensor(self._group.starts, device=self._device)
        ends = torch.tensor(self._ends, device=self._device)
        last = (earlier + ends - size)[:, None] + torch.arange(size, device=self._device)
        return earlier + starts, last

    def final_norm(self, states: Tensor) -> Tensor:
        """`states` under the norm after the stack's last layer."""
        return self._probe.last_norm(states)

    def from_last_token(self) -> Tensor:
        """[I, n] float32: attention of the prompt's last token to each visual token, mean over heads."""
        return self._from_text(torch.ones(len(self._group.images), 1, dtype=torch.bool, device=self._device))[:, 0]

    def last_token(self) -> "Meeting":
        """The prompt's last token and the visual ones in the probed layer."""
        group, layer, own = self._group, self._probe.layer, self._probe.own_rotary
        ends = [end - 1 for end in self._ends]
        visual, last = (self._take(self._probe.states, at, n) for at, n in ((group.starts, self.count), (ends, 1)))
        key = scores.project(layer, visual, self._rope(group.starts, self.count), "k", own)
        query = scores.project(layer, last, self._rope(ends, 1), "q", own)
        value, own_value = (
            layer.self_attn.v_proj(layer.input_layernorm(x)).unflatten(2, (key.shape[1], -1)).transpose(1, 2)
            for x in (visual, last)
        )
        return Meeting(query, key, own_value, value, layer.self_attn.scaling)

    def from_suffix(self) -> tuple[Tensor, Tensor]:
        """Attention of the text after the image (see `suffix_mask`) to each visual token.

        Returns:
            ([I, S, n] float32 mean over heads, [I, S] bool: False for places beyond a shorter text).
        """
        wanted = self.suffix_mask()
        return self._from_text(wanted), wanted

    def suffix_hidden(self) -> tuple[Tensor, Tensor]:
        """States of the text after the image: ([I, S, D], [I, S] bool as in `from_suffix`)."""
        wanted = self.suffix_mask()
        return self._take(self._rows.hidden, [e - wanted.shape[1] for e in self._ends], wanted.shape[1]), wanted

    def suffix_mask(self) -> Tensor:
        """[I, S] bool: which of the S coordinates before the prompt's end are text after the image.

        Where no text stands there, the prompt's last token, whatever it is, speaks for it.
        """
        out = self._behind()
        out[:, -1] |= ~out.any(dim=1)
        return out

    def _behind(self) -> Tensor:
        """`suffix_mask`, all False where no text stands after the image."""
        group = self._group
        longest = max(1, *(e - s - self.count for e, s in zip(self._ends, group.starts)))
        out = torch.zeros(len(group.images), longest, dtype=torch.bool)
        for i, (row, start, end) in enumerate(zip(group.rows, group.starts, self._ends)):
            out[i, longest - (end - start - self.count) :] = True
            for other_start, other_count in self._rows.blocks(row):
                if other_start > start:
                    low = other_start - end + longest
                    out[i, max(low, 0) : max(low + other_count, 0)] = False
        return out.to(self._device)

    @property
    def _device(self) -> torch.device:
        return self._rows.device

    @property
    def _ends(self) -> list[int]:
        """Per image, the coordinate after the last token of the prompt it belongs to."""
        group, ends = self._group, self._rows.ends
        out = []
        for row, start in zip(group.rows, group.starts):
            out.append(next((e for e in ends[row] if e >= start + self.count), self._rows.lengths[row]))
        return out

    def _take(self, x: Tensor, starts: Sequence[int], count: int) -> Tensor:
        return self._rows.take(x, self._group, starts, count)

    def _rope(self, starts: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        cos, sin = self._probe.rope
        return self._take(cos, starts, count), self._take(sin, starts, count)

    def _with_past(self, key: Tensor, outside: Tensor | None) -> tuple[Tensor, Tensor | None]:
        past = self._probe.past(self._group.rows)
        if past is None:
            return key, outside
        past_key, past_outside = past
        if outside is not None or past_outside is not None:
            none = [
                torch.zeros(len(key), n, dtype=torch.bool, device=key.device) for n in (past_key.shape[2], key.shape[2])
            ]
            outside = torch.cat(
                [none[0] if past_outside is None else past_outside, none[1] if outside is None else outside], dim=1
            )
        return torch.cat([past_key, key], dim=2), outside

    def _image_keys(self) -> tuple[Tensor, Tensor | None]:
        """Keys of everything a visual token may see: ([I, H, P + n, E], [I, P + n] bool True = padding, or None).

        Text after the image is never seen by a visual query, so it is not projected.
        """
        if "key" not in self._cached:
            layer, group = self._probe.layer, self._group
            before = max(group.starts)
            starts, count = [s - before for s in group.starts], before + self.count
            attention, rope, own = layer.self_attn, self._rope(starts, count), self._probe.own_rotary
            states = layer.input_layernorm(self._take(self._probe.states, starts, count))
            keys, queries = attention.k_proj(states), attention.q_proj(states[:, before:])
            key, self._cached["query"] = scores.finish_both(attention, keys, queries, rope, own)
            self._cached["key"], self._cached["outside"] = self._with_past(key, self._rows.outside(starts, count))
        return self._cached["key"], self._cached["outside"]

    def _keys_at(self, starts: Sequence[int], count: int) -> Tensor:
        """[I, H, count, E] rotated keys of the probe layer at coordinates start … start+count-1 of each image."""
        if self._probe.has_run and self._probe.keys is not None:
            # The layer has just run: its rotated keys are in the cache, to be read instead of computed again.
            cached = self._probe.keys[:, :, -self._rows.width :]
            return self._take(cached.transpose(1, 2), starts, count).transpose(1, 2)
        states, rope = self._take(self._probe.states, starts, count), self._rope(starts, count)
        return scores.project(self._probe.layer, states, rope, "k", self._probe.own_rotary)

    def _from_text(self, wanted: Tensor) -> Tensor:
        """Attention of the last S coordinates before the prompt's end: wanted [I, S] bool -> [I, S, n] float32."""
        group, layer, size = self._group, self._probe.layer, wanted.shape[1]
        ends, longest = self._ends, max(self._ends)
        starts = [e - longest for e in ends]
        outside = self._rows.outside(starts, longest)
        key, outside = self._with_past(self._keys_at(starts, longest), outside)
        tails = [e - size for e in ends]
        query = scores.project(
            layer, self._take(self._probe.states, tails, size), self._rope(tails, size), "q", self._probe.own_rotary
        )
        total = key.shape[2]
        at = torch.arange(total, device=key.device)
        last = torch.arange(total - size, total, device=key.device)
        visible = (at <= last[:, None]).expand(len(group.images), -1, -1)
        if outside is not None:
            visible = visible & ~outside[:, None]
        # A place that is no token of the text may have nothing to look at; let it look anywhere, it is not used.
        visible = visible | ~wanted[:, :, None]
        weights = scores.attention_rows(query, key, layer.self_attn.scaling, visible, self._probe.chunk)
        firsts = [total - (e - s) for e, s in zip(ends, group.starts)]
        if len(set(firsts)) == 1:
            return weights[:, :, firsts[0] : firsts[0] + self.count]
        columns = torch.tensor(firsts, device=key.device)[:, None] + torch.arange(self.count, device=key.device)
        return weights.gather(2, columns[:, None].expand(-1, size, -1))


@dataclass
class ReceivedView:
    """What an encoder stage may ask of a tower layer besides the last (see `tower.encoder.LayerView`)."""

    scores: Tensor

    def received(self) -> Tensor:
        """[I, n] float32: attention that the patches of each token receive in that layer."""
        return self.scores


class EntryView(View):
    """What an encoder stage may ask where it acts on entry of the stack (see `tower.encoder.EncoderView`).

    `hidden` are the visual tokens as the language model gets them; scores and metric are those of the patches behind each
    token.  There is no [CLS] row.
    """

    cls = False

    @property
    def projected(self) -> Tensor:
        """[I, n, D]: `hidden`."""
        return self.hidden

    def score(self) -> Tensor:
        """[I, n] float32: the tower's attention to the patches of each token."""
        return self._group.tower[0]

    def metric(self) -> Tensor:
        """[I, n, E]: the tower's keys, mean over heads and over the patches of each token."""
        return self._group.tower[1]

    def at(self, layer: int) -> ReceivedView:
        """A tower layer that the stage names in `probes`."""
        return ReceivedView(self._group.probes[layer])
