"""What a teacher's layers see and say, recorded while it runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass
class LayerRecord:
    """Tensors [B, T, hidden] of one teacher layer in its last forward pass."""

    attention_input: torch.Tensor | None = None
    attention_output: torch.Tensor | None = None
    block_input: torch.Tensor | None = None
    block_output: torch.Tensor | None = None


@contextmanager
def record_layers(teacher: PreTrainedModel, layers: Iterable[int]) -> Iterator[dict[int, LayerRecord]]:
    """Records the given layers in every forward pass inside the block; a record holds the last pass only."""
    records = {i: LayerRecord() for i in layers}

    def watch(record: LayerRecord, block: torch.nn.Module) -> list:
        def on_attention(_module, args, kwargs, output):
            record.attention_input = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            record.attention_output = output[0]

        def on_block(_module, args, kwargs, output):
            record.block_input = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            record.block_output = output

        attention = block.self_attn.register_forward_hook(on_attention, with_kwargs=True)
        return [attention, block.register_forward_hook(on_block, with_kwargs=True)]

    hooks = [hook for i, record in records.items() for hook in watch(record, teacher.model.layers[i])]
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()
