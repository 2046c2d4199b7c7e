"""Inputs and outputs of a teacher's layers, recorded while it runs, and a student's mixers run on the same inputs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from gendistill.models.modeling import GendistillForCausalLM
from gendistill.ops import Documents


@dataclass
class LayerRecord:
    """Tensors [B, T, hidden] of one teacher layer in its last forward pass."""

    attention_input: torch.Tensor | None = None
    attention_heads: torch.Tensor | None = None  # [B, T, heads * head_dim], before the output projection
    attention_output: torch.Tensor | None = None
    block_input: torch.Tensor | None = None
    block_output: torch.Tensor | None = None


@contextmanager
def record_layers(teacher: PreTrainedModel, layers: Iterable[int]) -> Iterator[dict[int, LayerRecord]]:
    """Records the given layers in every forward pass inside the block; a record holds the last pass only."""
    records = {i: LayerRecord() for i in layers}

    def watch(record: LayerRecord, block: torch.nn.Module) -> list:
        # transformers' layers pass hidden states by position or by name, which differs between families.
        def on_attention(_module, args, kwargs, output):
            record.attention_input = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            record.attention_output = output[0]  # beside it are the weights

        def on_block(_module, args, kwargs, output):
            record.block_input = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            record.block_output = output

        def on_projection(_module, args):
            record.attention_heads = args[0]

        return [
            block.self_attn.register_forward_hook(on_attention, with_kwargs=True),
            block.self_attn.o_proj.register_forward_pre_hook(on_projection),
            block.register_forward_hook(on_block, with_kwargs=True),
        ]

    hooks = [hook for i, record in records.items() for hook in watch(record, teacher.model.layers[i])]
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Pair:
    """A mixer beside the attention it replaces, both fed the teacher's input to that layer."""

    layer: int
    teacher: LayerRecord
    mixer_heads: torch.Tensor  # [B, T, heads * head_dim], before the output projection
    mixer_output: torch.Tensor  # [B, T, hidden]


def recorded(
    teacher: PreTrainedModel, batches: Iterable[dict[str, torch.Tensor]], layers: Sequence[int]
) -> Iterator[tuple[dict[str, torch.Tensor], dict[int, LayerRecord]]]:
    """Runs the teacher over batches of input_ids and position_ids [B, T]: each batch, and records of the layers.

    Args:
        layers: to be recorded; none: nothing is run.
    """
    for batch in batches:
        if not layers:
            return
        with record_layers(teacher, layers) as records:
            # The body alone: logits of all tokens would be the largest tensor, and they are not needed.
            teacher.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        yield batch, records


def side_by_side(
    teacher: PreTrainedModel,
    student: GendistillForCausalLM,
    batches: Iterable[dict[str, torch.Tensor]],
    layers: Sequence[int],
) -> Iterator[Pair]:
    """Runs the teacher over batches of input_ids and position_ids [B, T], and mixers of the student beside it.

    Args:
        layers: whose mixers; none: nothing is run.
    """
    for batch, records in recorded(teacher, batches, layers):
        documents = Documents.from_position_ids(batch["position_ids"])
        first = records[layers[0]].attention_input
        positions = student.model.rotary_emb(first, batch["position_ids"])  # for windows
        for i, record in records.items():
            # The mixer's output before its projection is no result of its forward pass: a hook catches it.
            mixer, heads = student.model.layers[i].linear_attn, []
            hook = mixer.o_proj.register_forward_pre_hook(lambda _, args, heads=heads: heads.append(args[0]))
            output, _ = mixer(record.attention_input, documents=documents, position_embeddings=positions)
            hook.remove()
            yield Pair(i, record, heads[0], output)
