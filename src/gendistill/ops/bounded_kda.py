"""Kimi Delta Attention with bounded gates: fla's kernels with a backward pass that does less, and a prefill that fills
more of the GPU.

In training fla's own computes what the forward pass had a second time, and passes float32 gradients from kernel to
kernel through memory. Here the forward pass keeps its products (some 12 KiB more a token and 16 heads of 128 channels),
and four kernels do what happens inside chunks, down to the gradient of what the gates come from.

In prefill the sweep over chunks, which has nothing to do at once but heads and channels of the values, is cut finer
than fla does where rows are few.

Shapes: B sequences, T tokens in each, H heads, D channels of a key and of a value.
"""

import torch

from gendistill.ops.kda_kernels import CHUNK, HEAD_SIZES, chunk_backward, values_backward
from gendistill.ops.optional_triton import triton

# Channels of the values to a program of the sweep. With 32, or 64 as fla has it, one row of 16 heads takes 1.07 and
# 1.37 times as long on an H200 (16,384 tokens, 128 channels: results/gpu/prefill_trials.txt).
FINE_VALUES = 16


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
    from fla.ops.gla.chunk import chunk_gla_fwd_o_gk
    from fla.ops.kda.chunk_intra import chunk_kda_fwd_intra
    from fla.ops.kda.gate import kda_gate_chunk_cumsum
    from fla.ops.utils.constant import RCP_LN2

    q, k, v, g, beta = (x.contiguous() for x in (q, k, v, g, beta))  # the kernels take no strides
    scale = q.shape[-1] ** -0.5
    with torch.cuda.device_of(q):
        gate = {"A_log": A_log, "dt_bias": dt_bias, "lower_bound": lower_bound}
        # [B, T, H, D] float32: log2 of the decay since the chunk's beginning.
        g = kda_gate_chunk_cumsum(g=g, scale=RCP_LN2, chunk_size=CHUNK, **gate)
        inside = {"q": q, "k": k, "v": v, "gk": g, "beta": beta, "scale": scale}
        w, u, _, kg, Aqk, _ = chunk_kda_fwd_intra(**inside, chunk_size=CHUNK, safe_gate=True)
        h, v_new, state = _sweep(kg, w, u, g, initial_state)
        o = chunk_gla_fwd_o_gk(q=q, v=v_new, g=g, A=Aqk, h=h, scale=scale, chunk_size=CHUNK)
    return o, state


def _sweep(
    k: torch.Tensor, w: torch.Tensor, u: torch.Tensor, g: torch.Tensor, initial_state: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From chunk to chunk: the states before each [B, chunks, H, D, D], new values [B, T, H, D], the state at the end.

    k, w and u [B, T, H, D] are keys, reads and writes with their decays.
    """
    from fla.ops.common import chunk_delta_h

    batch, length, heads, width = u.shape
    programs = batch * heads * width // FINE_VALUES
    if programs > torch.cuda.get_device_properties(u.device).multi_processor_count:
        settings = {"chunk_size": CHUNK, "output_final_state": True}
        return chunk_delta_h.chunk_gated_delta_rule_fwd_h(k=k, w=w, u=u, gk=g, initial_state=initial_state, **settings)
    h = u.new_empty(batch, -(-length // CHUNK), heads, width, width)
    state = u.new_empty(batch, heads, width, width, dtype=torch.float32)
    v_new = torch.empty_like(u)
    tensors = {"k": k, "v": u, "w": w, "v_new": v_new, "g": None, "gk": g, "h": h, "h0": initial_state, "ht": state}
    shape = {"T": length, "H": heads, "HV": heads, "K": width, "V": width, "BT": CHUNK, "BV": FINE_VALUES}
    flags = {"USE_G": False, "USE_GK": True, "USE_INITIAL_STATE": initial_state is not None, "STORE_FINAL_STATE": True}
    flags |= {"SAVE_NEW_VALUE": True, "STATE_V_FIRST": False, "IS_VARLEN": False}
    # Without fla's autotuner, whose choice cannot depend on the number of rows.
    kernel = chunk_delta_h.chunk_gated_delta_rule_fwd_kernel_h_blockdim64
    while not isinstance(kernel, triton.JITFunction):
        kernel = kernel.fn
    kernel[(programs,)](**tensors, cu_seqlens=None, chunk_offsets=None, **shape, **flags, num_warps=4, num_stages=4)
    return h, v_new, state


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
