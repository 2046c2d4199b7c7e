"""What a mixer must know of a step of vLLM: which requests decode one token, and which bring a piece of a prompt."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.utils import mamba_get_block_table_tensor, split_decodes_and_prefills


class Piece(NamedTuple):
    """A request's tokens of this step, `start` to `stop` among all requests', behind `computed` earlier ones."""

    start: int
    stop: int
    computed: int
    place: torch.Tensor  # [1] int64, where its states lie


@dataclass
class MixerMetadata:
    """Requests with one token come first, in the order of the batch.

    Attributes:
        decodes: how many those are; a graph's filling is among them.
        places: [decodes] int64, where their states lie; always in the same tensor, for a graph's sake.
        pieces: the other requests.
    """

    decodes: int
    places: torch.Tensor
    pieces: list[Piece]


class MixerMetadataBuilder(AttentionMetadataBuilder[MixerMetadata]):
    """Makes the metadata of a step."""

    reorder_batch_threshold: int = 1
    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.layers = vllm_config.compilation_config.static_forward_context
        self.places = torch.zeros(vllm_config.scheduler_config.max_num_seqs, dtype=torch.int64, device=device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> MixerMetadata:
        batch = common_attn_metadata
        mode = self.vllm_config.cache_config.mamba_cache_mode
        table = mamba_get_block_table_tensor(batch.block_table_tensor, batch.seq_lens, self.kv_cache_spec, mode)
        places = table[:, 0]
        decodes, prefills, _, _ = split_decodes_and_prefills(batch, decode_threshold=1)
        self.places[:decodes].copy_(places[:decodes], non_blocking=True)
        starts, lengths = batch.query_start_loc_cpu.tolist(), batch.seq_lens_cpu_upper_bound.tolist()
        self._empty(places, [i for i in range(decodes) if lengths[i] == 1])
        pieces = []
        for i in range(decodes, decodes + prefills):
            start, stop = starts[i], starts[i + 1]
            if start < stop:  # filling has no tokens
                pieces.append(Piece(start, stop, lengths[i] - (stop - start), places[i : i + 1].long()))
        return MixerMetadata(decodes, self.places[:decodes], pieces)

    def _empty(self, places: torch.Tensor, rows: list[int]) -> None:
        """Empties the blocks of prompts of one token, which decode though they go on from nothing.

        Another request has left its states there. It is done here, since a graph of steps knows no such request.
        """
        for name in self.layer_names if rows else []:
            for blocks in self.layers[name].kv_cache:
                blocks[places[rows].long()] = 0


class MixerBackend(AttentionBackend):
    """Names the builder; the layer itself computes."""

    @staticmethod
    def get_name() -> str:
        return "GENDISTILL_MIXER"

    @staticmethod
    def get_builder_cls() -> type[MixerMetadataBuilder]:
        return MixerMetadataBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        return True
