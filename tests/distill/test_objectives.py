"""Objectives on whole models against plain formulas with autograd; the losses over the vocabulary have a file to
themselves."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from gendistill.distill.batches import Loader
from gendistill.distill.objectives import Alignment, build_objective
from gendistill.distill.roles import set_trainable
from gendistill.names import OBJECTIVES, Objective
from gendistill.ops import Documents
from small_models import make_student, make_teacher

ROWS, WORDS, SCALE = 3, 90, 0.25  # the embedding has 97 rows
END_TO_END = [
    *({name: 1.0} for name in ("forward_kl", "reverse_kl", "jensen_shannon", "cross_entropy")),
    {"hidden_l2": 1.0},
    {"hidden_cosine": 1.0},
    {"hidden_l2": 0.3, "forward_kl": 1.0, "cross_entropy": 0.02, "hidden_cosine": 0.6},
]
ALIGNMENT = [
    {f"{place}_{kind}": weight for kind, weight in kinds.items()}
    for place in ("mixer", "block")
    for kinds in ({"l2": 1.0}, {"cosine": 1.0}, {"cosine": 0.3, "l2": 2.0})
]
named = dict(ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value))


@pytest.fixture
def models():
    """In float64; two mixers below and above the attention layer, one of them last."""
    return make_teacher("qwen3").double().requires_grad_(False), make_student("qwen3").double().train()


@pytest.fixture
def batch_of(rows):
    def make(stage, dataset=None):
        (batch,) = Loader(dataset or rows(ROWS, words=WORDS), stage).step(0).batches
        return batch

    return make


@contextmanager
def block_outputs(model):
    """The outputs of the model's layers, one after another."""
    seen = []
    hooks = [layer.register_forward_hook(lambda *call: seen.append(call[-1])) for layer in model.model.layers]
    yield seen
    for hook in hooks:
        hook.remove()


def distances(name, got, wanted, power):
    """Of each token, by definition."""
    if name.endswith("l1"):  # not in the package: see the test of a new distance
        return (got - wanted).abs().mean(-1) / power**0.5
    if name.endswith("l2"):
        return ((got - wanted) ** 2).mean(-1) / power
    return 1 - (got * wanted).sum(-1) / (got.norm(dim=-1) * wanted.norm(dim=-1))


def words(name, student, teacher, target, temperature):
    """Loss of one token: logits [V], without padding."""
    if name == "cross_entropy":
        return -student.log_softmax(-1)[target]
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    m = (p + q) / 2
    parts = {
        "forward_kl": [(1, p, q)],
        "reverse_kl": [(1, q, p)],
        "jensen_shannon": [(0.5, p, m), (0.5, q, m)],
    }
    return temperature**2 * sum(share * (a * (a / b).log()).sum() for share, a, b in parts[name])


def end_to_end_by_definition(terms, temperature, data, teacher, student, powers):
    """[terms]: sums over loss tokens, each predicted by the position before it."""
    inputs = dict(input_ids=data.ids, position_ids=data.positions, use_cache=False)
    with block_outputs(teacher) as teacher_states, block_outputs(student) as states:
        wanted, got = (model(**inputs).logits[..., :WORDS] for model in (teacher, student))
    sums = dict.fromkeys(terms, 0.0)
    for row, t in data.mask.nonzero().tolist():
        before = (row, t - 1)
        for name in terms:
            if name.startswith("hidden"):
                layers = (
                    distances(name, states[i][before], teacher_states[i][before], x["hidden_mean_square"])
                    for i, x in powers.items()
                )
                sums[name] = sums[name] + sum(layers) / len(powers)
            else:
                sums[name] = sums[name] + words(name, got[before], wanted[before], data.ids[row, t], temperature)
    return torch.stack(list(sums.values()))


def alignment_by_definition(terms, data, teacher, student, powers):
    """[terms]: sums over tokens that are learnt or predict one that is, of the means over layers."""
    documents, positions = Documents.from_position_ids(data.positions), data.positions
    document = (positions == 0).cumsum(1)
    mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
    valid_mask = data.mask.clone()
    valid_mask[:, :-1] |= data.mask[:, 1:]
    inputs = teacher.model(
        input_ids=data.ids, position_ids=positions, use_cache=False, output_hidden_states=True
    ).hidden_states
    sums = dict.fromkeys(terms, 0.0)
    for i, power in powers.items():
        block, original, x = student.model.layers[i], teacher.model.layers[i], inputs[i]
        given = dict(position_embeddings=teacher.model.rotary_emb(x, positions), attention_mask=mask)
        for name in terms:
            if name.startswith("mixer"):
                normed = original.input_layernorm(x)
                got, wanted = block.linear_attn(normed, documents=documents)[0], original.self_attn(normed, **given)[0]
                size = power["attention_mean_square"]
            else:
                got, wanted, size = block(x, documents=documents), original(x, **given), power["update_mean_square"]
            sums[name] = sums[name] + distances(name, got, wanted, size)[valid_mask].sum() / len(powers)
    return torch.stack(list(sums.values()))


