"""What each family's chat format comes to, token by token.

The templates are our own and yield the families' formats; the tokenizer (see conftest) has their control tokens.

Expectations are written as text: «...» is one control token, ⟦...⟧ are the loss tokens, and all else is ordinary text,
a control token's name without «» too.
"""

import json
import re
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.data.chat import encode_conversation, encode_conversations, ends_of_turns, render_prompt
from gendistill.data.dataset import prepare
from gendistill.recipe.data import Source


@dataclass
class Family:
    template: str
    controls: list[str]
    end: str  # of an assistant's turn
    expected: dict[str, str]  # by case
    plain: list[str] = field(default_factory=list)  # added tokens that are not special
    past_turns_trained_on: bool = True


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML_OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML_CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def default_system(content: str) -> str:
    return "{% if messages[0].role != 'system' %}<|im_start|>system\n" + content + "<|im_end|>\n{% endif %}"


QWEN2 = Family(
    template=default_system("You are a helpful assistant.") + CHATML + CHATML_OPENING,
    controls=CHATML_CONTROLS,
    end="<|im_end|>",
    expected={
        "one turn": (
            "«<|im_start|>»system\nYou are a helpful assistant.«<|im_end|>»\n"
            "«<|im_start|>»user\nWhy?«<|im_end|>»\n«<|im_start|>»assistant\n⟦So.«<|im_end|>»⟧"
        ),
        "two turns": (
            "«<|im_start|>»system\nYou are a helpful assistant.«<|im_end|>»\n"
            "«<|im_start|>»user\nWhy?«<|im_end|>»\n«<|im_start|>»assistant\n⟦So.«<|im_end|>»⟧\n"
            "«<|im_start|>»user\nA or B?«<|im_end|>»\n«<|im_start|>»assistant\n⟦No, \n\nB«<|im_end|>»⟧"
        ),
        "one letter": (
            "«<|im_start|>»system\nYou are a helpful assistant.«<|im_end|>»\n"
            "«<|im_start|>»user\nA or B?«<|im_end|>»\n«<|im_start|>»assistant\n⟦B«<|im_end|>»⟧"
        ),
        "system": (
            "«<|im_start|>»system\nBe brief.«<|im_end|>»\n"
            "«<|im_start|>»user\nWhy?«<|im_end|>»\n«<|im_start|>»assistant\n⟦So.«<|im_end|>»⟧"
        ),
        "empty system": (
            "«<|im_start|>»system\n«<|im_end|>»\n"
            "«<|im_start|>»user\nWhy?«<|im_end|>»\n«<|im_start|>»assistant\n⟦So.«<|im_end|>»⟧"
        ),
        "quoted": (
            "«<|im_start|>»system\nYou are a helpful assistant.«<|im_end|>»\n"
            "«<|im_start|>»user\n<|im_end|>?«<|im_end|>»\n"
            "«<|im_start|>»assistant\n⟦It is <|im_end|>, as I say.<|im_end|>«<|im_end|>»⟧"
        ),
    },
)

QWEN25_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN25 = Family(
    template=default_system(QWEN25_SYSTEM) + CHATML + CHATML_OPENING,
    controls=CHATML_CONTROLS,
    end="<|im_end|>",
    expected={
        name: text.replace("You are a helpful assistant.", QWEN25_SYSTEM) for name, text in QWEN2.expected.items()
    },
)

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SMOLLM2 = Family(
    template=default_system(SMOLLM2_SYSTEM) + CHATML + CHATML_OPENING,
    controls=CHATML_CONTROLS,
    end="<|im_end|>",
    expected={
        name: text.replace("You are a helpful assistant.", SMOLLM2_SYSTEM) for name, text in QWEN2.expected.items()
    },
)

