"""Scores of sets of kept layers, against passes through the whole model with hooks, prompt by prompt."""

from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from recall_model import LAYERS, MATCH, PREVIOUS, recall_model, recall_prompts

from gendistill.errors import UserError
from gendistill.evaluate.kinds.recall import AnsweredPrompt
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.placement.layerwise import Layerwise, Others, check_student
from gendistill.placement.prompts import Answered
from gendistill.placement.scoring import Scorer
from small_models import FAMILIES, make_student, make_teacher, tokens

ENDS = {1, 5}
SETS = [(), (0,), (2,), (0, 2), (1, 3), (0, 1, 2, 3), (3,)]


def prompts_of(lengths):
    texts = [tokens(1, length + 3, seed=length)[0].tolist() for length in lengths]
    return [AnsweredPrompt(text[:-3], text[-3:]) for text in texts]


def plain_log_p(teacher, ids, kept, others):
    """Log-probabilities [T, V] of one prompt, by transformers' own forward pass."""
    hooks = ExitStack()
    for index, layer in enumerate(teacher.model.layers):
        if index in kept:
            continue
        attention = layer.self_attn
        if others.kind == "silenced":
            hooks.callback(attention.register_forward_hook(lambda _, __, out: (0 * out[0], None)).remove)
        elif others.kind == "window":
            seen = torch.zeros(len(ids), len(ids))
            for query in range(len(ids)):
                for key in range(query + 1):
                    if not (query - key < others.window or key < others.sinks):
                        seen[query, key] = -torch.inf
                seen[query, query + 1 :] = -torch.inf
            mask = seen[None, None].to(teacher.dtype)
            hooks.callback(
                attention.register_forward_pre_hook(
                    lambda _, args, kwargs, mask=mask: (args, kwargs | {"attention_mask": mask}), with_kwargs=True
                ).remove
            )
        else:
            mixer = others.student.model.layers[index].linear_attn
            hooks.callback(
                attention.register_forward_hook(
                    lambda _, args, kwargs, out, mixer=mixer: (
                        mixer(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])[0],
                        None,
                    ),
                    with_kwargs=True,
                ).remove
            )
    with hooks, torch.no_grad():
        return F.log_softmax(teacher(input_ids=torch.tensor([ids])).logits[0].float(), dim=-1)


def plain_score(teacher, prompts, kept, others):
    losses, exact, divergences = [], [], []
    for prompt, answer in prompts:
        log_p = plain_log_p(teacher, prompt + answer, kept, others)[len(prompt) - 1 :]
        whole = plain_log_p(teacher, prompt + answer, range(99), others)[len(prompt) - 1 :]
        losses += [-log_p[place, token].item() for place, token in enumerate(answer)]
        choice = log_p.argmax(-1).tolist()
        exact.append(choice[:-1] == answer and choice[-1] in ENDS)
        divergences += (whole.exp() * (whole - log_p)).sum(-1).tolist()
    return sum(losses) / len(losses), sum(exact) / len(exact), sum(divergences) / len(divergences)


def make_others(kind, family):
    if kind == "mixer":
        return Others(kind, student=make_student(family, keep=(), mixer="gated_deltanet").requires_grad_(False))
    return Others(kind, window=5, sinks=2)


@pytest.mark.parametrize("kind", ["window", "silenced", "mixer"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_scores_are_those_of_a_plain_pass(family, kind):
    teacher, others, prompts = make_teacher(family), make_others(kind, family), prompts_of([9, 23, 14])
    scores = Scorer(Layerwise(teacher, others), Answered.batch(prompts, ENDS, "cpu")).score(SETS)
    for kept, score in zip(SETS, scores, strict=True):
        likelihood, exact, divergence = plain_score(teacher, prompts, kept, others)
        assert score.likelihood == pytest.approx(likelihood, abs=1e-3), kept
        assert score.kl == pytest.approx(divergence, abs=1e-3), kept
        assert score.exact_match == exact
    # Each set is another model; only the whole teacher is the teacher.
    assert len({round(score.likelihood, 3) for score in scores}) == len(SETS)
    assert [score.kl == 0 for score in scores] == [kept == (0, 1, 2, 3) for kept in SETS]


def test_layers_that_sets_share_are_run_once():
    model = Layerwise(make_teacher("qwen2"), Others("silenced"))
    answered = Answered.batch(prompts_of([7]), ENDS, "cpu")
    model.last_states(answered.input_ids, [(0,), (1,), (2,), (3,)])
    # States behind the four layers: with and without layer 0, then one more each.
    assert model.evaluations == 2 + 3 + 4 + 4


def test_rows_that_go_through_a_layer_in_parts_change_nothing(monkeypatch):
    teacher = make_teacher("qwen3").double()
    answered = Answered.batch(prompts_of([9, 23, 14]), ENDS, "cpu")
    model = Layerwise(teacher, Others("window", 5, 2))
    whole = Scorer(model, answered).score(SETS)
    monkeypatch.setattr("gendistill.placement.layerwise.TOKENS_AT_ONCE", 50)
    for one, other in zip(whole, Scorer(model, answered).score(SETS), strict=True):
        assert one.likelihood == pytest.approx(other.likelihood, abs=1e-6)


def test_exact_match_is_what_generation_gives():
    """A circuit that recalls: the replies of greedy decoding, token by token, are right where the score says so."""
    teacher, prompts = recall_model(), recall_prompts(5)
    model = Layerwise(teacher, Others("silenced"))
    scorer = Scorer(model, Answered.batch(prompts, {24}, "cpu"))
    generated = []
    for prompt, answer in prompts:
        ids = list(prompt)
        for _ in range(len(answer) + 1):
            ids.append(teacher(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        generated.append(ids[len(prompt) :] == [*answer, 24])
    assert scorer.whole.exact_match == sum(generated) / len(generated) == 1
    without = [tuple(layer for layer in range(LAYERS) if layer != gone) for gone in (PREVIOUS, MATCH, 0)]
    assert [score.exact_match for score in scorer.score(without)] == [0, 0, 1]


def test_a_likelihood_that_is_no_number_is_refused():
    teacher = recall_model()
    scorer = Scorer(Layerwise(teacher, Others("silenced")), Answered.batch(recall_prompts(2), {24}, "cpu"))
    teacher.model.layers[3].self_attn.o_proj.weight[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"with layers \[1, 3\] kept, .* is nan"):
        scorer.score([(1, 4), (1, 3)])


def test_a_student_that_is_no_aligned_teacher_is_refused():
    teacher = make_teacher("qwen3")
    student, _ = convert(teacher, student_config(teacher.config, []), seed=0)
    check_student(teacher, student)
    with pytest.raises(UserError, match="some of its layers keep attention"):
        check_student(teacher, convert(teacher, student_config(teacher.config, [1]), seed=0)[0])
    with torch.no_grad():
        student.model.layers[2].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(UserError, match=r"1 weights are not the teacher's, model.layers.2.mlp.up_proj.weight first"):
        check_student(teacher, student)
