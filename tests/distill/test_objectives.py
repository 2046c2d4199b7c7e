"""Losses against plain formulas in float64."""

import pytest
import torch
import torch.nn.functional as F

from gendistill.distill import objectives
from gendistill.distill.engine import batches
from gendistill.distill.objectives import Alignment, ChunkedKL, ForwardKL
from gendistill.distill.roles import set_trainable
from small_models import make_student, make_teacher


@pytest.mark.parametrize("tokens", [1, 7, 16, 33])
def test_chunked_kl_equals_the_plain_formula(tokens, monkeypatch):
    monkeypatch.setattr(objectives, "KL_CHUNK", 16)  # lengths below, at and beyond a chunk, and no multiple of it
    torch.manual_seed(0)
    hidden, weight, teacher_hidden, teacher_weight = (
        torch.randn(n, 12, dtype=torch.float64, requires_grad=True) for n in (tokens, 50, tokens, 50)
    )
    got = ChunkedKL.apply(hidden, weight, teacher_hidden.detach(), teacher_weight.detach())
    got_gradients = torch.autograd.grad(got, (hidden, weight))
    log_student = F.log_softmax(hidden @ weight.T, dim=-1)
    log_teacher = F.log_softmax(teacher_hidden @ teacher_weight.T, dim=-1).detach()
    expected = (log_teacher.exp() * (log_teacher - log_student)).sum()
    for a, b in zip(got_gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(got, expected)


def test_kl_counts_the_tokens_of_the_mask_and_no_others(rows):
    """The first answer token is predicted by the position before it: an unshifted mask would drop it."""
    teacher, student = make_teacher("qwen3"), make_student("qwen3")
    batch = next(batches(rows(4), 0, 4, 4, "cpu"))
    set_trainable(student, ["mixer"])
    got = ForwardKL(teacher, student).backward(batch, 1)
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    with torch.no_grad():
        log_teacher = F.log_softmax(teacher(**inputs).logits.double(), dim=-1)
        log_student = F.log_softmax(student(**inputs).logits.double(), dim=-1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    expected = sum(divergence[row, t - 1] for row, t in batch["loss_mask"].nonzero().tolist())
    assert got.item() == pytest.approx(expected.item(), rel=1e-4)
    assert ForwardKL.loss_tokens(batch) == int(batch["loss_mask"].sum())


@pytest.mark.parametrize("whole_block", [False, True])
def test_alignment_is_the_mean_relative_error_of_the_layers(rows, whole_block):
    teacher, student = make_teacher("qwen3"), make_student("qwen3", keep=(1,))
    batch = next(batches(rows(3), 0, 3, 3, "cpu"))
    power = {0: 0.5, 2: 2.0, 3: 1.0}
    set_trainable(student, ["mixer"])
    got = Alignment(teacher, student, power, whole_block).backward(batch, 1)
    with torch.no_grad():
        hidden = teacher.model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, output_hidden_states=True
        ).hidden_states
        expected = 0.0
        for i, scale in power.items():
            block, original = student.model.layers[i], teacher.model.layers[i]
            documents = objectives.Documents.from_position_ids(batch["position_ids"])
            embeddings = teacher.model.rotary_emb(hidden[i], batch["position_ids"])
            positions = batch["position_ids"]
            same = (positions == 0).cumsum(1)
            allowed = (same[:, :, None] == same[:, None, :]).tril()[:, None]
            x = original.input_layernorm(hidden[i])
            attention, _ = original.self_attn(x, position_embeddings=embeddings, attention_mask=allowed)
            if whole_block:
                target = original(hidden[i], position_embeddings=embeddings, attention_mask=allowed)
                output = block(hidden[i], documents=documents)
            else:
                target, output = attention, block.linear_attn(x, documents=documents)[0]
            expected += (output - target).square().mean(-1).sum().item() / scale / len(power)
    assert got.item() == pytest.approx(expected, rel=1e-4)


def test_alignment_layers_are_independent(rows):
    """Each layer sees the teacher's input, so its gradient is the same whatever the layers below it do."""
    teacher = make_teacher("qwen3")
    batch = next(batches(rows(3), 0, 3, 3, "cpu"))
    gradients = []
    for spoil in (False, True):
        student = make_student("qwen3")
        if spoil:
            with torch.no_grad():
                student.model.layers[0].linear_attn.o_proj.weight.mul_(-3)
        set_trainable(student, ["mixer"])
        Alignment(teacher, student, {0: 1.0, 2: 1.0, 3: 1.0}, False).backward(batch, 1)
        gradients.append(student.model.layers[3].linear_attn.q_proj.weight.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)
