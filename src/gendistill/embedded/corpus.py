"""What the embedded teacher reads: documents and conversations to learn from, and questions to be examined on.

Everything is a pure function of a seed. The evaluation asks in phrasings, and with numbers, that neither documents nor
conversations contain.
"""

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gendistill.embedded import arithmetic
from gendistill.errors import UserError

# Every text is drawn from a `random.Random` of a name and a seed. The order of the draws is the corpus: another order,
# or one draw more, makes other data, and the shipped teacher was trained on these.

EVALUATIONS = ("facts", "choice", "arithmetic")
LETTERS = "ABCD"
LEAD_INS = ("Please tell me: ", "I have a question. ", "Quick question: ", "Hello! ", "Let me ask you: ")
LETTER_CLOSING = "Answer with the letter."  # the evaluator's
OTHER_LETTER_CLOSINGS = ("Reply with the letter.", "Which letter is right?")
SENTENCE_CLOSINGS = ("Answer in a full sentence.", "Write a full sentence.")


class Relation(NamedTuple):
    """How facts of one relation are put into words; in a template {s} is the subject and {a} the answer."""

    kind: str  # of subject; statements about one subject are put together in one document
    statements: list[str]
    questions: list[str]
    held_out: list[str]  # questions of the evaluation only


@cache
def relations() -> dict[str, Relation]:
    """By name, "capital" or "past_tense"."""
    raw = json.loads((Path(__file__).parent / "phrasings.json").read_text(encoding="utf-8"))
    return {name: Relation(**wordings) for name, wordings in raw.items()}


@cache
def facts() -> dict[str, dict[str, list[str]]]:
    """relation -> subject -> accepted answers, the canonical one first."""
    # Made by scripts/collect_facts.py; most answers are a string, those with other spellings a list.
    raw = json.loads((Path(__file__).parent / "facts.json").read_text(encoding="utf-8"))
    return {
        relation: {subject: [answer] if isinstance(answer, str) else answer for subject, answer in answers.items()}
        for relation, answers in raw.items()
    }


@cache
def _all_facts() -> list[tuple[str, str]]:
    return [(relation, subject) for relation, subjects in facts().items() for subject in subjects]


@cache
def _distinct_answers(relation: str) -> list[str]:
    return sorted({answers[0] for answers in facts()[relation].values()})


@cache
def _relations_by_subject() -> dict[tuple[str, str], list[str]]:
    """(kind, subject) -> the relations known of it."""
    known: dict[tuple[str, str], list[str]] = {}
    for relation, subject in _all_facts():
        known.setdefault((relations()[relation].kind, subject), []).append(relation)
    return known


@cache
def _subjects() -> list[tuple[str, str]]:
    return list(_relations_by_subject())


def fill(template: str, subject: str, answer: str = "") -> str:
    """The sentence that a template makes of a fact."""
    text = template.replace("{s}", subject).replace("{a}", answer)
    return text[0].upper() + text[1:]  # not capitalize(), which lowers all other letters


def _statement(relation: str, subject: str, rng: random.Random) -> str:
    return fill(rng.choice(relations()[relation].statements), subject, facts()[relation][subject][0])


def _options(relation: str, subject: str, rng: random.Random) -> list[str]:
    """The canonical answer and three answers that belong to other subjects of the relation, in random order."""
    accepted = facts()[relation][subject]
    pool = _distinct_answers(relation)
    options = [accepted[0]]
    if len(pool) < len(LETTERS):  # the days of a month
        pool = ["28", "29", "30", "31"]
    while len(options) < len(LETTERS):
        other = rng.choice(pool)
        # Neither the same option twice, nor another spelling of the right answer.
        if other not in options and other not in accepted:
            options.append(other)
    rng.shuffle(options)
    return options


def choice_prompt(question: str, choices: list[str], closing: str = LETTER_CLOSING) -> str:
    """The layout of a multiple-choice question, the same as the evaluator's."""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return f"{question}\n{listed}\n{closing}"


