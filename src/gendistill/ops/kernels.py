"""The backend for CUDA tensors: the recurrence by flash-linear-attention's kernels (fla-core)."""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.specifiers import SpecifierSet

from gendistill.errors import UserError
from gendistill.ops.bounded_kda import bounded_kda, bounded_kda_prefill, takes_bounded_kda
from gendistill.ops.decay import DecayGate, log_decay
from gendistill.ops.documents import Documents

LAUNCH_SETTINGS = Path(__file__).with_name("launch_settings")
SETTINGS_FOR = (9, 0)  # the compute capability they were measured on: Hopper
SHUT = -1e4  # what a bounded gate is projected from where nothing is to be forgotten
MISCOMPILES_PER_HEAD = ">=3.4,<3.7.1"  # versions of Triton, on Hopper


class Kernels(NamedTuple):
    """fla's functions for one kind of state update: many tokens, and one token without gradients."""

    chunk: Callable
    step: Callable | None


class Library(NamedTuple):
    kernels: dict[tuple[bool, bool], Kernels]  # by (delta rule, decay per channel)
    trains_per_head: bool  # whether the backward pass of the kernels with a decay per head can be used here


def kernel_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | DecayGate,
    beta: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Same arguments and results as `recurrent_linear_attention`; one token without gradients takes the step kernel.

    The final state of packed documents is not kept (it would be one a document) and comes back as None.

    Raises:
        UserError: fla-core is not installed.
    """
    library = load_kernels()
    tensors = (q, k, v, *(g if isinstance(g, DecayGate) else [g]), beta, initial_state)
    needs_gradients = torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in tensors)
    inputs, chunk_options = {"q": q, "k": k, "v": v}, {}
    if beta is not None:
        inputs["beta"] = beta.float()
    bounded_rule = beta is not None and isinstance(g, DecayGate) and g.is_bounded and g.raw.dim() == 4
    # In training only: it starts from what the gate is projected from, and knows neither padding nor other head sizes.
    if bounded_rule and needs_gradients and g.mask is None and takes_bounded_kda(q.element_size(), q.shape[-1]):
        kernels, inputs["g"] = Kernels(chunk=bounded_kda, step=None), g.raw
        chunk_options |= {"A_log": g.A_log, "dt_bias": g.dt_bias, "lower_bound": g.bound}
    elif bounded_rule and not needs_gradients and q.shape[1] > 1:
        # The kernel makes the log decay itself. At padding it is to be 0, as of a gate that is shut the other way.
        raw = g.raw if g.mask is None else g.raw.masked_fill(~g.mask.bool()[..., None, None], SHUT)
        chunk_options |= {"A_log": g.A_log, "dt_bias": g.dt_bias, "lower_bound": g.bound}
        if documents is None and takes_bounded_kda(q.element_size(), q.shape[-1]):
            return bounded_kda_prefill(**inputs, g=raw, initial_state=initial_state, **chunk_options)
        kernels, inputs["g"] = library.kernels[True, True], raw
        chunk_options |= {"use_gate_in_kernel": True, "safe_gate": True}
    else:
        g = log_decay(g).float()  # [B, T, H, K] or [B, T, H]
        if g.dim() == 3 and needs_gradients and not library.trains_per_head:
            g = g.unsqueeze(-1).expand_as(k)
        kernels, inputs["g"] = library.kernels[beta is not None, g.dim() == 4], g
        if bounded_rule:  # a promise about the size of g, for which fla has faster products
            chunk_options["safe_gate"] = True
    per_channel = inputs["g"].dim() == 4
    if documents is not None:
        if documents.fixed_shape and per_channel and beta is not None:
            chunk_options |= {"use_graph": True, "max_num_seqs": documents.cu_seqlens.shape[0] - 1}
        # fla takes packed documents as one long sequence: [1, B * T, ...].
        packed = {name: x.flatten(0, 1).unsqueeze(0) for name, x in inputs.items()}
        o, _ = kernels.chunk(**packed, **chunk_options, cu_seqlens=documents.cu_seqlens)
        return o.view_as(v), None
    # The step kernels have no gradients.
    states = {"initial_state": initial_state, "output_final_state": True}
    if q.shape[1] > 1 or needs_gradients:
        return kernels.chunk(**inputs, **chunk_options, **states)
    if beta is None and per_channel:  # fused_recurrent_gla has another name for it
        inputs["gk"] = inputs.pop("g")
    return kernels.step(**inputs, **states)


@torch.compiler.assume_constant_result
@cache
def load_kernels() -> Library:
    """fla's kernels. On Hopper they start with the launch settings shipped here, measured by scripts/tune_kernels.py.

    Autotuning would compile hundreds of candidates first: many minutes on a cold machine (results/gpu/cold_start.json).
    FLA_CACHE_MODE=disabled in the environment brings it back.

    Raises:
        UserError: fla-core is not installed.
    """
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == SETTINGS_FOR
    shipped = hopper and LAUNCH_SETTINGS.is_dir()  # not in exported folders: transformers copies Python files alone
    if shipped:  # before fla is imported below
        os.environ.setdefault("FLA_CONFIG_DIR", str(LAUNCH_SETTINGS))
        os.environ.setdefault("FLA_CACHE_MODE", "full")
    try:
        import triton
        from fla.ops.common import chunk_h, fused_recurrent
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
        from fla.ops.gla import chunk_gla, fused_recurrent_gla
        from fla.ops.kda import chunk_kda, fused_recurrent_kda
        from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla
    except ImportError as error:
        raise UserError(
            f"CUDA tensors need the kernels of fla-core, which cannot be imported ({error}). "
            'Install them with: pip install "gendistill[gpu]"'
        ) from None
    if shipped and os.environ["FLA_CACHE_MODE"] != "disabled":
        for kernel in (
            chunk_h.chunk_fwd_kernel_h,
            chunk_h.chunk_bwd_kernel_dh,
            fused_recurrent.fused_recurrent_fwd_kernel,
        ):
            _pin(kernel.fn)
    release = triton.__version__.split("+")[0]
    return Library(
        kernels={
            (True, True): Kernels(chunk_kda, fused_recurrent_kda),
            (True, False): Kernels(chunk_gated_delta_rule, fused_recurrent_gated_delta_rule),
            (False, True): Kernels(chunk_gla, fused_recurrent_gla),
            (False, False): Kernels(chunk_simple_gla, fused_recurrent_simple_gla),
        },
        # fla refuses to run its backward kernel of decays per head there (flash-linear-attention#640). The kernels with
        # a decay per channel compute the same.
        trains_per_head=not (hopper and SpecifierSet(MISCOMPILES_PER_HEAD).contains(release, prereleases=True)),
    )


def _pin(tuner) -> None:
    """Gives a kernel the one shipped setting; these few are tuned by triton itself, which reads no file of settings."""
    path = LAUNCH_SETTINGS / f"{tuner.base_fn.__name__}.json"
    setting = json.loads(path.read_text())["default_config"]
    (like, *_) = tuner.configs
    tuner.configs = [type(like)(**{name: setting[name] for name in ("kwargs", "num_warps", "num_stages", "num_ctas")})]
