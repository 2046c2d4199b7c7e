"""The recurrence in chunks: pure PyTorch, exact gradients, no exponent ever above zero.

Inside a chunk every token meets every earlier one in a few matrix products, and only the state is carried from chunk
to chunk. With the delta rule the values that are written solve a unit lower-triangular system (the WY form of DeltaNet,
arXiv 2406.06484, with a decay per channel as in Kimi Linear, arXiv 2510.26692).

Decays, numbers in [0, 1], are only ever multiplied. The decay between two tokens as a quotient of decays since the
chunk's start would overflow, and a difference of summed log decays would lose every neighbour of a gate of -1e4. So a
document's first token can simply have decay 0.
"""

import torch
import torch.nn.functional as F

from gendistill.ops.documents import Documents

CHUNK = 64  # a power of two


def chunked_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments and results as `recurrent_linear_attention`."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    length = q.shape[1]
    chunk = min(CHUNK, 1 << (length - 1).bit_length())

    def chunks(x: torch.Tensor) -> torch.Tensor:
        """[B, T, H, D] -> [B, H, N, C, D]; padding neither writes nor decays."""
        x = x.to(dtype).transpose(1, 2)  # [B, H, T, D]
        if length % chunk:  # zeros: a key of 0 writes nothing, a log decay of 0 forgets nothing
            x = F.pad(x, (0, 0, 0, -length % chunk))
        return x.contiguous().unflatten(2, (-1, chunk))

    # N chunks of C tokens; [B, H, N, C, K or V] each.
    q, k, values = chunks(q.to(dtype) * k.shape[-1] ** -0.5), chunks(k), chunks(v)
    per_channel = g.dim() == 4
    g = g if per_channel else g[..., None]
    if documents is not None:  # a decay of exactly 0 before a document's first token
        g = g.masked_fill(documents.starts[..., None, None], -torch.inf)
    g = chunks(g)
    keep_state = g.sum(-2).exp().unsqueeze(-1)  # the rounding of a product would add up from chunk to chunk
    rows = torch.stack([q] if beta is None else [q, k], dim=-2)
    # [..., C, R, C], [..., C, R, K], [..., C, K]; R is 1, or 2 with the delta rule, whose keys are read as well.
    products, from_state, k_end = (_channel_decayed if per_channel else _head_decayed)(rows, k, g.exp())
    qk, *kk = products.unbind(-2)
    q_state, *k_state = from_state.unbind(-2)

    if beta is not None:
        beta = chunks(beta[..., None])
        system = beta * kk[0]  # [B, H, N, C, C]; the solver takes its diagonal as 1, whatever it holds
        right = beta * torch.cat([values, k_state[0]], dim=-1)  # [B, H, N, C, V + K]
        # Solved as X^T S^T = R^T: LAPACK counts columns first, so the transposed operands need no copies.
        solved = torch.linalg.solve_triangular(system.mT, right.mT, upper=True, left=False, unitriangular=True).mT
        values, reads = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
        reads = reads.unbind(2)  # N of [B, H, C, K]: what a chunk's writes take back of the state before it

    state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]) if initial_state is None else initial_state.to(dtype)
    states, writes = [], []
    # Unbound once: the gradient of indexing would fill a tensor of all chunks for each of them.
    for n, (write, key, keep) in enumerate(zip(*(x.unbind(2) for x in (values, k_end.mT, keep_state)), strict=True)):
        if beta is not None:
            write = write - reads[n] @ state
        states.append(state)  # before the chunk
        writes.append(write)  # [B, H, C, V]
        state = state * keep + key @ write
    # What queries read of the state before their chunk, and of what was written inside it: [B, H, N, C, V].
    o = q_state @ torch.stack(states, dim=2) + qk @ torch.stack(writes, dim=2)
    return o.flatten(2, 3)[:, :, :length].transpose(1, 2).to(v.dtype), state


def _head_decayed(
    rows: torch.Tensor, keys: torch.Tensor, decay: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`_channel_decayed` for one decay a head, [..., C, 1]: the decays alone, times the plain products."""
    one = torch.ones_like(decay)  # a row and a key of one channel: what comes out are decays, not products
    between, since_start, until_end = _channel_decayed(one.unsqueeze(-2), one, decay)
    plain = (rows.flatten(-3, -2) @ keys.mT).unflatten(-2, rows.shape[-3:-1])
    return between * plain, since_start * rows, until_end * keys


def _channel_decayed(
    rows: torch.Tensor, keys: torch.Tensor, decay: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Products of a chunk's rows with all keys up to them, decayed by the tokens after the key up to the row's own.

    Built from single tokens up. A block holds its rows decayed since before its first token, its keys decayed until
    after its last, and its finished products. Of two neighbours the later one's rows meet the earlier one's keys in a
    matrix product; then each side decays through the other block, and the two are one block of twice the size.

    Args:
        rows: [..., C, R, K], R rows a token.
        keys: [..., C, K].
        decay: [..., C, K].

    Returns:
        Products [..., C, R, C], 0 for later keys; rows decayed since the chunk's start; keys decayed until its end.
    """
    keys, decay = keys.unsqueeze(-2), decay.unsqueeze(-2)
    blocks = rows @ keys.mT, rows * decay, keys, decay  # each [..., blocks, rows or keys of a block, :]
    while blocks[0].shape[-3] > 1:
        halves = [x.unflatten(-3, (-1, 2)).unbind(-3) for x in blocks]
        (early, late), (early_rows, late_rows), (early_keys, late_keys), (early_decay, late_decay) = halves
        late = torch.cat([late_rows @ early_keys.mT, late], dim=-1)
        blocks = (
            torch.cat([F.pad(early, (0, early.shape[-1])), late], dim=-2),
            torch.cat([early_rows, late_rows * early_decay], dim=-2),
            torch.cat([early_keys * late_decay, late_keys], dim=-2),
            early_decay * late_decay,
        )
    products, decayed_rows, decayed_keys, _ = (x.squeeze(-3) for x in blocks)
    per_token = (-1, rows.shape[-2])
    return products.unflatten(-2, per_token), decayed_rows.unflatten(-2, per_token), decayed_keys
