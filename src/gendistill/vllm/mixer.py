"""A linear layer in vLLM: the student's own module on one rank's heads, its states where vLLM keeps them.

Shapes: T tokens of a step, all requests' one after another; N requests that decode one token each.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from gendistill.inference.packed import PackedMixer, joint_projections
from gendistill.inference.prefill_pass import mix_piece
from gendistill.inference.step import Place, mix_token
from gendistill.models.configuration import GendistillConfig
from gendistill.models.mixers.layer import LinearAttention
from gendistill.models.mixers.window import WindowAttention
from gendistill.ops.decode_linear import decode_linear
from gendistill.vllm.backend import MixerBackend, MixerMetadata, Piece
from gendistill.vllm.shares import layer_of_rank, share_of
from gendistill.vllm.states import RING, cache_of, layer_states, states_of, student_states


class StudentMixer(nn.Module, MambaBase):
    """[T, hidden] -> [T, hidden] with any mixer of gendistill's, a window among them.

    Attributes:
        mixer: the student's module with this rank's heads.
        packed: its weights as prefill and decoding read them, once they are loaded.
        kv_cache: [blocks, ...] of each of the student's states, set by vLLM.
    """

    def __init__(self, config: GendistillConfig, vllm_config: VllmConfig, layer: int, prefix: str):
        super().__init__()
        self.config, self.prefix = config, prefix
        self.rank, self.ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        self.dtype = vllm_config.model_config.dtype
        local = layer_of_rank(config, layer, self.ranks)
        self.window, self.sinks = local.window, local.sinks
        self.mixer = WindowAttention(local, 0) if local.mixers == ["window"] else LinearAttention(local, 0)
        self.packed: PackedMixer | None = None
        self.rotary_emb = None if local.window is None else LlamaRotaryEmbedding(local)
        self.names = [state.name for state in student_states(config, self.dtype, self.ranks)]
        self.own = [state.name for state in layer_states(config, layer, self.dtype, self.ranks)]
        layers = vllm_config.compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"there are two layers called {prefix}")
        layers[prefix] = self

    def load(self, name: str, tensor: torch.Tensor) -> None:
        """Takes this rank's share of a parameter, by its name in the layer."""
        share = share_of(name, tensor, self.config, self.rank, self.ranks)
        with torch.no_grad():
            self.mixer.get_parameter(name).copy_(share)
        self.packed = None  # some of it is a copy

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(hidden_states)
        torch.ops.vllm.gendistill_mixer(hidden_states, positions, output, self.prefix)
        return output if self.ranks == 1 else tensor_model_parallel_all_reduce(output)

    def mix(self, hidden_states: torch.Tensor, positions: torch.Tensor, output: torch.Tensor) -> None:
        """Writes what the mixer makes of all requests' tokens into `output` [T, hidden]."""
        if self.packed is None:  # weights are loaded by now
            self._pack()
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # memory is measured, before there are states
            self._write(Piece(0, len(hidden_states), 0, None), {}, hidden_states, positions, output)
            return
        step: MixerMetadata = metadata[self.prefix]
        held = dict(zip(self.names, self.kv_cache, strict=True))
        held = {name: held[name] for name in self.own}  # [blocks, ...]
        if step.decodes:
            self._decode(held, step, hidden_states, positions, output)
        for piece in step.pieces:
            self._prefill(held, piece, hidden_states, positions, output)

    def _pack(self) -> None:
        """Puts the projections side by side; the module's own become views, so that no weight is held twice."""
        self.packed = PackedMixer(self.mixer)
        of_projections = [self.packed.weight] if self.packed.bias is None else [self.packed.weight, self.packed.bias]
        start = 0
        for projection in joint_projections(self.mixer):
            rows = slice(start, start := start + projection.out_features)
            for parameter, joint in zip((projection.weight, projection.bias), of_projections, strict=False):
                if parameter is not None:
                    parameter.data = joint[rows]

    def _decode(self, held: dict, step: MixerMetadata, hidden_states, positions, output) -> None:
        """The first tokens, one of each request; `held` has the blocks [blocks, ...] of each state."""
        position = positions[: step.decodes]  # [N]
        # A recurrence finds its states in their blocks; rings are brought together.
        rings = {name: held[name][step.places] for name in held if name in RING}  # [N, ...]
        (cache,) = cache_of(held | rings, position, None).layers
        x = hidden_states[: step.decodes]
        rope = None if self.rotary_emb is None else self.rotary_emb(x, position[:, None])
        where = Place.of(position, rope, self.window, self.sinks)
        projected = decode_linear(x, self.packed.weight, self.packed.bias)
        o = mix_token(self.packed, cache, projected, where, step.places)
        output[: step.decodes] = F.linear(o, self.packed.output.weight, self.packed.output.bias)
        for name, ring in rings.items():  # all but one token's place is as it was
            row = torch.arange(len(ring), device=ring.device)
            held[name][step.places, :, where.ring_place] = ring[row, :, where.ring_place]

    def _prefill(self, held: dict, piece: Piece, hidden_states, positions, output) -> None:
        """One request's tokens, however many."""
        states = {} if piece.computed == 0 else {name: blocks[piece.place] for name, blocks in held.items()}
        for name, state in self._write(piece, states, hidden_states, positions, output).items():
            held[name][piece.place] = state

    def _write(self, piece: Piece, states: dict, hidden_states, positions, output) -> dict[str, torch.Tensor]:
        """Writes a piece's output; returns its new states [1, ...]."""
        rows = slice(piece.start, piece.stop)
        inputs = hidden_states[None, rows]
        cache = cache_of(states, positions[rows][:1].clone(), piece.computed)
        rope = None
        if self.rotary_emb is not None:
            rope = tuple(part[0] for part in self.rotary_emb(inputs, positions[None, rows]))  # [T, D] each
        o = mix_piece(self.packed, cache.layers[0], inputs, piece.computed, rope, None)
        output[rows] = F.linear(o, self.packed.output.weight, self.packed.output.bias)[0]
        return states_of(cache)

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return tuple(state.shape for state in student_states(self.config, self.dtype, self.ranks))

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return tuple(state.dtype for state in student_states(self.config, self.dtype, self.ranks))

    def get_attn_backend(self) -> type[MixerBackend]:
        return MixerBackend

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.LINEAR  # the nearest of vLLM's own; the backend above is what runs


def gendistill_mixer(
    hidden_states: torch.Tensor, positions: torch.Tensor, output: torch.Tensor, layer_name: str
) -> None:
    """The operation that vLLM's graphs are split at."""
    get_forward_context().no_compile_layers[layer_name].mix(hidden_states, positions, output)


def _gendistill_mixer_fake(
    hidden_states: torch.Tensor, positions: torch.Tensor, output: torch.Tensor, layer_name: str
) -> None:
    return


direct_register_custom_op(
    op_name="gendistill_mixer",
    op_func=gendistill_mixer,
    mutates_args=["output"],
    fake_impl=_gendistill_mixer_fake,
)
