"""A teacher run layer by layer, for many sets of kept layers at once.

A set of kept layers says for each layer whether its attention is the teacher's own or what stands in for it. Two sets
that agree in all layers below some layer have the same hidden states there, so those are computed once: at each layer
there is one state for each different beginning of the sets, and all states that go the same way go as one batch.

Shapes: N prompts, T tokens, D channels of a hidden state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from gendistill.distributed import WHOLE, Share, dealt
from gendistill.errors import UserError
from gendistill.models.attention import attention_switched_to
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.names import look_up
from gendistill.placement.window import WINDOWED

Kept = tuple[int, ...]  # 0-based layers, in their order
TOKENS_AT_ONCE = 2**16  # through one layer; a GPU is busy with fewer, and an MLP's activations are the largest tensor
STATES_BYTES = 4 * 2**30  # of hidden states held at once, beside some copies of them


@dataclass(frozen=True)
class Others:
    """What stands in for attention in the layers that do not keep it.

    Attributes:
        kind: "window", "silenced" or "mixer".
        window, sinks: of kind window.
        student: of kind mixer, with a mixer in every layer.
    """

    kind: str
    window: int = 0
    sinks: int = 0
    student: GendistillForCausalLM | None = None


class Layerwise:
    """The teacher and what stands in for its attention.

    Args:
        share: this process's of the work. All processes run the same sets, and each computes some of the batches, which
            are the same whatever their number: so are the states, to the bit.

    Attributes:
        evaluations: how often a layer has been run over all prompts.
    """

    def __init__(self, teacher: PreTrainedModel, others: Others, share: Share = WHOLE):
        self.teacher, self.others, self.share = teacher, others, share
        self.layers = list(teacher.model.layers)
        kinds: dict[str, Callable] = {"window": self._window, "silenced": self._silenced, "mixer": self._mixer}
        self.stand_in = look_up(kinds, others.kind, "kind of other layers")
        self.evaluations = 0

    def sets_at_once(self, input_ids: torch.Tensor) -> int:
        """How many sets fit into memory together; the same on every machine, for rounding depends on it."""
        state = input_ids.numel() * self.teacher.config.hidden_size * self.teacher.dtype.itemsize
        return max(1, STATES_BYTES // state)

    @torch.inference_mode()
    def last_states(self, input_ids: torch.Tensor, sets: Sequence[Kept]) -> dict[Kept, torch.Tensor]:
        """Hidden states behind the last layer, [N, T, D] of each set; the final norm is not applied.

        Args:
            input_ids: [N, T]; what follows a prompt is padding, which changes nothing before it.
        """
        with attention_switched_to(WINDOWED, self.teacher):
            embedded, rope = self._embedded(input_ids)
            # By what the sets have kept so far: one state for all that begin alike.
            states: dict[Kept, torch.Tensor] = {(): embedded}
            for index in range(len(self.layers)):
                states = self._through_layer(index, states, sets, rope)
        return states

    def gated_states(self, input_ids: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """Hidden states behind the last layer [N, T, D], where each layer adds attention times its gate and what stands
        in for it times the rest; gradients reach the gates.

        Args:
            gates: [layers], from 0 to 1.
        """
        with attention_switched_to(WINDOWED, self.teacher):
            x, rope = self._embedded(input_ids)
            for index, gate in enumerate(gates.to(x.dtype)):

                def mixed(index: int, normed: torch.Tensor, rope, gate=gate) -> torch.Tensor:
                    kept, other = (attend(index, normed, rope) for attend in (self._attention, self.stand_in))
                    return gate * kept + (1 - gate) * other

                x = self._block(index, x, mixed, rope)
        return x

    def _embedded(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """The first layer's input [N, T, D], and RoPE's cosines and sines [1, T, head width]."""
        embedded = self.teacher.model.embed_tokens(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        return embedded, self.teacher.model.rotary_emb(embedded, positions)

    def _through_layer(self, index: int, states: dict[Kept, torch.Tensor], sets: Sequence[Kept], rope) -> dict:
        """The states behind a layer: as many as the sets begin in different ways up to it."""
        beginnings = dict.fromkeys(tuple(layer for layer in kept if layer <= index) for kept in sets)  # an ordered set
        keeping = [beginning for beginning in beginnings if index in beginning]
        changing = [beginning for beginning in beginnings if index not in beginning]
        after = {}
        for attention, group in ((self._attention, keeping), (self.stand_in, changing)):
            if group:
                before = torch.cat(
                    [states[tuple(i for i in kept if i != index)] for kept in group]
                )  # [group * N, T, D]
                rows = max(1, TOKENS_AT_ONCE // before.shape[1])
                block = partial(self._block, index, attention=attention, rope=rope)
                parts = dealt(before.split(rows), block, self.share)
                after |= zip(group, torch.cat(parts).chunk(len(group)), strict=True)
                self.evaluations += len(group)
        return after

    def _block(self, index: int, x: torch.Tensor, attention: Callable, rope) -> torch.Tensor:
        """One decoder layer, [B, T, D] -> [B, T, D], as all supported families have it."""
        layer = self.layers[index]
        x = x + attention(index, layer.input_layernorm(x), rope)
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def _attention(self, index: int, x: torch.Tensor, rope, **window) -> torch.Tensor:
        return self.layers[index].self_attn(x, position_embeddings=rope, attention_mask=None, **window)[0]

    def _window(self, index: int, x: torch.Tensor, rope) -> torch.Tensor:
        return self._attention(index, x, rope, window=self.others.window, sinks=self.others.sinks)

    def _silenced(self, index: int, x: torch.Tensor, rope) -> torch.Tensor:
        return torch.zeros((), dtype=x.dtype, device=x.device)

    def _mixer(self, index: int, x: torch.Tensor, rope) -> torch.Tensor:
        return self.others.student.model.layers[index].linear_attn(x, position_embeddings=rope)[0]


def check_student(teacher: PreTrainedModel, student: GendistillForCausalLM) -> None:
    """Raises UserError unless a student is the teacher with aligned mixers in all layers, and nothing else trained."""
    if not student.config.is_pure or student.config.num_hidden_layers != teacher.config.num_hidden_layers:
        raise UserError(
            "keep_attention.student: some of its layers keep attention, or it has another number of layers than the "
            "teacher. Give one that was converted with keep_attention: [] and aligned."
        )
    originals = dict(teacher.named_parameters())
    changed = [
        name
        for name, weight in student.named_parameters()
        if ".linear_attn." not in name and not torch.equal(weight, originals[name].to(weight))
    ]
    if changed:
        raise UserError(
            f"keep_attention.student: besides its mixers, {len(changed)} weights are not the teacher's, {changed[0]} "
            "first. Give one after alignment (mixer_l2, block_l2), or of this very teacher."
        )
