"""The recurrence, one token at a time: the definition that the fast backends are tested against."""

import torch

from gendistill.ops.documents import Documents


def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """x / ||x|| over the last dimension; a zero vector stays zero."""
    # The 1e-6 is inside the root, as in fla's kernels: the results are compared.
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def recurrent_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T;  o_t = S_t^T q_t / sqrt(K).

    The one state update behind all mixers. With beta it is the delta rule, which replaces what the state holds under a
    key: Kimi Delta Attention (arXiv 2510.26692) with a decay per channel, Gated
    DeltaNet (arXiv 2412.06464) with one per head. Without beta it only adds, S_t = Diag(exp g_t) S_{t-1} + k_t v_t^T:
    Gated Linear Attention (arXiv 2312.06635) with a decay per channel, Mamba-2 in discrete form (arXiv 2405.21060,
    2408.10189) and Lightning Attention (arXiv 2405.17381) with one per head.

    Args:
        q, k: [B, T, H, K], of length 1.
        v: [B, T, H, V].
        g: log decay, <= 0: [B, T, H, K] per channel or [B, T, H] per head.
        beta: [B, T, H], write strength in [0, 1] of the delta rule; None adds without it.
        initial_state: [B, H, K, V].
        documents: boundaries at which the state is cleared.

    Returns:
        o [B, T, H, V] in v's dtype and the final state [B, H, K, V] in float32 (float64 for float64 inputs).
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    # Decays [B, T, H, K], or [B, T, H, 1] for one per head. Only q is scaled: with k, the state would be too.
    q, k = q.to(dtype) * k.shape[-1] ** -0.5, k.to(dtype)
    values, decay = v.to(dtype), g.to(dtype).exp().reshape(*k.shape[:3], -1)
    state = k.new_zeros(*k.shape[:1], *k.shape[2:], v.shape[-1]) if initial_state is None else initial_state.to(dtype)
    outputs = []  # [B, H, V] of each token
    for t in range(q.shape[1]):
        if documents is not None:
            state = state.masked_fill(documents.starts[:, t, None, None, None], 0.0)
        state = state * decay[:, t, ..., None]  # [B, H, K, V]; forgets before it reads or writes
        k_t, write = k[:, t, ..., None], values[:, t]  # [B, H, K, 1], [B, H, V]
        if beta is not None:  # what is to stand under the key, less what stands there
            write = beta[:, t, ..., None].to(dtype) * (write - (k_t * state).sum(-2))
        state = state + k_t * write.unsqueeze(-2)  # an outer product
        outputs.append((q[:, t, ..., None] * state).sum(-2))
    return torch.stack(outputs, dim=1).to(v.dtype), state