def check(objective, batch, expected, terms, student):
    """Sums of terms, and the gradient of their mixture times the scale, of every parameter that trains."""
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    mixture = sum(weight * value for weight, value in zip(terms.values(), expected, strict=True))
    wanted = torch.autograd.grad(SCALE * mixture, list(trained.values()), allow_unused=True)
    got = objective.backward(batch, torch.tensor(SCALE))
    # Layers round some numbers to float32 on the way, so the two ways here differ by that.
    torch.testing.assert_close(got.double(), expected.detach(), rtol=1e-5, atol=0)
    reached = 0
    for (name, parameter), gradient in zip(trained.items(), wanted, strict=True):
        if gradient is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        reached += 1
        assert (parameter.grad - gradient).norm() <= 1e-4 * gradient.norm() + 1e-12, name
    return reached


@pytest.mark.parametrize(
    ("terms", "temperature"),
    [(terms, 1.0) for terms in END_TO_END] + [(terms, 2.0) for terms in END_TO_END if any("kl" in t for t in terms)],
    **named,
)
def test_end_to_end_objectives_are_their_formulas(
    make_stage, rows, models, batch_of, conversion_report, terms, temperature
):
    teacher, student = models
    set_trainable(student, ["mixer", "mlp", "norm", "attention", "embedding"])
    measured = conversion_report(student)
    stage = make_stage(objective=terms, temperature=temperature, sequences_per_step=ROWS, micro_batch=ROWS)
    data = rows(ROWS, words=WORDS)
    powers = {layer["layer"]: layer for layer in measured["layers"]}
    expected = end_to_end_by_definition(terms, temperature, data, teacher, student, powers)
    objective = build_objective(stage, teacher, student, measured, vocabulary=WORDS)
    reached = check(objective, batch_of(stage, data), expected, terms, student)
    everything = sum(p.requires_grad for p in student.parameters())
    assert reached == everything - (not objective.settings["terms"])  # hidden states say nothing of the final norm
    if set(terms) == {"cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon"} & set(terms):
        assert not student.lm_head.weight.grad[WORDS:].any(), "padding of the vocabulary must not move"


@pytest.mark.parametrize("terms", ALIGNMENT, **named)
def test_alignment_objectives_are_their_formulas(make_stage, rows, models, batch_of, conversion_report, terms):
    teacher, student = models
    set_trainable(student, ["mixer"])
    measured = conversion_report(student)
    stage = make_stage(objective=terms, train=["mixer"], sequences_per_step=ROWS, micro_batch=ROWS)
    data = rows(ROWS)
    powers = {layer["layer"]: layer for layer in measured["layers"]}
    expected = alignment_by_definition(terms, data, teacher, student, powers)
    objective = build_objective(stage, teacher, student, measured, vocabulary=WORDS)
    assert check(objective, batch_of(stage, data), expected, terms, student) > 50


@pytest.mark.parametrize(
    ("place", "matches"), [("hidden", "hidden_states"), ("mixer", "mixer_output"), ("block", "block_output")]
)
def test_a_new_distance_is_one_row(make_stage, rows, models, batch_of, conversion_report, monkeypatch, place, matches):
    name, teacher, student = f"{place}_l1", *models
    row = Objective("mean absolute error", matches, lambda x, y, mean_square: (x - y).abs().mean(-1) / mean_square**0.5)
    settings = dict(objective={name: 0.5}, train=["mixer"], sequences_per_step=ROWS, micro_batch=ROWS)
    with pytest.raises(ValueError, match=f"unknown objective '{name}'"):
        make_stage(**settings)
    monkeypatch.setitem(OBJECTIVES, name, row)
    stage, data, measured = make_stage(**settings), rows(ROWS, words=WORDS), conversion_report(student)
    set_trainable(student, stage.train)
    layers = {layer["layer"]: layer for layer in measured["layers"]}
    if stage.compares == "end_to_end":
        expected = end_to_end_by_definition(stage.terms, 1.0, data, teacher, student, layers)
    else:
        expected = alignment_by_definition(stage.terms, data, teacher, student, layers)
    objective = build_objective(stage, teacher, student, measured, vocabulary=WORDS)
    assert check(objective, batch_of(stage, data), expected, stage.terms, student) > 20


