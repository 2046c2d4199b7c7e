"""A window in the place of full attention: the teacher's own layer, its weights untouched, that sees less."""

import torch
from transformers.cache_utils import Cache

from gendistill.models.attention_layer import GendistillAttention
from gendistill.models.cache import Ring
from gendistill.models.padding import Padding
from gendistill.ops import Documents
from gendistill.ops.decode_attention import decode_attention
from gendistill.ops.window import window_attention

CAUSAL_BY_MASK = ("eager", "flex_attention")  # without one, which a window has not, every query would see every key


class WindowAttention(GendistillAttention):
    """Softmax attention over the last `config.window` tokens and the first `config.sinks` of each document."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Padding | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        documents: Documents | None = None,
        **_,
    ) -> tuple[torch.Tensor, None]:
        """[B, T, hidden] -> [B, T, hidden]; arguments as of all mixers, see `LinearAttention`."""
        q, k, v = self.project(hidden_states, position_embeddings)
        window, sinks = self.config.window, self.config.sinks
        ring = None if past_key_values is None else Ring(past_key_values.layers[self.layer_idx], k, window, sinks)
        alone = attention_mask is None and documents is None and (ring is None or ring.is_empty)
        alone = alone and self.config._attn_implementation not in CAUSAL_BY_MASK
        if alone and k.shape[2] <= window:  # all of it is seen: to the last bit what full attention gives
            o, _ = self.attend(q, k, v, None)
            if ring is not None:
                ring.write(k, v, None)
        else:
            o = attend_to_window(q, k, v, window, sinks, self.scaling, attention_mask, ring, documents)
        return self.o_proj(o.flatten(-2).contiguous()), None


def positions_of(
    inputs: torch.Tensor, padding: Padding | None, ring: Ring | None, documents: Documents | None
) -> torch.Tensor:
    """[B or 1, T]: the position of each token of inputs [B, T, C] in its document, padding not counted."""
    if documents is not None:
        return documents.positions
    index = (
        torch.arange(inputs.shape[1], device=inputs.device)[None] if padding is None else padding.valid.cumsum(1) - 1
    )
    return index if ring is None else ring.count[:, None] + index


def attend_to_window(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int,
    sinks: int,
    scale: float,
    padding: Padding | None,
    ring: Ring | None,
    documents: Documents | None,
) -> torch.Tensor:
    """[B, T, H, D] of q [B, H, T, D] and k, v [B, G, T, D]; what is in the ring buffer comes before them."""
    if ring is not None and not ring.is_empty and q.shape[2] == 1:
        ring.write(k, v, padding)
        return decode_attention(q[:, :, 0], ring.keys, ring.values, ring.lengths, scale)[:, None]
    q, k, v = (x if padding is None else padding.to_the_end(x) for x in (q, k, v))
    past = None if ring is None else ring.past()
    o = window_attention(q, k, v, window=window, sinks=sinks, scale=scale, documents=documents, past=past)
    if ring is not None:
        ring.write(k, v, padding)
    return o if padding is None else padding.put_back(o)
