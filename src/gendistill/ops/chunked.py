"""The gated delta rule in chunks: pure PyTorch, exact gradients, no exponent ever above zero.

Inside a chunk the tokens' corrected values u solve a unit lower-triangular system, so a chunk costs a few matrix
products and one solve, and only the state is carried from chunk to chunk (the WY form of DeltaNet, arXiv 2406.06484,
with a decay per channel as in Kimi Linear, arXiv 2510.26692).

Decay between two tokens is exp(G_i - G_j) with G the running sum of log decays. exp(G_i) * exp(-G_j) would overflow,
so both sides decay to a token between them: two exponents <= 0. G is summed in float64: next to a gate of -1e4 a
float32 sum would round away its neighbours.
"""

import torch
import torch.nn.functional as F

from gendistill.ops.documents import Documents
from gendistill.ops.reference import l2_normalize

CHUNK = 64  # a power of two


def chunked_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments and results as `recurrent_gated_delta_rule`."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    length = q.shape[1]
    chunk = min(CHUNK, 1 << (length - 1).bit_length())
    scale = k.shape[-1] ** -0.5

    def chunks(
        x: torch.Tensor,
    ) -> torch.Tensor:  # [B, T, H, D] -> [B, H, N, C, D]; filler tokens neither write nor decay
        x = F.pad(x, (0, 0, 0, 0, 0, -length % chunk))
        return x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)

    q_, k_ = chunks(l2_normalize(q.to(dtype)) * scale), chunks(l2_normalize(k.to(dtype)))
    v_, beta_ = chunks(v.to(dtype)), chunks(beta.to(dtype)[..., None])
    log_decay = chunks(g.double()).cumsum(-2)
    qk, kk = _decayed_products(q_, k_, log_decay)

    from_state = log_decay.to(dtype).exp()  # decay from the chunk's incoming state to each token
    to_end = (log_decay[..., -1:, :] - log_decay).to(dtype).exp()  # and from each token to the chunk's end
    if documents is None:
        keep_state = from_state[..., -1, :, None]
    else:
        document = _document_in_chunk(documents.starts, chunk)
        same = document[..., :, None] == document[..., None, :]
        qk, kk = qk * same, kk * same
        keep_state = from_state[..., -1, :, None] * (document[..., -1, None, None] == 0)
        from_state = from_state * (document == 0)[..., None]
        to_end = to_end * (document == document[..., -1:])[..., None]

    system = torch.eye(chunk, dtype=dtype, device=q.device) + beta_ * kk.tril(-1)
    right = beta_ * torch.cat([v_, k_ * from_state], dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    u, w = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    q_state, k_end = q_ * from_state, (k_ * to_end).transpose(-1, -2)

    state = k_.new_zeros(*k_.shape[:2], k.shape[-1], v.shape[-1]) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for n in range(q_.shape[2]):
        values = u[:, :, n] - w[:, :, n] @ state
        outputs.append(q_state[:, :, n] @ state + qk[:, :, n] @ values)
        state = state * keep_state[:, :, n] + k_end[:, :, n] @ values
    o = torch.stack(outputs, dim=2).flatten(2, 3)[:, :, :length]
    return o.transpose(1, 2).to(v.dtype), state


def _document_in_chunk(starts: torch.Tensor, chunk: int) -> torch.Tensor:
    """[B, T] starts -> [B, 1, N, C]: how many documents began in the chunk up to each token (0: the incoming one)."""
    starts = F.pad(starts, (0, -starts.shape[1] % chunk))
    return starts.unflatten(1, (-1, chunk)).cumsum(-1).unsqueeze(1)


def _decayed_products(q: torch.Tensor, k: torch.Tensor, log_decay: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., C, C] lower-triangular q_i . k_j and k_i . k_j with channel-wise decay exp(G_i - G_j), j <= i.

    Built from single tokens up: two neighbouring blocks of finished products become one of twice the size, once the
    later block's rows have met the earlier block's keys, both decayed to the later block's first token.
    """
    rows = torch.stack([q, k], dim=-3)  # [..., 2, C, K]
    products = (rows * k.unsqueeze(-3)).sum(-1).movedim(-1, -2)[..., None, None]  # [..., C, 2, 1, 1]
    size = 1
    while size < q.shape[-2]:
        earlier, later = log_decay.unflatten(-2, (-1, 2, size)).unbind(-3)  # [..., pairs, size, K]
        first = later[..., :1, :]
        near = (later - first).to(q.dtype).exp().unsqueeze(-3)
        far = (first - earlier).to(q.dtype).exp()
        late_rows = near * rows.unflatten(-2, (-1, 2, size))[..., 1, :, :].movedim(-4, -3)  # [..., pairs, 2, size, K]
        early_keys = far * k.unflatten(-2, (-1, 2, size))[..., 0, :, :]
        met = (late_rows.flatten(-3, -2) @ early_keys.transpose(-1, -2)).unflatten(-2, (2, size))
        left, right = products.unflatten(-4, (-1, 2)).unbind(-4)
        top, bottom = torch.cat([left, torch.zeros_like(met)], dim=-1), torch.cat([met, right], dim=-1)
        products = torch.cat([top, bottom], dim=-2)
        size *= 2
    qk, kk = products.squeeze(-4).unbind(-3)
    return qk, kk
