"""What a stage minimises. Each objective runs one micro-batch, goes backward and returns its summed loss.

Losses are sums over loss tokens, divided by the loss tokens of the whole step before the backward pass, so a step's
gradient does not depend on how it is cut into micro-batches.
"""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from gendistill.models.capture import record_layers
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.ops import Documents

Batch = dict[str, torch.Tensor]  # input_ids, position_ids, loss_mask: each [B, T]
KL_CHUNK = 2048  # tokens whose logits are in memory at once


class ForwardKL:
    """KL(teacher || student) over next-token distributions, end to end."""

    def __init__(self, teacher: PreTrainedModel, student: GendistillForCausalLM):
        self.teacher, self.student = teacher, student

    @staticmethod
    def loss_tokens(batch: Batch) -> int:
        return int(batch["loss_mask"][:, 1:].sum())

    def backward(self, batch: Batch, step_tokens: int) -> torch.Tensor:
        """Summed loss in nats; gradients of loss / step_tokens are added to the student's parameters."""
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        predicts = batch["loss_mask"][:, 1:].bool()  # hidden state t predicts token t + 1
        with torch.no_grad():
            teacher_hidden = self.teacher.model(**inputs).last_hidden_state[:, :-1][predicts]
        hidden = self.student.model(**inputs).last_hidden_state[:, :-1][predicts]
        loss = ChunkedKL.apply(hidden, self.student.lm_head.weight, teacher_hidden, self.teacher.lm_head.weight)
        (loss / step_tokens).backward()
        return loss.detach()


class ChunkedKL(torch.autograd.Function):
    """Vocabulary projections and forward KL together, a chunk of tokens at a time, gradients ready in the forward pass.

    d KL / d student logits = softmax(student) - softmax(teacher), so the logits need not be kept.
    """

    @staticmethod
    def forward(ctx, hidden, weight, teacher_hidden, teacher_weight):
        """hidden [N, D], weight [V, D], the teacher's alike -> sum of KL over the N tokens, float32 (float64 stays)."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=dtype) if weight.requires_grad else None
        for start in range(0, hidden.shape[0], KL_CHUNK):
            part = slice(start, start + KL_CHUNK)
            log_student = F.log_softmax((hidden[part] @ weight.T).to(dtype), dim=-1)
            log_teacher = F.log_softmax((teacher_hidden[part] @ teacher_weight.T).to(dtype), dim=-1)
            teacher = log_teacher.exp()
            total += (teacher * (log_teacher - log_student)).sum()
            logits_grad = (log_student.exp() - teacher).to(hidden.dtype)
            hidden_grad[part] = logits_grad @ weight
            if weight_grad is not None:
                weight_grad += logits_grad.T @ hidden[part]
        ctx.save_for_backward(hidden_grad, weight_grad if weight_grad is None else weight_grad.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, grad):
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            hidden_grad * grad.to(hidden_grad.dtype),
            None if weight_grad is None else weight_grad * grad.to(weight_grad.dtype),
            None,
            None,
        )


class Alignment:
    """Squared distance between each mixer (or its whole block) and the teacher's, both fed the teacher's own input.

    A layer's error is divided by the teacher's power there, as the certificate measured it, and averaged over layers: 1
    means no better than silence, 0 a perfect copy. Layers go backward one by one, so memory is that of one layer.
    """

    def __init__(
        self, teacher: PreTrainedModel, student: GendistillForCausalLM, power: dict[int, float], whole_block: bool
    ):
        self.teacher, self.student, self.power, self.whole_block = teacher, student, power, whole_block

    @staticmethod
    def loss_tokens(batch: Batch) -> int:
        return batch["input_ids"].numel()

    def backward(self, batch: Batch, step_tokens: int) -> torch.Tensor:
        """Loss summed over tokens; gradients of loss / step_tokens are added to the mixers' parameters."""
        documents = Documents.from_position_ids(batch["position_ids"])
        with torch.no_grad(), record_layers(self.teacher, self.power) as records:
            self.teacher.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        total = torch.zeros((), device=batch["input_ids"].device)
        for i, record in records.items():
            block = self.student.model.layers[i]
            if self.whole_block:
                output, target = block(record.block_input, documents=documents), record.block_output
            else:
                output, target = (
                    block.linear_attn(record.attention_input, documents=documents)[0],
                    record.attention_output,
                )
            error = (output.float() - target.float()).square().mean(-1).sum()
            loss = error / (self.power[i] * len(self.power))
            (loss / step_tokens).backward()
            total += loss.detach()
        return total


Objective = ForwardKL | Alignment


def build_objective(
    name: str, teacher: PreTrainedModel, student: GendistillForCausalLM, certificate: dict
) -> Objective:
    """The objective of a recipe's stage; alignment reads the teacher's power per layer off the certificate."""
    if name == "forward_kl":
        return ForwardKL(teacher, student)
    key = {"mixer_l2": "attention_power", "block_l2": "update_power"}[name]
    power = {layer["layer"]: layer[key] for layer in certificate["layers"]}
    return Alignment(teacher, student, power, whole_block=name == "block_l2")
