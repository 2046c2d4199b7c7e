"""Candidates are ranked with the ids that training learns for a reply, and generation can say."""

import json
from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gendistill.data.chat import encode_conversation
from gendistill.evaluate.harness import write_harness_task
from gendistill.evaluate.kinds.item import Item
from gendistill.evaluate.ranking import candidate_ids, render_prompts
from gendistill.models.loading import load_tokenizer

ITEM = Item(0, "multiple_choice", "Pick.", candidates=("A", "B"), gold=(1,), choices=("a cage", "the sky"))
TEXTS = ["A", "B", "a cage", "the sky"]
# The end of the prompt, and what stands between it and a reply.
TEMPLATES = {
    "a line break": ("<|assistant|>\n", ""),
    "a control token, then a line break": ("</s>assistant\n", ""),
    "a control token": ("<s>", ""),
    "a bracket, a blank before the reply": ("[/INST]", " "),
    "a colon": ("assistant:", ""),
    "a colon, a blank before the reply": ("assistant:", " "),
}


def sentencepiece(scheme):
    """A tokenizer that puts ▁ in front of every text, or of the first between two control tokens."""
    letters = sorted(set("user\nassistant|<>[/INST]:.Pickathe skyABg Wnw'h t."))
    symbols = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁", "<s>", "</s>"]
    pairs = [("▁", letter) for letter in "ABat"]
    symbols += ["".join(pair) for pair in pairs]
    bpe = models.BPE({symbol: id for id, symbol in enumerate(dict.fromkeys(symbols))}, pairs, byte_fallback=True)
    bpe.unk_token = "<unk>"
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def template(opening, between):
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '" + between + "' + m.content + '</s>' }}{% else %}"
        "{{ 'user\n' + m.content + '" + opening + "' }}{% endif %}{% endfor %}"
    ).replace("\n", "\\n")


def learnt(tokenizer, reply):
    encoded = encode_conversation(tokenizer, [*ITEM.messages, {"role": "assistant", "content": reply}])
    return [id for id, is_target in zip(*encoded, strict=True) if is_target][:-1]  # without the end of the turn


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize("end", TEMPLATES)
def test_ranked_is_what_is_learnt(scheme, end):
    tokenizer = sentencepiece(scheme)
    tokenizer.chat_template = template(*TEMPLATES[end])
    assert candidate_ids(tokenizer, [ITEM], texts=True)[0] == [learnt(tokenizer, text) for text in TEXTS]


def test_no_blank_is_ranked_behind_a_line_break():
    tokenizer = sentencepiece("always")
    tokenizer.chat_template = template(*TEMPLATES["a line break"])
    assert tokenizer.convert_ids_to_tokens(tokenizer("A", add_special_tokens=False)["input_ids"]) == ["▁A"]
    ranked = [tokenizer.convert_ids_to_tokens(ids) for ids in candidate_ids(tokenizer, [ITEM], texts=False)[0]]
    assert ranked == [["A"], ["B"]]


def test_byte_level_candidates_are_those_of_the_text_alone():
    tokenizer = load_tokenizer("embedded", 10**6)
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert candidate_ids(tokenizer, [ITEM], texts=True)[0] == alone == [learnt(tokenizer, text) for text in TEXTS]


def test_a_control_token_in_a_candidate_is_text():
    tokenizer = load_tokenizer("embedded", 10**6)
    item = Item(0, "multiple_choice", "Pick.", candidates=(tokenizer.eos_token, "B"), gold=(1,))
    assert tokenizer.eos_token_id not in candidate_ids(tokenizer, [item], texts=False)[0][0]


def test_a_reply_that_the_tokenizer_joins_with_the_prompt_is_ranked_as_behind_a_line_break():
    tokenizer = sentencepiece("always")
    tokenizer.chat_template = template("assistant: ", "")  # "▁" and "A" would be one token, which generation never says
    ranked = [tokenizer.convert_ids_to_tokens(ids) for ids in candidate_ids(tokenizer, [ITEM], texts=False)[0]]
    assert ranked == [["A"], ["B"]]


@pytest.mark.parametrize("end", TEMPLATES)
def test_items_at_once_are_encoded_as_each_alone(end):
    tokenizer = sentencepiece("always")
    tokenizer.chat_template = template(*TEMPLATES[end])
    items = [ITEM, replace(ITEM, question="Pick the sky."), replace(ITEM, candidates=("B", "A", "the sky"))]
    together = candidate_ids(tokenizer, items, texts=True)
    assert together == [candidate_ids(tokenizer, [item], texts=True)[0] for item in items]
    assert [len(candidates) for candidates in together] == [4, 4, 5]


def test_lm_eval_is_given_candidates_as_they_stand_behind_the_prompt(tmp_path):
    tokenizer = load_tokenizer("embedded", 10**6)
    tokenizer.chat_template = template("assistant:", " ").replace("</s>", tokenizer.eos_token)
    write_harness_task("t", [ITEM], render_prompts(tokenizer, [ITEM]), tokenizer, tmp_path)
    (line,) = (json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines())
    assert line["candidates"] == [" A", " B"]
    ids = tokenizer.encode(line["prompt"] + " A", add_special_tokens=False)
    assert ids == render_prompts(tokenizer, [ITEM])[0] + candidate_ids(tokenizer, [ITEM])[0][0]