def test_the_first_answer_token_is_predicted_by_the_position_before_it(
    make_stage, rows, models, batch_of, conversion_report
):
    """And the first token of a row by nothing, even if the data say that it counts."""
    teacher, student = models
    data = rows(2, words=WORDS)
    data.positions[:] = torch.arange(data.positions.shape[1])
    data.mask[:] = False
    data.mask[1, 0] = data.mask[0, 5] = True
    stage = make_stage(objective="cross_entropy", sequences_per_step=2, micro_batch=2)
    set_trainable(student, stage.train)
    got = build_objective(stage, teacher, student, conversion_report(student), WORDS).backward(
        batch_of(stage, data), torch.tensor(1.0)
    )
    logits = student(input_ids=data.ids, use_cache=False).logits[0, :, :WORDS]
    by_position = F.cross_entropy(logits, data.ids[0, 5].expand(len(logits)), reduction="none")
    assert got.item() == pytest.approx(by_position[4].item(), rel=1e-5)
    assert by_position[4].item() != pytest.approx(by_position[5].item(), rel=1e-3)


@pytest.mark.parametrize("terms", [*END_TO_END[-1:], {"block_l2": 1.0}], **named)
def test_a_micro_batch_without_loss_tokens_adds_nothing(make_stage, rows, models, batch_of, conversion_report, terms):
    teacher, student = models
    stage = make_stage(objective=terms, train=["mixer"], sequences_per_step=2, micro_batch=2)
    set_trainable(student, stage.train)
    data = rows(2, words=WORDS)
    data.mask[:] = False
    sums = build_objective(stage, teacher, student, conversion_report(student), WORDS).backward(
        batch_of(stage, data), torch.tensor(1.0)
    )
    assert sums.tolist() == [0.0] * len(terms)
    assert not any(p.grad.any() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("terms", [*END_TO_END[-1:], {"block_l2": 1.0}], **named)
def test_batches_of_fixed_shape_give_the_same(make_stage, rows, conversion_report, terms):
    """Entries that only fill up count for nothing."""
    stage = make_stage(objective=terms, train=["mixer"], sequences_per_step=ROWS, micro_batch=ROWS)
    teacher, outcomes = make_teacher("qwen3").double(), []
    for fixed_shape in (False, True):
        student = make_student("qwen3").double()
        set_trainable(student, stage.train)
        (batch,) = Loader(rows(ROWS, words=WORDS), stage, fixed_shape=fixed_shape).step(0).batches
        assert fixed_shape == (batch.weights == 0).any()
        objective = build_objective(stage, teacher, student, conversion_report(student), WORDS)
        sums = objective.backward(batch, torch.tensor(SCALE))
        outcomes.append([sums, *(p.grad for p in student.parameters() if p.requires_grad)])
    torch.testing.assert_close(*outcomes, rtol=1e-5, atol=1e-8)


def test_cross_entropy_runs_no_teacher(make_stage, models, batch_of, conversion_report):
    teacher, student = models
    stage = make_stage(objective="cross_entropy", sequences_per_step=ROWS, micro_batch=ROWS)
    set_trainable(student, stage.train)
    teacher.model.forward = None
    objective = build_objective(stage, teacher, student, conversion_report(student), WORDS)
    assert objective.teacher is None and objective.backward(batch_of(stage), torch.tensor(1.0)) > 0


def test_layers_are_aligned_one_by_one(make_stage, batch_of, conversion_report):
    """Each sees the teacher's input, so its gradient is the same to the bit whatever the layers below it do."""
    teacher = make_teacher("qwen3").requires_grad_(False)
    stage = make_stage(objective="mixer_l2", train=["mixer"], sequences_per_step=ROWS, micro_batch=ROWS)
    gradients = []
    for spoil in (False, True):
        student = make_student("qwen3")
        if spoil:
            with torch.no_grad():
                student.model.layers[0].linear_attn.o_proj.weight.mul_(-3)
        set_trainable(student, stage.train)
        Alignment(teacher, student, stage, conversion_report(student)).backward(batch_of(stage), torch.tensor(1.0))
        gradients.append([student.model.layers[i].linear_attn.q_proj.weight.grad for i in (0, 3)])
    assert not torch.equal(gradients[0][0], gradients[1][0])
    assert gradients[0][1].any() and torch.equal(gradients[0][1], gradients[1][1])


def test_alignment_keeps_the_activations_of_one_layer_only(make_stage, models, batch_of, conversion_report):
    """Tensors saved for a backward pass, alive at once: no more with three layers than with one."""
    teacher, student = models
    stage = make_stage(objective="block_l2", train=["mixer"], sequences_per_step=ROWS, micro_batch=ROWS)
    set_trainable(student, stage.train)

    class Saved:
        alive = most = 0

        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.numel()
            Saved.alive += self.size
            Saved.most = max(Saved.most, Saved.alive)

        def __del__(self):
            Saved.alive -= self.size

    most = []
    for layers in ([0], [0, 2, 3]):
        measured = {"layers": [layer for layer in conversion_report(student)["layers"] if layer["layer"] in layers]}
        objective, Saved.alive, Saved.most = Alignment(teacher, student, stage, measured), 0, 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            objective.backward(batch_of(stage), torch.tensor(1.0))
        most.append(Saved.most)
    assert most[0] == pytest.approx(most[1], rel=0.01)
