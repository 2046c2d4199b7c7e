"""The recurrence, one token at a time: the definition that the fast forms are tested against."""

import torch

from gendistill.ops.documents import Documents


def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """x / ||x|| over the last dimension; a zero vector stays zero (fla's kernels use the same epsilon)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def recurrent_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T;  o_t = S_t^T q_t / sqrt(K).

    Kimi Delta Attention's state update (Kimi Linear, arXiv 2510.26692), with q and k L2-normalised per head.

    Args:
        q, k: [B, T, H, K], any scale.
        v: [B, T, H, V].
        g: [B, T, H, K], log decay, <= 0.
        beta: [B, T, H], write strength in [0, 1].
        initial_state: [B, H, K, V].
        documents: borders at which the state is cleared.

    Returns:
        o [B, T, H, V] in v's dtype and the final state [B, H, K, V] in float32 (float64 for float64 inputs).
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    q, k = l2_normalize(q.to(dtype)) * k.shape[-1] ** -0.5, l2_normalize(k.to(dtype))
    values, decay, beta = v.to(dtype), g.to(dtype).exp(), beta.to(dtype)
    state = k.new_zeros(*k.shape[:1], *k.shape[2:], v.shape[-1]) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(q.shape[1]):
        if documents is not None:
            state = state.masked_fill(documents.starts[:, t, None, None, None], 0.0)
        state = state * decay[:, t, ..., None]
        k_t = k[:, t, ..., None]
        error = values[:, t] - (k_t * state).sum(-2)
        state = state + k_t * (beta[:, t, ..., None] * error).unsqueeze(-2)
        outputs.append((q[:, t, ..., None] * state).sum(-2))
    return torch.stack(outputs, dim=1).to(v.dtype), state