def plain_documents(seed: int, count: int) -> Iterator[dict]:
    """Documents {"text"} of a few sentences: all about one subject, about one relation, or sums with their steps."""
    rng = random.Random(f"documents {seed}")
    weights = [len(subjects) for subjects in facts().values()]  # each fact as often, whatever its relation
    for _ in range(count):
        draw = rng.random()
        if draw < 0.45:  # one subject
            kind, subject = rng.choice(_subjects())
            known = _relations_by_subject()[kind, subject]
            chosen = rng.sample(known, min(len(known), rng.randint(2, 6)))
            sentences = [_statement(relation, subject, rng) for relation in chosen]
        elif draw < 0.75:  # one relation
            (relation,) = rng.choices(list(facts()), weights)
            known = list(facts()[relation])
            subjects = rng.sample(known, min(len(known), rng.randint(2, 5)))
            sentences = [_statement(relation, subject, rng) for subject in subjects]
        else:  # sums
            sentences = [arithmetic.solution(_draw_sum(rng)) for _ in range(rng.randint(2, 4))]
        yield {"text": " ".join(sentences)}


def _draw_sum(rng: random.Random) -> arithmetic.Sum:
    """A sum to train on, one in ten an entry of the multiplication table."""
    return arithmetic.draw_table_entry(rng) if rng.random() < 0.1 else arithmetic.draw_sum(rng, held_out=False)


def conversations(seed: int, count: int) -> Iterator[dict]:
    """Conversations {"messages"}, most of one question and one answer, some of several.

    An answer is the bare name or number; a full sentence if the question asks for one; the letter of the right option
    if the question lists options; and written-out steps for a sum.
    """
    rng = random.Random(f"conversations {seed}")
    for _ in range(count):
        turns = 1 if rng.random() < 0.85 else rng.randint(2, 4)
        messages = []
        for _ in range(turns):
            question, answer = _exchange(rng)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {"messages": messages}


def _lead_in(rng: random.Random) -> str:
    return "" if rng.random() < 0.5 else rng.choice(LEAD_INS)


def _exchange(rng: random.Random) -> tuple[str, str]:
    """A question and its answer: a sum in 25 of 100, in the others a fact, asked for in one of five ways."""
    draw = rng.random()
    if draw < 0.25:
        task = _draw_sum(rng)
        return _lead_in(rng) + arithmetic.question(task, rng, held_out=False), arithmetic.solution(task)
    relation, subject = rng.choice(_all_facts())
    question = _lead_in(rng) + fill(rng.choice(relations()[relation].questions), subject)
    answer = facts()[relation][subject][0]
    if draw < 0.58:  # the bare answer
        return question, answer
    if draw < 0.63:  # a full sentence
        return f"{question} {rng.choice(SENTENCE_CLOSINGS)}", _statement(relation, subject, rng)
    options = _options(relation, subject, rng)
    letter = LETTERS[options.index(answer)]
    if draw < 0.91:  # multiple choice, half of it with the closing that the evaluator uses
        closing = LETTER_CLOSING if rng.random() < 0.5 else rng.choice(OTHER_LETTER_CLOSINGS)
        return choice_prompt(question, options, closing), letter
    if draw < 0.94:  # so that listed options alone do not mean a letter
        return choice_prompt(question, options, "Answer with the words."), answer
    # Finding a given option: the half of multiple choice that needs no knowledge, and is learned sooner on its own.
    return choice_prompt("Find the option.", options, f"Which letter stands for {answer}?"), letter


def evaluation_items(name: str, seed: int, count: int = 500) -> Iterator[dict]:
    """Questions in held-out phrasings.

    "facts" has {"question", "answer": accepted strings, "choices": 4 strings}, "choice" has {"question", "choices",
    "answer": index} and "arithmetic" has {"question", "answer": number as a string}. Each item also names its
    "relation", for reports.

    Raises:
        UserError: the name is none of these.
    """
    make_item = {"facts": _fact_item, "choice": _choice_item, "arithmetic": _sum_item}
    if name not in make_item:
        raise UserError(f"no embedded evaluation '{name}'; there are: {', '.join(EVALUATIONS)}")
    rng = random.Random(f"{name} {seed}")
    for _ in range(count):
        yield make_item[name](rng)


def _fact_item(rng: random.Random) -> dict:
    """The options are for ranking; a generated reply is right with any of the accepted answers."""
    relation, subject = rng.choice(_all_facts())
    question = fill(rng.choice(relations()[relation].held_out), subject)
    choices = _options(relation, subject, rng)
    return {"question": question, "answer": facts()[relation][subject], "choices": choices, "relation": relation}


def _choice_item(rng: random.Random) -> dict:
    item = _fact_item(rng)
    return item | {"answer": item["choices"].index(item["answer"][0])}  # options hold the canonical answer


def _sum_item(rng: random.Random) -> dict:
    task = arithmetic.draw_sum(rng, held_out=True)
    question = arithmetic.question(task, rng, held_out=True)
    return {"question": question, "answer": str(task.result), "relation": task.sign}
