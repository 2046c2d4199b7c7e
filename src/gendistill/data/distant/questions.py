"""Questions with what a text must hold to answer them: facts, sums, comparisons, tables, lists, code, quotations.

None of it has the words or the form of what evaluation hides in a text or lists (`evaluate/kinds`): trained on those, a
student would be examined on what it has practised. tests/data/test_distant.py compares the two.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gendistill.data.distant.invention import VALUES, Exhausted, Invention

ROWS = (5, 12)  # of a table or list
QUOTED_WORDS = (12, 40)  # of a sentence that is asked for
SEVERAL = (2, 3)  # facts that one question asks for


class Statement(NamedTuple):
    """A text to be planted."""

    text: str  # a sentence, or a block of lines
    evidence: str | None  # the part of it that the answer depends on; None for what only looks like it

    @property
    def is_block(self) -> bool:
        return "\n" in self.text


class Question(NamedTuple):
    """A question, its answer, and what must be planted."""

    kind: str  # a row of `KINDS`
    question: str
    answer: str
    planted: tuple[Statement, ...]
    quoted: int | None = None  # index of the sentence of the text that is asked for; nothing is planted then
    needed: tuple[str, ...] = ()  # what a right answer says, in any words; all of `answer` if nothing is named
    instead: tuple[str, ...] = ()  # what it does not say before the first of them


class Pages(NamedTuple):
    """The text that stands around what is planted."""

    sentences: Sequence[str]  # with the white space before them
    far: Sequence[int]  # indices of those that are far enough away to be asked for


class Relation(NamedTuple):
    """Something to be said of a name."""

    statement: str  # with {name} and {value}
    question: str  # for the value, in the words of the statement
    restated: str  # for the value, in other words
    value: str  # a row of `invention.VALUES`


class Amount(NamedTuple):
    """A number of something that several have."""

    statement: str  # with {name} and {value}
    added: str  # with the names {a} and {b}
    compared: str  # with the same


class Column(NamedTuple):
    """A column of a table."""

    label: str
    value: str  # a row of `invention.VALUES`
    question: str  # for a cell, with {title} and {row}


class Register(NamedTuple):
    """A table."""

    heading: str  # with {title}
    label: str  # of the first column, which has the rows' names
    columns: tuple[Column, ...]  # the others


class Listing(NamedTuple):
    """A numbered list."""

    heading: str  # with {title}
    behind: str  # asks for what comes behind {entry}
    numbered: str  # asks for the entry of {number}


# Things of many sorts, so that it is the name that has to be found and no turn of phrase; and all made up: what a model
# knows of real places and people would help it guess.
RELATIONS = (
    Relation(
        "The lighthouse of {name} was lit for the first time in {value}.",
        "In what year was the lighthouse of {name} lit for the first time?",
        "Since when has a lamp been warning sailors off {name}?",
        "year",
    ),
    Relation(
        "On that voyage Captain {value} commanded the {name}.",
        "Which captain commanded the {name} on that voyage?",
        "Under whose orders did the crew of the {name} sail?",
        "name",
    ),
    Relation(
        "Whoever looks for the {name} papers finds them under shelf mark {value}.",
        "Under which shelf mark does one find the {name} papers?",
        "Where in the archive are the documents called {name} kept?",
        "code",
    ),
    Relation(
        "At the last count {value} people lived in {name}.",
        "How many people lived in {name} at the last count?",
        "What is the population of {name}?",
        "count",
    ),
    Relation(
        "It was {value} who founded the {name} works.",
        "Who founded the {name} works?",
        "To whom do the {name} works owe their existence?",
        "name",
    ),
    Relation(
        "The {name} rises on the slopes of Mount {value} and flows to the sea from there.",
        "On the slopes of which mountain does the {name} rise?",
        "Which mountain would one climb to see where the river {name} begins?",
        "name",
    ),
    Relation(
        "The night train to {name} runs under the number {value}.",
        "Under which number does the night train to {name} run?",
        "A traveller wants to sleep on the way to {name}: which train is it?",
        "code",
    ),
    Relation(
        "The manuscript called {name} was copied in the monastery of {value}.",
        "In which monastery was the manuscript called {name} copied?",
        "Where did the monks sit who wrote the copy of {name}?",
        "name",
    ),
    Relation(
        "Construction of the {name} tunnel ended in {value}, later than planned.",
        "In what year did construction of the {name} tunnel end?",
        "When were the builders through with the {name} tunnel?",
        "year",
    ),
    Relation(
        "Experiment {name} was stopped after {value} measurements.",
        "After how many measurements was experiment {name} stopped?",
        "How often had been measured when experiment {name} was given up?",
        "count",
    ),
)
# Numbers that two have, to be added or compared.
AMOUNTS = (
    Amount(
        "The library of {name} lends out {value} volumes.",
        "How many volumes do the libraries of {a} and {b} lend out together?",
        "Which library lends out more volumes, that of {a} or that of {b}?",
    ),
    Amount(
        "{name} sent {value} men to build the dam.",
        "How many men did {a} and {b} send to the dam, both together?",
        "Who sent more men to the dam, {a} or {b}?",
    ),
    Amount(
        "In that winter {value} houses burnt down in {name}.",
        "How many houses burnt down in {a} and in {b}, taken together?",
        "Where did more houses burn down, in {a} or in {b}?",
    ),
)
# Tables, of which one cell is asked for by its row and its column.
REGISTERS = (
    Register(
        "Register of the {title} expedition",
        "member",
        (
            Column("born", "year", "In what year was {row} born, by the register of the {title} expedition?"),
            Column("bunk", "code", "Which bunk does the register of the {title} expedition assign to {row}?"),
        ),
    ),
    Register(
        "Holdings of the {title} museum",
        "piece",
        (
            Column("inventory", "code", "Under which inventory number does the {title} museum hold the piece {row}?"),
            Column("maker", "name", "Who made the piece {row}, by the holdings of the {title} museum?"),
        ),
    ),
    Register(
        "Harvest of the {title} estates",
        "estate",
        (
            Column("sacks", "count", "How many sacks did {row} bring in, by the harvest of the {title} estates?"),
            Column("steward", "name", "Who is steward of {row}, by the harvest of the {title} estates?"),
        ),
    ),
)
# Lists in an order that has to be read: what comes behind, and which number has what.
LISTINGS = (
    Listing(
        "Stations of the {title} line, in order:",
        "At which station does a train of the {title} line stop right after {entry}?",
        "What is station number {number} of the {title} line called?",
    ),
    Listing(
        "Steps of the {title} procedure, by their names:",
        "Which step of the {title} procedure comes right after {entry}?",
        "What is the name of step {number} of the {title} procedure?",
    ),
)


def single(invention: Invention, rng: random.Random, pages: Pages) -> Question:
    relation = rng.choice(RELATIONS)
    return _asked("single", relation, relation.question, invention)


def restated(invention: Invention, rng: random.Random, pages: Pages) -> Question:
    relation = rng.choice(RELATIONS)
    return _asked("restated", relation, relation.restated, invention)


def several(invention: Invention, rng: random.Random, pages: Pages) -> Question:
    """The same of two or three names."""
    relation = rng.choice(RELATIONS)
    # Of one sort, or the questions would name what they ask for in two ways at once.
    facts = [_fact(relation, invention) for _ in range(rng.randint(*SEVERAL))]
    questions = " ".join(relation.question.format(name=name) for name, _, _ in facts)
    answer = "; ".join(f"{value} for {name}" for name, value, _ in facts)
    needed = tuple(value for _, value, _ in facts)
    return Question("several", questions, answer, tuple(statement for *_, statement in facts), needed=needed)


def added(invention: Invention, rng: random.Random, pages: Pages) -> Question:
    amount = rng.choice(AMOUNTS)
    (a, first), (b, second), planted = _two_amounts(amount, invention)
    question = f"{amount.added.format(a=a, b=b)} Name both numbers and then the sum."
    total = str(int(first) + int(second))
    return Question("added", question, f"{first} and {second} make {total}.", planted, needed=(total,))


def compared(invention: Invention, rng: random.Random, pages: Pages) -> Question:
    amount = rng.choice(AMOUNTS)
    (a, first), (b, second), planted = _two_amounts(amount, invention)
    # With the numbers: of two names alone the right one is guessed half of the time.
    more, less = sorted((first, second), key=int, reverse=True)
    name, other = (a, b) if more == first else (b, a)
    question = f"{amount.compared.format(a=a, b=b)} Say the two numbers, too."
    answer = f"{name}, with {more} against {less}."
    return Question("compared", question, answer, planted, needed=(name, more, less), instead=(other,))


def table(invention: Invention, rng: random.Random, pages: Pages) -> Question:
    register = rng.choice(REGISTERS)
    title = invention.name()
    rows = [[invention.name(), *(VALUES[column.value](invention) for column in register.columns)] for _ in _rows(rng)]
    lines = [f"| {' | '.join(row)} |" for row in rows]  # as Markdown
    head = [f"| {' | '.join([register.label, *(column.label for column in register.columns)])} |"]
    rule = [f"|{'---|' * (1 + len(register.columns))}"]
    text = "\n".join([register.heading.format(title=title), "", *head, *rule, *lines])
    number, which = rng.randrange(len(rows)), rng.randrange(len(register.columns))
    question = register.columns[which].question.format(title=title, row=rows[number][0])
    return Question("table", question, rows[number][1 + which], (Statement(text, lines[number]),))


def listing(invention: Invention, rng: random.Random, pages: Pages) -> Question:
    chosen = rng.choice(LISTINGS)
    title = invention.name()
    entries = [invention.name() for _ in _rows(rng)]
    lines = [f"{number}. {entry}" for number, entry in enumerate(entries, 1)]
    text = "\n".join([chosen.heading.format(title=title), "", *lines])
    # Either way the answer stands in the list alone.
    asked = rng.randrange(1, len(entries))  # one that has another before it
    if rng.random() < 0.5:
        question = chosen.behind.format(title=title, entry=entries[asked - 1])
        evidence = "\n".join(lines[asked - 1 : asked + 1])
    else:
        question = chosen.numbered.format(title=title, number=asked + 1)
        evidence = lines[asked]
    return Question("list", question, entries[asked], (Statement(text, evidence),))


def code(invention: Invention, rng: random.Random, pages: Pages) -> Question:
    """A function, and a call of it that is to be worked out."""
    name = invention.identifier()
    shape = rng.choice((_line_function, _text_function, _list_function))
    definition, call, result = shape(name, invention, rng)
    question = f"These pages define a Python function {name}. What does {call} return?"
    return Question("code", question, result, (Statement(f"```python\n{definition}\n```", definition),))


def quoted(invention: Invention, rng: random.Random, pages: Pages) -> Question:
    """The rest of a sentence of the text itself.

    Raises:
        Exhausted: no sentence of the text will do.
    """
    whole = " ".join("".join(pages.sentences).split())
    # In random order, so that not always the first that will do is asked for.
    for place in rng.sample(pages.far, len(pages.far)):
        words = pages.sentences[place].split()  # without the ends of lines of a text that is wrapped
        if not QUOTED_WORDS[0] <= len(words) <= QUOTED_WORDS[1]:
            continue
        half = len(words) // 2  # enough to find it by, enough to say
        begins, rest = " ".join(words[:half]), " ".join(words[half:])
        # What stands there twice might be read in the other place.
        if whole.count(begins) > 1 or whole.count(rest) > 1 or not f"{begins}{rest}".isprintable():
            continue
        question = f"There is a sentence that begins like this on these pages: {begins} ... How does it go on?"
        sentence = pages.sentences[place].strip()
        return Question("quoted", question, rest, (Statement(sentence, sentence),), place)
    raise Exhausted


# Each draws a question.
KINDS: dict[str, Callable[[Invention, random.Random, Pages], Question]] = {
    "single": single,
    "several": several,
    "added": added,
    "compared": compared,
    "restated": restated,
    "table": table,
    "list": listing,
    "quoted": quoted,
    "code": code,
}


def _fact(relation: Relation, invention: Invention) -> tuple[str, str, Statement]:
    """A name, a value, and the sentence that says one of the other."""
    name, value = invention.name(), VALUES[relation.value](invention)
    sentence = relation.statement.format(name=name, value=value)
    return name, value, Statement(sentence, sentence)


def _asked(kind: str, relation: Relation, question: str, invention: Invention) -> Question:
    """A fact, and another one of the same sort: that it is a year does not say which."""
    name, value, statement = _fact(relation, invention)
    *_, other = _fact(relation, invention)
    return Question(kind, question.format(name=name), value, (statement, other._replace(evidence=None)))


def _two_amounts(
    amount: Amount, invention: Invention
) -> tuple[tuple[str, str], tuple[str, str], tuple[Statement, ...]]:
    pairs = [(invention.name(), invention.amount()) for _ in range(2)]
    # Both are needed, each in a place of its own.
    sentences = [amount.statement.format(name=name, value=value) for name, value in pairs]
    return *pairs, tuple(Statement(sentence, sentence) for sentence in sentences)


def _rows(rng: random.Random) -> range:
    return range(rng.randint(*ROWS))


def _line_function(name: str, invention: Invention, rng: random.Random) -> tuple[str, str, str]:
    factor, start, x = rng.randrange(3, 20), int(invention.amount()), rng.randrange(2, 10)
    return f"def {name}(x):\n    return {factor} * x + {start}", f"{name}({x})", str(factor * x + start)


def _text_function(name: str, invention: Invention, rng: random.Random) -> tuple[str, str, str]:
    # The label is only in the definition, so that the call alone does not tell it.
    label, word = invention.code(), invention.identifier()
    return f'def {name}(word):\n    return "{label}:" + word', f'{name}("{word}")', f"{label}:{word}"


def _list_function(name: str, invention: Invention, rng: random.Random) -> tuple[str, str, str]:
    values = [invention.count() for _ in range(5)]
    index = rng.randrange(len(values))
    return f"def {name}(index):\n    return [{', '.join(values)}][index]", f"{name}({index})", values[index]
