import copy

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from gendistill.errors import UserError
from gendistill.evaluate.items import load_items
from gendistill.evaluate.ranking import candidate_ids, rank, render_prompts
from gendistill.inference.generation import generate
from gendistill.models.view import as_student
from gendistill.recipe.evaluation import make_task

KINDS = {"multiple_choice": "choice", "short_answer": "short", "last_number": "number"}


def items_of(kind, files):
    name = KINDS[kind]
    task = make_task(kind=kind, path=files[f"{name}_test"], shots=1, shots_path=files[f"{name}_train"])
    return load_items(name, task, seed=0)


def plain_score(model, tokenizer, item, prompt, candidate):
    """Log-likelihood of a candidate from one unpadded full forward pass."""
    tokens = tokenizer(candidate, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0].float()
    predicted = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    total = predicted.gather(-1, torch.tensor(tokens)[:, None]).sum().item()
    return total / len(tokens) if item.kind == "short_answer" else total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_ranking_equals_the_plain_computation(model, tokenizer, files, kind, batch_size):
    items = items_of(kind, files)
    prompts = render_prompts(tokenizer, items)
    rankings = rank(model, items, prompts, candidate_ids(tokenizer, items), batch_size)
    for item, prompt, ranking in zip(items, prompts, rankings, strict=True):
        expected = [plain_score(model, tokenizer, item, prompt, candidate) for candidate in item.candidates]
        assert ranking.scores == pytest.approx(expected, abs=1e-4)
        assert ranking.prediction == expected.index(max(expected))


def test_ranking_counts_absolute_positions_from_the_first_real_token(tokenizer, files):
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 512, "initializer_range": 0.3}
    ends = {"bos_token_id": None, "eos_token_id": None}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ends)).eval()
    items = items_of("multiple_choice", files)
    prompts = render_prompts(tokenizer, items)
    assert len(set(map(len, prompts))) > 1
    rankings = rank(gpt2, items, prompts, candidate_ids(tokenizer, items), 1000)
    for item, prompt, ranking in zip(items, prompts, rankings, strict=True):
        expected = [plain_score(gpt2, tokenizer, item, prompt, candidate) for candidate in item.candidates]
        assert ranking.scores == pytest.approx(expected, abs=1e-4)


def test_letters_of_an_item_take_one_forward_row(model, tokenizer, files):
    items = items_of("multiple_choice", files)
    rows = []
    read = as_student(model).model  # the modules that prefill runs
    handle = read.register_forward_pre_hook(lambda *call: rows.append(call[2]["input_ids"].shape[0]), with_kwargs=True)
    finished = []
    rank(model, items, render_prompts(tokenizer, items), candidate_ids(tokenizer, items), 4, finished.append)
    handle.remove()
    assert rows == [1, 4, 4, 3]  # first what all prompts begin with
    assert sum(map(len, finished)) == len(items)


def plain_reply(model, prompt, max_new_tokens, ends):
    """Greedy decoding without padding and without a cache."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        if ids[-1] in ends:
            return ids[len(prompt) : -1], False
    return ids[len(prompt) :], True


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_replies_are_plain_greedy_decoding(model, tokenizer, files, batch_size):
    items = [item for kind in KINDS for item in items_of(kind, files)[::3]]
    prompts = render_prompts(tokenizer, items)
    # Ends with a token that the random model says in some replies and not in others.
    unended = [plain_reply(model, prompt, 12, [])[0] for prompt in prompts]
    shares = {token: sum(token in ids for ids in unended) for token in sorted(set().union(*unended))}
    often = min(shares, key=lambda token: abs(shares[token] - len(prompts) / 2))
    model.generation_config.eos_token_id = [often]
    ends = [often, tokenizer.eos_token_id]
    replies = generate(model, tokenizer, prompts, 12, batch_size)
    assert 0 < sum(reply.truncated for reply in replies) < len(replies)
    assert len({reply.text for reply in replies}) > 5
    for prompt, reply in zip(prompts, replies, strict=True):
        ids, truncated = plain_reply(model, prompt, 12, ends)
        assert reply.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert (reply.tokens, reply.truncated) == (len(ids), truncated)


def test_the_models_own_sampling_settings_do_not_leak(model, tokenizer, files):
    items = items_of("last_number", files)
    prompts = render_prompts(tokenizer, items)
    greedy = generate(model, tokenizer, prompts, 12, 16)
    own = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=5,
        repetition_penalty=1.8,
        no_repeat_ngram_size=1,
        min_new_tokens=3,
        suppress_tokens=list(range(65, 91)),
    )
    model.generation_config = own
    assert generate(model, tokenizer, prompts, 12, 16) == greedy
    assert model.generation_config is own
    # The settings would have changed the replies.
    own.do_sample, own.temperature, own.top_k = False, None, None
    ids = model.generate(torch.tensor([prompts[0]]), max_new_tokens=12)[0, len(prompts[0]) :]
    assert tokenizer.decode(ids) != tokenizer.decode(plain_reply(model, prompts[0], 12, [])[0])


def test_no_end_of_sequence_is_refused(model, tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = endless.chat_template = None
    with pytest.raises(UserError, match="no reply could end"):
        generate(model, endless, [[1, 2, 3]], 2, 1)
