"""A new objective is one row: a recipe may name it, and the training step has the gradient of its formula."""

import pytest
import torch
import torch.nn.functional as F

from cli_tools import RECIPE
from gendistill.distill import divergences
from gendistill.distill.batches import Loader
from gendistill.distill.objectives import build_objective, distance_sums
from gendistill.distill.roles import set_trainable
from gendistill.errors import UserError
from gendistill.names import OBJECTIVES, Objective
from gendistill.recipe.loading import parse_recipe
from small_models import make_student, make_teacher

WORDS, SEQUENCES, TEMPERATURE, SCALE = 90, 3, 2.0, 0.25  # the embedding has 97 rows


def chi_square_row(x):
    """sum (p - q)^2 / q, whose gradient by q's logits is written out by hand."""
    values = (x.p * x.p / x.q).sum(-1) - 1
    return values, x.q * (values + 1)[:, None] - x.p * x.p / x.q


def chi_square(student, teacher, targets):
    p, q = (teacher / TEMPERATURE).softmax(-1), (student / TEMPERATURE).softmax(-1)
    return TEMPERATURE**2 * ((p - q) ** 2 / q).sum(-1)


def confidence_row(x):
    """1 - q[target]: of the data alone, at temperature 1."""
    likelihood = x.log_likelihood.exp()
    at_target = likelihood.gather(1, x.targets[:, None])
    return 1 - at_target[:, 0], at_target * (likelihood - x.is_target.to(likelihood.dtype))


def confidence(student, teacher, targets):
    return 1 - student.softmax(-1).gather(1, targets[:, None])[:, 0]


def absolute_error_row(student, teacher, mean_square):
    return (student - teacher).abs().mean(-1) / mean_square**0.5


VOCABULARY = {
    "chi_square": (Objective("chi square", "vocabulary", chi_square_row, divergence=True), chi_square),
    "confidence": (Objective("1 - likelihood", "vocabulary", confidence_row, needs_teacher=False), confidence),
}


@pytest.fixture
def stage_of(monkeypatch):
    """The stage of a recipe whose objective is a row that was not there before."""

    def make(name, row, **settings):
        stages = RECIPE["stages"]
        stage = stages["logit_distillation"] | dict(objective={name: 1.0}, sequences_per_step=SEQUENCES, **settings)
        recipe = RECIPE | dict(stages=stages | dict(logit_distillation=stage | dict(micro_batch=SEQUENCES)))
        with pytest.raises(UserError, match=f"unknown objective '{name}'; .*Known: mixer_l2, .*, hidden_cosine"):
            parse_recipe(recipe, "recipe.yaml")
        monkeypatch.setitem(OBJECTIVES, name, row)
        return parse_recipe(recipe, "recipe.yaml").stages["logit_distillation"]

    return make


@pytest.fixture
def models():
    """In float64."""
    return make_teacher("qwen3").double().requires_grad_(False), make_student("qwen3").double().train()


def check_gradients(student, mixture):
    """Every trained parameter has the gradient that autograd finds for the plain mixture."""
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(SCALE * mixture, list(trained.values()), allow_unused=True)
    reached = 0
    for (name, parameter), gradient in zip(trained.items(), wanted, strict=True):
        if gradient is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        reached += bool(gradient.any())
        # Layers round some numbers to float32 on the way.
        assert (parameter.grad - gradient).norm() <= 1e-4 * gradient.norm() + 1e-12, name
    assert reached > 20


@pytest.mark.parametrize("name", VOCABULARY)
def test_a_loss_over_the_vocabulary_is_one_row(stage_of, models, rows, conversion_report, name):
    row, plain = VOCABULARY[name]
    stage = stage_of(name, row, **(dict(temperature=TEMPERATURE) if row.divergence else {}))
    assert (stage.compares, stage.needs_teacher) == ("end_to_end", row.needs_teacher)
    teacher, student = models
    set_trainable(student, stage.train)
    data = rows(SEQUENCES, words=WORDS)
    (batch,) = Loader(data, stage).step(0).batches
    objective = build_objective(stage, teacher, student, conversion_report(student), WORDS)
    sums = objective.backward(batch, torch.tensor(SCALE))

    inputs = dict(input_ids=data.ids, position_ids=data.positions, use_cache=False)
    predicts = F.pad(data.mask[:, 1:], (0, 1))
    got, wanted = (model(**inputs).logits[..., :WORDS][predicts] for model in (student, teacher))
    expected = plain(got, wanted, data.ids[:, 1:][data.mask[:, 1:]]).sum()
    torch.testing.assert_close(sums.double(), expected.detach()[None], rtol=1e-5, atol=0)
    check_gradients(student, expected)


def test_a_step_of_training_runs_with_new_rows(make_stage, run, monkeypatch):
    """Whatever they are called: no word of a name is looked at."""
    monkeypatch.setitem(OBJECTIVES, "chi_square", VOCABULARY["chi_square"][0])
    monkeypatch.setitem(OBJECTIVES, "off", Objective("absolute error", "hidden_states", absolute_error_row))
    outcome = run(make_stage(objective={"chi_square": 1.0, "off": 0.5, "cross_entropy": 0.1}, steps=2))
    assert list(outcome.history[0].terms) == ["chi_square", "off", "cross_entropy"]
    assert all(value > 0 for value in outcome.history[0].terms.values())


VOCABULARY_TERMS = [name for name, row in OBJECTIVES.items() if row.matches == "vocabulary"]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("terms", [[name] for name in VOCABULARY_TERMS] + [VOCABULARY_TERMS], ids="+".join)
def test_losses_over_the_vocabulary_are_one_graph(terms, temperature):
    """On CUDA they are compiled: a break in the graph would write [tokens, vocabulary] tensors between kernels."""
    torch._dynamo.reset()  # it keeps few variants of a function
    settings = dict(terms=dict.fromkeys(terms, 0.5), vocabulary=WORDS, temperature=temperature)
    compiled = torch.compile(divergences.vocabulary_losses, dynamic=False, fullgraph=True, backend="eager")
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(5, width, generator=draw) for width in (97, 93)]
    targets, weights = torch.randint(WORDS, (5,), generator=draw), torch.rand(5, generator=draw)
    outcomes = []
    for losses in (divergences.vocabulary_losses, compiled):
        student, teacher = (x.clone() for x in logits)
        outcomes.append((losses(student, teacher, targets, weights, **settings), student))
    for a, b in zip(*outcomes, strict=True):
        assert torch.equal(a, b)


def test_distances_are_one_graph():
    torch._dynamo.reset()
    names = tuple(name for name, row in OBJECTIVES.items() if row.matches != "vocabulary")
    compiled = torch.compile(distance_sums, dynamic=False, fullgraph=True, backend="eager")
    inputs = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.tensor(0.3, dtype=torch.float64), torch.ones(2, 3)
    assert torch.equal(compiled(names, *inputs), distance_sums(names, *inputs))