# Qwen3: the reply to the last question stands behind a thinking block, past replies do not.
QWEN3 = Family(
    template=(
        "{% set last = namespace(question=-1) %}"
        "{% for m in messages %}{% if m.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.index0 > last.question %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    controls=CHATML_CONTROLS,
    plain=["<think>", "</think>"],
    end="<|im_end|>",
    past_turns_trained_on=False,
    expected={
        "one turn": (
            "«<|im_start|>»user\nWhy?«<|im_end|>»\n"
            "«<|im_start|>»assistant\n«<think>»\n\n«</think>»\n\n⟦So.«<|im_end|>»⟧"
        ),
        "two turns": (
            "«<|im_start|>»user\nWhy?«<|im_end|>»\n«<|im_start|>»assistant\nSo.«<|im_end|>»\n"
            "«<|im_start|>»user\nA or B?«<|im_end|>»\n"
            "«<|im_start|>»assistant\n«<think>»\n\n«</think>»\n\n⟦No, \n\nB«<|im_end|>»⟧"
        ),
        "one letter": (
            "«<|im_start|>»user\nA or B?«<|im_end|>»\n"
            "«<|im_start|>»assistant\n«<think>»\n\n«</think>»\n\n⟦B«<|im_end|>»⟧"
        ),
        "system": (
            "«<|im_start|>»system\nBe brief.«<|im_end|>»\n«<|im_start|>»user\nWhy?«<|im_end|>»\n"
            "«<|im_start|>»assistant\n«<think>»\n\n«</think>»\n\n⟦So.«<|im_end|>»⟧"
        ),
        "empty system": (
            "«<|im_start|>»system\n«<|im_end|>»\n«<|im_start|>»user\nWhy?«<|im_end|>»\n"
            "«<|im_start|>»assistant\n«<think>»\n\n«</think>»\n\n⟦So.«<|im_end|>»⟧"
        ),
        "quoted": (
            "«<|im_start|>»user\n<|im_end|>?«<|im_end|>»\n"
            "«<|im_start|>»assistant\n«<think>»\n\n«</think>»\n\n"
            "⟦It is <|im_end|>, as I say.<|im_end|>«<|im_end|>»⟧"
        ),
    },
)

LLAMA3 = Family(
    template=(
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    controls=["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    end="<|eot_id|>",
    expected={
        "one turn": (
            "«<|begin_of_text|>»«<|start_header_id|>»user«<|end_header_id|>»\n\nWhy?«<|eot_id|>»"
            "«<|start_header_id|>»assistant«<|end_header_id|>»\n\n⟦So.«<|eot_id|>»⟧"
        ),
        "two turns": (
            "«<|begin_of_text|>»«<|start_header_id|>»user«<|end_header_id|>»\n\nWhy?«<|eot_id|>»"
            "«<|start_header_id|>»assistant«<|end_header_id|>»\n\n⟦So.«<|eot_id|>»⟧"
            "«<|start_header_id|>»user«<|end_header_id|>»\n\nA or B?«<|eot_id|>»"
            "«<|start_header_id|>»assistant«<|end_header_id|>»\n\n⟦No, \n\nB«<|eot_id|>»⟧"
        ),
        "one letter": (
            "«<|begin_of_text|>»«<|start_header_id|>»user«<|end_header_id|>»\n\nA or B?«<|eot_id|>»"
            "«<|start_header_id|>»assistant«<|end_header_id|>»\n\n⟦B«<|eot_id|>»⟧"
        ),
        "system": (
            "«<|begin_of_text|>»«<|start_header_id|>»system«<|end_header_id|>»\n\nBe brief.«<|eot_id|>»"
            "«<|start_header_id|>»user«<|end_header_id|>»\n\nWhy?«<|eot_id|>»"
            "«<|start_header_id|>»assistant«<|end_header_id|>»\n\n⟦So.«<|eot_id|>»⟧"
        ),
        "empty system": (
            "«<|begin_of_text|>»«<|start_header_id|>»system«<|end_header_id|>»\n\n«<|eot_id|>»"
            "«<|start_header_id|>»user«<|end_header_id|>»\n\nWhy?«<|eot_id|>»"
            "«<|start_header_id|>»assistant«<|end_header_id|>»\n\n⟦So.«<|eot_id|>»⟧"
        ),
        "quoted": (
            "«<|begin_of_text|>»«<|start_header_id|>»user«<|end_header_id|>»\n\n<|eot_id|>?«<|eot_id|>»"
            "«<|start_header_id|>»assistant«<|end_header_id|>»\n\n"
            "⟦It is <|eot_id|>, as I say.<|eot_id|>«<|eot_id|>»⟧"
        ),
        "blanks": (
            "«<|begin_of_text|>»«<|start_header_id|>»user«<|end_header_id|>»\n\nWhy?«<|eot_id|>»"
            "«<|start_header_id|>»assistant«<|end_header_id|>»\n\n⟦So.«<|eot_id|>»⟧"
        ),
    },
)

# Gemma: the assistant is called "model"; a system prompt becomes the head of the first question.
GEMMA = Family(
    template=(
        "<bos>{% set folded = messages[0].role == 'system' %}"
        "{% for m in (messages[1:] if folded else messages) %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{% if folded and loop.first %}{{ messages[0].content + '\n\n' }}{% endif %}"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    controls=["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
    end="<end_of_turn>",
    expected={
        "one turn": ("«<bos>»«<start_of_turn>»user\nWhy?«<end_of_turn>»\n«<start_of_turn>»model\n⟦So.«<end_of_turn>»⟧"),
        "two turns": (
            "«<bos>»«<start_of_turn>»user\nWhy?«<end_of_turn>»\n«<start_of_turn>»model\n⟦So.«<end_of_turn>»⟧\n"
            "«<start_of_turn>»user\nA or B?«<end_of_turn>»\n«<start_of_turn>»model\n⟦No, \n\nB«<end_of_turn>»⟧"
        ),
        "one letter": (
            "«<bos>»«<start_of_turn>»user\nA or B?«<end_of_turn>»\n«<start_of_turn>»model\n⟦B«<end_of_turn>»⟧"
        ),
        "system": (
            "«<bos>»«<start_of_turn>»user\nBe brief.\n\nWhy?«<end_of_turn>»\n"
            "«<start_of_turn>»model\n⟦So.«<end_of_turn>»⟧"
        ),
        "empty system": (
            "«<bos>»«<start_of_turn>»user\n\n\nWhy?«<end_of_turn>»\n«<start_of_turn>»model\n⟦So.«<end_of_turn>»⟧"
        ),
        "quoted": (
            "«<bos>»«<start_of_turn>»user\n<end_of_turn>?«<end_of_turn>»\n"
            "«<start_of_turn>»model\n⟦It is <end_of_turn>, as I say.<end_of_turn>«<end_of_turn>»⟧"
        ),
        "blanks": ("«<bos>»«<start_of_turn>»user\nWhy?«<end_of_turn>»\n«<start_of_turn>»model\n⟦So.«<end_of_turn>»⟧"),
    },
)

# A template with markers, which here leave the token that ends the turn to be found.
MARKED = Family(
    template=(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + CHATML_OPENING
    ),
    controls=CHATML_CONTROLS,
    end="<|im_end|>",
    expected={
        "one turn": "«<|im_start|>»user\nWhy?«<|im_end|>»\n«<|im_start|>»assistant\n⟦So.«<|im_end|>»⟧",
        "two turns": (
            "«<|im_start|>»user\nWhy?«<|im_end|>»\n«<|im_start|>»assistant\n⟦So.«<|im_end|>»⟧\n"
            "«<|im_start|>»user\nA or B?«<|im_end|>»\n«<|im_start|>»assistant\n⟦No, \n\nB«<|im_end|>»⟧"
        ),
        "one letter": "«<|im_start|>»user\nA or B?«<|im_end|>»\n«<|im_start|>»assistant\n⟦B«<|im_end|>»⟧",
        "system": (
            "«<|im_start|>»system\nBe brief.«<|im_end|>»\n"
            "«<|im_start|>»user\nWhy?«<|im_end|>»\n«<|im_start|>»assistant\n⟦So.«<|im_end|>»⟧"
        ),
        "empty system": (
            "«<|im_start|>»system\n«<|im_end|>»\n"
            "«<|im_start|>»user\nWhy?«<|im_end|>»\n«<|im_start|>»assistant\n⟦So.«<|im_end|>»⟧"
        ),
        "quoted": (
            "«<|im_start|>»user\n<|im_end|>?«<|im_end|>»\n"
            "«<|im_start|>»assistant\n⟦It is <|im_end|>, as I say.<|im_end|>«<|im_end|>»⟧"
        ),
    },
)

FAMILIES = {
    "qwen2": QWEN2,
    "qwen2.5": QWEN25,
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "smollm2": SMOLLM2,
    "gemma": GEMMA,
    "marked": MARKED,
}
EVERY_CASE = [(name, case) for name, family in FAMILIES.items() for case in family.expected]


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def conversation(case: str, end: str) -> list[dict]:
    return {
        "one turn": [user("Why?"), assistant("So.")],
        "two turns": [user("Why?"), assistant("So."), user("A or B?"), assistant("No, \n\nB")],
        "one letter": [user("A or B?"), assistant("B")],
        "system": [system("Be brief."), user("Why?"), assistant("So.")],
        "empty system": [system(""), user("Why?"), assistant("So.")],
        "quoted": [user(f"{end}?"), assistant(f"It is {end}, as I say.{end}")],
        "blanks": [user(" Why?\n"), assistant("\nSo. ")],
    }[case]


def by_hand(expected: str) -> list[tuple[str, bool]]:
    """Tokens of an expectation, as the tokenizer names them, and whether they are loss tokens."""
    pairs, target = [], False
    for control, piece in re.findall("«(.+?)»|(hi|ok|\n\n|.|\n)", expected):
        if piece in ("⟦", "⟧"):
            target = piece == "⟦"
        else:
            pairs.append((control or piece.replace("\n", "Ċ").replace(" ", "Ġ"), target))
    return pairs


@pytest.fixture(scope="session")
def tokenizer_of(make_tokenizer):
    made = {
        name: make_tokenizer(
            family.template,
            specials=family.controls,
            plain=family.plain,
            eos_token=family.end,
            pad_token=family.end,
        )
        for name, family in FAMILIES.items()
    }
    return made.__getitem__


def pairs_of(tokenizer, ids, mask) -> list[tuple[str, bool]]:
    return list(zip(tokenizer.convert_ids_to_tokens(ids), mask, strict=True))


@pytest.mark.parametrize(("name", "case"), EVERY_CASE)
def test_token_by_token(tokenizer_of, name, case):
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    ids, mask = encode_conversation(tokenizer, conversation(case, family.end))
    assert pairs_of(tokenizer, ids, mask) == by_hand(family.expected[case])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_gives_what_its_conversations_give_alone(tokenizer_of, name):
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    conversations = [conversation(case, family.end) for case in family.expected]
    assert encode_conversations(tokenizer, conversations) == [
        encode_conversation(tokenizer, messages) for messages in conversations
    ]


@pytest.mark.parametrize(("name", "case"), EVERY_CASE)
def test_prompt_is_what_stands_before_the_last_reply(tokenizer_of, name, case):
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    prompt = render_prompt(tokenizer, conversation(case, family.end)[:-1])
    before = family.expected[case].rpartition("⟦")[0]
    assert tokenizer.convert_ids_to_tokens(prompt) == [token for token, _ in by_hand(before)]


@pytest.mark.parametrize("name", FAMILIES)
def test_ends_of_turns(tokenizer_of, name):
    tokenizer = tokenizer_of(name)
    assert ends_of_turns(tokenizer) == {tokenizer.convert_tokens_to_ids(FAMILIES[name].end)}


@pytest.mark.parametrize("name", FAMILIES)
def test_row_cut_within_an_answer(tokenizer_of, name, tmp_path):
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    expected = by_hand(family.expected["quoted"])[:-4]
    length = len(expected)

    ids, mask = encode_conversation(tokenizer, conversation("quoted", family.end))
    assert pairs_of(tokenizer, ids[:length], mask[:length]) == expected

    records = tmp_path / "chats.jsonl"
    records.write_text((json.dumps({"messages": conversation("quoted", family.end)}) + "\n") * 50)
    row = prepare(
        [Source(path=str(records), messages="messages")],
        tokenizer,
        sequence_length=length,
        tokens=length,
        loss_on="completion",
        seed=0,
        cache=tmp_path / "cache",
    )[0]
    assert pairs_of(tokenizer, row["input_ids"].tolist(), row["loss_mask"].astype(bool).tolist()) == expected


def texts(family: Family):
    """Contents that quote the family's control tokens, whole and in pieces; no blanks at the ends."""
    pieces = ["a", " ", "hi", "o", "k", "\n", "<", "|", ">", "<|", "é", "😀", *family.controls]
    return st.lists(st.sampled_from(pieces), max_size=8).map(lambda chosen: f"x{''.join(chosen)}x")


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whole_is_made_of_its_turns(tokenizer_of, name, data):
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    turns = data.draw(st.lists(st.tuples(texts(family), texts(family)), min_size=1, max_size=3))
    messages = [message for question, answer in turns for message in (user(question), assistant(answer))]
    ids, mask = encode_conversation(tokenizer, messages)
    end = tokenizer.convert_tokens_to_ids(family.end)

    union = [False] * len(ids)
    for position in range(1, len(messages), 2) if family.past_turns_trained_on else [len(messages) - 1]:
        prompt = render_prompt(tokenizer, messages[:position])
        answer = messages[position]["content"]
        reply = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(reply) == answer
        whole = [*prompt, *reply, end]
        assert ids[: len(whole)] == whole
        union[len(prompt) : len(whole)] = [True] * (len(reply) + 1)
    assert mask == union
