"""Vocabulary losses fused with the projections, against plain formulas in float64 and autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gendistill.distill import divergences
from gendistill.distill.divergences import VocabularyLoss

CHUNK, WORDS, ROWS, TEACHER_ROWS = 16, 45, 50, 53  # both embeddings are padded, each in its own way
OBJECTIVES = [
    {"forward_kl": 1.0},
    {"reverse_kl": 1.0},
    {"jensen_shannon": 1.0},
    {"cross_entropy": 1.0},
    {"forward_kl": 0.7, "reverse_kl": 0.2, "jensen_shannon": 1.3, "cross_entropy": 0.05},
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(divergences, "CHUNK", CHUNK)


def plain(name, student, teacher, targets, temperature):
    """[n]: the loss of each token by its definition; logits [n, V] without padding."""

    def kl(a, b):
        return (a * (a / b).log()).sum(-1)

    if name == "cross_entropy":
        return F.cross_entropy(student, targets, reduction="none")
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    m = (p + q) / 2
    values = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jensen_shannon": (kl(p, m) + kl(q, m)) / 2}
    return values[name] * temperature**2


def problem(tokens, dtype=torch.float64, teacher=True):
    """Arguments of VocabularyLoss up to its settings; student and teacher are of different widths."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, 12), (ROWS, 12), (tokens, 7), (TEACHER_ROWS, 7)]
    hidden, weight, *others = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    targets = torch.randint(WORDS, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator) * (torch.rand(tokens, generator=generator) < 0.7)
    others = others if teacher else [None, None]
    return hidden.requires_grad_(), weight.requires_grad_(), *others, targets, weights


def fused(arguments, terms, temperature=1.0):
    settings = {"terms": terms, "vocabulary": WORDS, "temperature": temperature}
    return VocabularyLoss.apply(*arguments, settings, False)


def by_definition(arguments, terms, temperature=1.0):
    """Sum of each term, in float64."""
    hidden, weight, teacher_hidden, teacher_weight, targets, weights = arguments
    logits = (hidden @ weight.T)[:, :WORDS]
    teacher = None if teacher_hidden is None else (teacher_hidden @ teacher_weight.T)[:, :WORDS]
    return torch.stack([(plain(name, logits, teacher, targets, temperature) * weights).sum() for name in terms])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("tokens", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7])
@pytest.mark.parametrize("terms", OBJECTIVES, ids=lambda terms: "+".join(terms))
def test_values_and_gradients_are_those_of_the_formula(terms, tokens, temperature):
    arguments = problem(tokens, teacher=set(terms) != {"cross_entropy"})
    sums = by_definition(arguments, terms, temperature)
    mixture = sum(weight * value for weight, value in zip(terms.values(), sums, strict=True))
    loss, got = fused(arguments, terms, temperature)
    torch.testing.assert_close(got, sums.detach())
    torch.testing.assert_close(loss, mixture)
    trained = arguments[:2]
    # The loss is scaled before it goes backward, so a gradient that ignores what comes from above is wrong.
    for a, b in zip(torch.autograd.grad(0.3 * loss, trained), torch.autograd.grad(0.3 * mixture, trained), strict=True):
        torch.testing.assert_close(a, b)
    assert tokens == 0 or got.abs().min() > 1e-3, "the comparison would see nothing"


@pytest.mark.parametrize("terms", OBJECTIVES, ids=lambda terms: "+".join(terms))
def test_padding_of_the_vocabulary_has_no_part(terms):
    """However large the rows beyond the last word: they change nothing and get no gradient, in either model."""
    outcomes = []
    for size in (0.0, 1e4):
        arguments = problem(CHUNK + 3)
        with torch.no_grad():
            arguments[1][WORDS:] = size
            arguments[3][WORDS:] = -size
        loss, _ = fused(arguments, terms, 2.0)
        outcomes.append((loss.detach(), *torch.autograd.grad(loss, arguments[:2])))
    for a, b in zip(*outcomes, strict=True):
        assert torch.equal(a, b)
    assert (outcomes[1][2][WORDS:] == 0).all() and (outcomes[1][2][:WORDS] != 0).any(1).all()


def test_what_does_not_train_gets_no_gradient():
    arguments = problem(CHUNK + 3)
    arguments[1].requires_grad_(False)
    loss, sums = fused(arguments, {"forward_kl": 1.0})
    assert not sums.requires_grad
    loss.backward()
    assert arguments[0].grad is not None and arguments[1].grad is None


def test_the_square_of_the_temperature_keeps_the_size_of_the_gradient():
    """At high temperature the gradient tends to (z_student - z_teacher) / V for centred logits, whatever T is."""
    sizes = {}
    for temperature in (100.0, 1000.0):
        arguments = problem(5)
        loss, _ = fused(arguments, {"forward_kl": 1.0}, temperature)
        sizes[temperature] = torch.autograd.grad(loss, arguments[0])[0].norm().item()
    assert sizes[1000.0] == pytest.approx(sizes[100.0], rel=0.05)


@pytest.mark.parametrize("terms", OBJECTIVES, ids=lambda terms: "+".join(terms))
def test_half_precision_is_summed_in_float32(terms):
    """Only the logits are rounded: sums over many tokens lose nothing more."""
    arguments = problem(40 * CHUNK, torch.bfloat16)
    loss, sums = fused(arguments, terms)
    assert loss.dtype == sums.dtype == torch.float32
    hidden, weight, teacher_hidden, teacher_weight, targets, weights = arguments
    logits, teacher = ((h @ w.T).double()[:, :WORDS] for h, w in [(hidden, weight), (teacher_hidden, teacher_weight)])
    expected = [(plain(name, logits, teacher, targets, 1.0) * weights).sum().item() for name in terms]
    assert sums.tolist() == pytest.approx(expected, rel=1e-5)


def test_logits_exist_a_chunk_at_a_time():
    class Tallest(TorchDispatchMode):
        tokens = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] in (WORDS, ROWS, TEACHER_ROWS):
                self.tokens = max(self.tokens, out.shape[0])
            return out

    arguments = problem(20 * CHUNK)
    with Tallest() as seen:
        fused(arguments, OBJECTIVES[-1])[0].backward()
    assert seen.tokens == CHUNK
