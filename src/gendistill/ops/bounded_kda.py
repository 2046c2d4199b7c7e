"""Kimi Delta Attention with bounded gates: fla's kernels with a backward pass that does less, and a prefill in fewer.

In training fla's own computes what the forward pass had a second time, and passes float32 gradients from kernel to
kernel through memory. Here the forward pass keeps its products (some 12 KiB more a token and 16 heads of 128 channels),
and four kernels do what happens inside chunks, down to the gradient of what the gates come from.

In prefill four kernels take the place of fla's seven, each of which reads queries, keys or gates again; float16 alone
still goes through those.

Shapes: B sequences, T tokens in each, H heads, D channels of a key and of a value.
"""

import torch

from gendistill.ops.decay import DecayGate
from gendistill.ops.kda_kernels import CHUNK, HEAD_SIZES, chunk_backward, values_backward
from gendistill.ops.kda_prefill_kernels import takes_prefill, through_chunks


def takes_bounded_kda(number_size: int, head_size: int) -> bool:
    """Whether `bounded_kda` is written for numbers of so many bytes and heads of so many channels."""
    return number_size == 2 and head_size in HEAD_SIZES


@torch.compiler.disable
def bounded_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    *,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    lower_bound: float,
    cu_seqlens: torch.Tensor | None = None,
    use_graph: bool = False,
    max_num_seqs: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """fla's `chunk_kda` with `use_gate_in_kernel` and `safe_gate`; the arguments are its own.

    Args:
        q, k, v: [B, T, H, D] in 16 bits; q and k of length 1.
        g: [B, T, H, D], the gate's projection; see `DecayGate.raw`.
        beta: [B, T, H] float32.
        initial_state: [documents or B, H, D, D].
        A_log, dt_bias: [H] and [H * D] float32.
        lower_bound: the lowest log decay, KERNEL_BOUND or above.
        cu_seqlens: [documents + 1], for B = 1.
        use_graph: nothing is read on the host; cu_seqlens ends in empty documents, max_num_seqs of all kinds.

    Returns:
        o [B, T, H, D] and, if wanted, the final state [documents or B, H, D, D] in float32.
    """
    from fla.ops.utils.index import prepare_chunk_indices, prepare_chunk_indices_static, prepare_chunk_offsets

    indices = offsets = None
    if cu_seqlens is not None and use_graph:
        # As many chunks as there can be at most: with sizes known beforehand nothing is read on the host.
        most = (q.shape[1] + CHUNK - 1) // CHUNK + max_num_seqs - 1
        indices, offsets = prepare_chunk_indices_static(cu_seqlens=cu_seqlens, chunk_size=CHUNK, nt_max=most)
    elif cu_seqlens is not None:
        indices, offsets = prepare_chunk_indices(cu_seqlens, CHUNK), prepare_chunk_offsets(cu_seqlens, CHUNK)
    chunks = {"cu_seqlens": cu_seqlens, "chunk_indices": indices, "chunk_offsets": offsets, "use_graph": use_graph}
    with torch.cuda.device_of(q):  # Triton launches on the current GPU, whichever has the tensors
        gate = (A_log, dt_bias, lower_bound)
        return _BoundedKDA.apply(q, k, v, g, beta, *gate, initial_state, output_final_state, chunks)


@torch.compiler.disable
def bounded_kda_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    *,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    lower_bound: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`bounded_kda` of whole rows without gradients: o [B, T, H, D] and the final state [B, H, D, D] in float32.

    Arguments as there.
    """
    gate = {"A_log": A_log, "dt_bias": dt_bias, "lower_bound": lower_bound}
    if not takes_prefill(q.dtype, q.shape[-1]):
        from fla.ops.kda import chunk_kda

        options = {"initial_state": initial_state, "output_final_state": True}
        return chunk_kda(q, k, v, g, beta, **options, **gate, use_gate_in_kernel=True, safe_gate=True)
    q, k, v, g, beta = (x.contiguous() for x in (q, k, v, g, beta))  # the kernels take no strides
    if initial_state is not None:
        initial_state = initial_state.contiguous()
    heads, size = q.shape[2:]
    final = q.new_empty(len(q), heads, size, size, dtype=torch.float32)
    decay = DecayGate(g.flatten(2), A_log, dt_bias, lower_bound)
    o = through_chunks(q, k, v, decay, None, beta, None, initial_state, final, None)
    return o.unflatten(-1, (heads, size)), final


class _BoundedKDA(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, raw, beta, A_log, dt_bias, bound, initial_state, output_final_state, chunks):
        from fla.ops.kda.chunk_fwd import chunk_kda_fwd

        q, k, v, raw, beta = (x.contiguous() for x in (q, k, v, raw, beta))  # the kernels take no strides
        scale = q.shape[-1] ** -0.5
        # Aqk and Akk [B, T, H, 64] are the products inside chunks, h [N, H, D, D] the states before them; qg, kg and w
        # are queries, keys and reads with their decays.
        o, state, g, Aqk, Akk, w, _, qg, kg, v_new, h, _ = chunk_kda_fwd(
            q=q,
            k=k,
            v=v,
            g=raw,
            A_log=A_log,
            dt_bias=dt_bias,
            lower_bound=bound,
            use_gate_in_kernel=True,
            beta=beta,
            scale=scale,
            initial_state=initial_state,
            output_final_state=output_final_state,
            chunk_size=CHUNK,
            safe_gate=True,
            disable_recompute=True,  # it returns what it would otherwise compute again on the way back
            **chunks,
        )
        ctx.save_for_backward(q, k, raw, g, beta, A_log, dt_bias, initial_state, Aqk, Akk, w, qg, kg, v_new, h)
        ctx.bound, ctx.scale, ctx.chunks = bound, scale, chunks
        ctx.set_materialize_grads(False)  # of a state that nobody reads: zeros would be a tensor of its size
        return o, state

    @staticmethod
    def backward(ctx, do, d_state):
        from fla.ops.common.chunk_delta_h import chunk_gated_delta_rule_bwd_dhu

        q, k, raw, g, beta, A_log, dt_bias, initial_state, Aqk, Akk, w, qg, kg, v_new, h = ctx.saved_tensors
        do = torch.zeros_like(v_new) if do is None else do.contiguous()  # None: the loss is of the state alone
        scale, chunks = ctx.scale, ctx.chunks
        boundaries = {name: chunks[name] for name in ("cu_seqlens", "chunk_indices")}
        dv = values_backward(Aqk, do, **boundaries)  # [B, T, H, D], by way of the chunk's own outputs
        # From the last chunk to the first: dh, the gradients of the states, and what they add to dv.
        dh, d_initial, dv = chunk_gated_delta_rule_bwd_dhu(
            q=qg,
            k=kg,
            w=w,
            gk=g,
            h0=initial_state,
            dht=None if d_state is None else d_state.contiguous(),
            do=do,
            dv=dv,
            scale=scale,
            chunk_size=CHUNK,
            chunk_offsets=chunks["chunk_offsets"],
            **boundaries,
        )
        dq, dk, dv, d_raw, d_beta, d_A_log, d_bias = chunk_backward(
            q, k, v_new, raw, g, A_log, dt_bias, ctx.bound, beta, Akk, h, do, dh, dv, scale, **boundaries
        )
        return dq, dk, dv, d_raw, d_beta, d_A_log, d_bias, None, d_initial, None, None
