"""The recurrence in chunks: pure PyTorch, exact gradients, no exponent ever above zero.

Inside a chunk every token meets every earlier one in a few matrix products, and only the state is carried from chunk
to chunk. With the delta rule the values that are written solve a unit lower-triangular system (the WY form of DeltaNet,
arXiv 2406.06484, with a decay per channel as in Kimi Linear, arXiv 2510.26692).

Decay between two tokens is exp(G_i - G_j) with G the running sum of log decays. exp(G_i) * exp(-G_j) would overflow,
so both sides decay to a token between them: two exponents <= 0. G is summed in float64: next to a gate of -1e4 a
float32 sum would round away its neighbours.
"""

import torch
import torch.nn.functional as F

from gendistill.ops.documents import Documents
from gendistill.ops.reference import l2_normalize

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
        """[B, T, H, D] -> [B, H, N, C, D]; filler tokens neither write nor decay."""
        x = F.pad(x, (0, 0, 0, 0, 0, -length % chunk))
        return x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)

    q_, k_ = chunks(l2_normalize(q.to(dtype)) * k.shape[-1] ** -0.5), chunks(l2_normalize(k.to(dtype)))
    values = chunks(v.to(dtype))
    per_channel = g.dim() == 4
    log_decay = chunks(g.double() if per_channel else g.double()[..., None]).cumsum(-2)
    rows = q_.unsqueeze(-3) if beta is None else torch.stack([q_, k_], dim=-3)
    products = (_channel_decayed_products if per_channel else _head_decayed_products)(rows, k_, log_decay)

    from_state = log_decay.to(dtype).exp()  # decay from the chunk's incoming state to each token
    to_end = (log_decay[..., -1:, :] - log_decay).to(dtype).exp()  # and from each token to the chunk's end
    keep_state = from_state[..., -1, :, None]
    if documents is not None:
        document = _document_in_chunk(documents.starts, chunk)
        products = products * (document[..., :, None] == document[..., None, :]).unsqueeze(-3)
        keep_state = keep_state * (document[..., -1, None, None] == 0)
        from_state = from_state * (document == 0)[..., None]
        to_end = to_end * (document == document[..., -1:])[..., None]
    q_state, k_end, qk = q_ * from_state, (k_ * to_end).transpose(-1, -2), products[..., 0, :, :]

    reads = None
    if beta is not None:
        beta_ = chunks(beta.to(dtype)[..., None])
        system = torch.eye(chunk, dtype=dtype, device=q.device) + beta_ * products[..., 1, :, :].tril(-1)
        right = beta_ * torch.cat([values, k_ * from_state], dim=-1)
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        values, reads = solved.split([v.shape[-1], k.shape[-1]], dim=-1)

    state = k_.new_zeros(*k_.shape[:2], k.shape[-1], v.shape[-1]) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for n in range(q_.shape[2]):
        written = values[:, :, n] if reads is None else values[:, :, n] - reads[:, :, n] @ state
        outputs.append(q_state[:, :, n] @ state + qk[:, :, n] @ written)
        state = state * keep_state[:, :, n] + k_end[:, :, n] @ written
    o = torch.stack(outputs, dim=2).flatten(2, 3)[:, :, :length]
    return o.transpose(1, 2).to(v.dtype), state


def _document_in_chunk(starts: torch.Tensor, chunk: int) -> torch.Tensor:
    """[B, T] starts -> [B, 1, N, C]: how many documents began in the chunk up to each token (0: the incoming one)."""
    starts = F.pad(starts, (0, -starts.shape[1] % chunk))
    return starts.unflatten(1, (-1, chunk)).cumsum(-1).unsqueeze(1)


def _head_decayed_products(rows: torch.Tensor, k: torch.Tensor, log_decay: torch.Tensor) -> torch.Tensor:
    """The same products as `_channel_decayed_products` with one decay a head, log_decay [..., C, 1]."""
    difference = log_decay - log_decay.transpose(-1, -2)
    later = torch.ones_like(difference, dtype=torch.bool).tril()
    decay = difference.masked_fill(~later, -torch.inf).to(k.dtype).exp()  # masked before exp: no exponent above zero
    return rows @ k.unsqueeze(-3).transpose(-1, -2) * decay.unsqueeze(-3)


def _channel_decayed_products(rows: torch.Tensor, k: torch.Tensor, log_decay: torch.Tensor) -> torch.Tensor:
    """[..., R, C, C] lower-triangular row_i . k_j with channel-wise decay exp(G_i - G_j), j <= i; rows [..., R, C, K].

    Built from single tokens up: two neighbouring blocks of finished products become one of twice the size, once the
    later block's rows have met the earlier block's keys, both decayed to the later block's first token.
    """
    products = (rows * k.unsqueeze(-3)).sum(-1).movedim(-1, -2)[..., None, None]  # [..., C, R, 1, 1]
    size = 1
    while size < k.shape[-2]:
        earlier, later = log_decay.unflatten(-2, (-1, 2, size)).unbind(-3)  # [..., pairs, size, K]
        first = later[..., :1, :]
        near = (later - first).to(k.dtype).exp().unsqueeze(-3)
        far = (first - earlier).to(k.dtype).exp()
        late_rows = near * rows.unflatten(-2, (-1, 2, size))[..., 1, :, :].movedim(-4, -3)  # [..., pairs, R, size, K]
        early_keys = far * k.unflatten(-2, (-1, 2, size))[..., 0, :, :]
        met = (late_rows.flatten(-3, -2) @ early_keys.transpose(-1, -2)).unflatten(-2, (-1, size))
        left, right = products.unflatten(-4, (-1, 2)).unbind(-4)
        top, bottom = torch.cat([left, torch.zeros_like(met)], dim=-1), torch.cat([met, right], dim=-1)
        products = torch.cat([top, bottom], dim=-2)
        size *= 2
    return products.squeeze(-4)
