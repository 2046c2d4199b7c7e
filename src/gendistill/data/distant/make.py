"""Conversations whose answers lie far back: pages of a text in which something is planted, questions, their answers.

Each is made for a distance from the answer to what it depends on, in tokens of the very sequence that is trained on:
chat template and all, measured on the ids. What does not come out as it should is not used, and counted.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from gendistill.data.controls import GuardedTokens
from gendistill.data.distant.invention import Exhausted, Invention
from gendistill.data.distant.passages import Passages, Sentence
from gendistill.data.distant.questions import KINDS, Pages, Question, Statement
from gendistill.data.rendering import Template
from gendistill.errors import UserError
from gendistill.recipe.data import Source

TOKENS_A_QUESTION = 256  # of pages, at least: what is planted shall stay a small part of them
MOST_QUESTIONS = 24  # a long row costs as much with one; its answers are all that is learnt of it
ALONE = 1 / 4  # of the conversations, at least, with a single question, which is what an evaluation asks
LEAD = 1 / 8  # of the distance, at most: pages before all that is asked for
TRIES = 20  # draws of a question, beyond those that are wanted

INTRODUCTIONS = (
    "Read these pages; a question comes at their end.",
    "Some pages follow. They are long, and what matters may stand anywhere on them.",
    "Keep in mind what these pages say.",
    "Here is something to read before I ask you about it.",
)
ONE_QUESTION = ("{question}", "Now the question: {question}", "{question} Be brief.")
MANY_QUESTIONS = "Some questions about these pages. Give each answer a line with its number.\n{questions}"

# Why a conversation was not used.
OVERLAP = "overlap with an evaluation item"
NO_GAP = "no end of a sentence at such a distance"
OUTSIDE = "a distance outside the range"
TOO_LONG = "longer than sequence_length"
NOT_ONCE = "what is asked for stands on the pages more than once"
WRONG = "the teacher answers otherwise, shown the passage alone"


@dataclass(frozen=True)
class Distant:
    """A conversation to train on."""

    messages: list[dict[str, str]]  # one turn of the user, one of the assistant
    kinds: list[str]  # of its questions
    evidence: list[list[str]]  # for each question, the parts of the pages that its answer depends on
    distances: list[list[int]]  # for each part, tokens from its last one to the first one of the reply
    tokens: int  # of the sequence
    loss_tokens: int  # of the reply, with the end of its turn

    def to_record(self) -> dict[str, Any]:
        names = ("kind", "evidence", "distance")
        columns = zip(self.kinds, self.evidence, self.distances, strict=True)
        return {"messages": self.messages, "asked": [dict(zip(names, column, strict=True)) for column in columns]}


class Taken(NamedTuple):
    """Pages of which a conversation is to be made."""

    sentences: list[Sentence]
    reach: int  # tokens that the farthest distance shall have
    rng: random.Random  # of this conversation, in the state that taking has left


class Draft(NamedTuple):
    """Pages, and the questions that will be asked about them."""

    sentences: list[Sentence]
    drawn: list[Question]
    reach: int  # tokens that the farthest distance shall have
    rng: random.Random  # of this conversation, in the state that drawing has left
    wrong: Sequence[str] = ()  # kinds of the questions that were drawn and left out, since the teacher does not know


@dataclass
class DistantCounts:
    """What was made."""

    conversations: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    unused: dict[str, int] = field(default_factory=dict)  # conversations, by the reason for which they are not used
    kinds: dict[str, int] = field(default_factory=dict)  # questions
    wrong: dict[str, int] = field(default_factory=dict)  # questions that the teacher answers wrongly, by kind
    distances: list[int] = field(default_factory=list)  # the shortest and the longest

    def add(self, made: "Distant | str", draft: "Draft | str") -> None:
        """Counts a conversation, or the reason for which there is none, and what was left out of its draft."""
        if isinstance(draft, Draft):
            self.wrong = dict(Counter(self.wrong) + Counter(draft.wrong))
        if isinstance(made, str):
            self.unused[made] = self.unused.get(made, 0) + 1
            return
        self.conversations += 1
        self.tokens += made.tokens
        self.loss_tokens += made.loss_tokens
        self.kinds = dict(Counter(self.kinds) + Counter(made.kinds))
        every = [*self.distances, *(distance for each in made.distances for distance in each)]
        self.distances = [min(every), max(every)]


class Maker:
    """Makes conversations of one source. What is taken may be drawn and finished by several threads at once.

    Args:
        source: its texts, and the distances.
        sequence_length: no conversation is longer.
        seed: conversation number n depends on it, on n, and on where in the text it begins; on nothing else.
        overlaps: whether a text holds an evaluation item.
    """

    def __init__(
        self, source: Source, tokenizer: Any, *, sequence_length: int, seed: str, overlaps: Callable[[str], bool]
    ):
        self.low, self.high = source.distances
        if self.high > sequence_length:
            raise UserError(
                f"{source.label}: distances up to {self.high:,} tokens need rows as long; sequence_length is "
                f"{sequence_length:,}. Raise it, or lower the distances"
            )
        self.source, self.sequence_length, self.seed, self.overlaps = source, sequence_length, seed, overlaps
        self.looking_up = Lock()  # for overlaps: what is looked up in may change when it is
        self.tokenizer, self.template = tokenizer, Template(tokenizer)
        # What the template writes around an exchange of two letters.
        self.around = len(self._ids(self.template.render_conversation(_exchange("a", "a")).text)) - 2

    def take(self, number: int, passages: Passages) -> Taken | None:
        """The next conversation's pages; None where the text is at its end."""
        rng = random.Random(f"distant {self.seed} {number}")
        # As many short distances as long ones: each doubling gets its share.
        reach = round(self.low * (self.high / self.low) ** rng.random())
        lead = round(rng.random() * min(LEAD * reach, self.sequence_length - self.high))
        sentences = passages.take(reach + lead)
        if sum(sentence.tokens for sentence in sentences) < reach:  # what is left is too short for this one
            return None
        return Taken(sentences, reach, rng)

    def draw(self, taken: Taken | None) -> Draft | str | None:
        """Questions about what was taken, if there was anything; or why there are none.

        Raises:
            UserError: the distances are too close together for any question.
        """
        if taken is None:
            return None
        try:
            drawn = self._draw(*taken)
        except Exhausted:
            return NOT_ONCE
        return Draft(taken.sentences, drawn, taken.reach, taken.rng)

    def finish(self, draft: Draft | str | None) -> Distant | str | None:
        """The conversation of a draft; or why there is none, or what came of it is not used."""
        if not isinstance(draft, Draft):
            return draft
        if not draft.drawn:
            return WRONG
        return self._assemble(draft.sentences, draft.drawn, draft.reach, draft.rng)

    def _draw(self, sentences: Sequence[Sentence], reach: int, rng: random.Random) -> list[Question]:
        """Questions that leave room between the distances, at least one."""
        behind = _tokens_behind(sentences)[1:]  # [sentences]
        far = np.flatnonzero((behind >= self.low) & (behind <= reach)).tolist()
        pages = Pages([sentence.text for sentence in sentences], far)
        invention = Invention(rng, "".join(pages.sentences))
        most = 1 if rng.random() < ALONE else max(1, min(MOST_QUESTIONS, reach // TOKENS_A_QUESTION))
        wanted = rng.randint(-(-most // 2), most)
        drawn: list[Question] = []
        smallest = self.sequence_length
        for _ in range(wanted + TRIES):
            try:
                question = KINDS[rng.choice(list(KINDS))](invention, rng, pages)
            except Exhausted:  # of quotations some texts have none
                continue
            needed = self._overhead([*drawn, question], self.high - self.low)
            smallest = min(smallest, needed)
            if self.low + needed <= self.high:
                drawn.append(question)  # else a smaller one may fit
            if len(drawn) == wanted:
                break
        if not drawn and self.low + smallest > self.high:
            raise UserError(
                f"{self.source.label}: distances of {self.low} to {self.high} tokens leave no room: a question, its "
                f"answer and what is planted take {smallest} or more. Raise the upper one"
            )
        if not drawn:
            raise Exhausted
        return drawn

    def _overhead(self, drawn: Sequence[Question], enough: int = 0) -> int:
        """Tokens of a conversation besides its pages, or a few more; any more, if they are no more than `enough`."""
        longest = max(INTRODUCTIONS, key=len)
        # A sentence of the text's own is counted with the pages.
        planted = [each.text for question in drawn if question.quoted is None for each in question.planted]
        texts = [longest, MANY_QUESTIONS, *planted, *(q.question for q in drawn), *(q.answer for q in drawn)]
        numbers = 4 * 2 * len(drawn)  # of questions and answers, with the ends of their lines
        text, rest = "\n\n".join(texts), self.around + 2 * len(planted) + numbers
        most = rest + len(text.encode())  # tokenising takes long, and no token is shorter than a byte
        return most if most <= enough else rest + len(self._ids(text))

    def _assemble(
        self, sentences: Sequence[Sentence], drawn: list[Question], reach: int, rng: random.Random
    ) -> Distant | str:
        """The conversation, its distances measured."""
        overhead = self._overhead(drawn)
        # The pages end where the question begins; what is too much for a row is taken off their beginning.
        behind = _tokens_behind(sentences)  # [sentences + 1]
        first = int(np.argmax(behind <= self.sequence_length - overhead))
        farthest = min(reach, self.high - overhead)
        gaps = np.flatnonzero((behind >= self.low) & (behind <= farthest) & (np.arange(len(behind)) >= first))
        # Once it is known how much stands between pages and answer, a quotation may be too far away.
        drawn = [question for question in drawn if question.quoted is None or question.quoted + 1 in gaps]
        if not len(gaps) or not drawn:
            return NO_GAP
        # Before anything is planted, which would break up an item; quotations are of these sentences, too.
        text = "".join(sentence.text for sentence in sentences[first:])
        with self.looking_up:
            if self.overlaps(text):
                return OVERLAP
        planted = self._places(drawn, gaps, range(first, len(behind)), rng)
        pages = _plant([sentence.text for sentence in sentences], first, planted)
        question, answer = _ask(drawn, rng)
        content = f"{rng.choice(INTRODUCTIONS)}\n\n{pages}\n\n{question}"
        evidence = [[each.evidence for each in q.planted if each.evidence is not None] for q in drawn]
        return self._measure(_exchange(content, answer), [question.kind for question in drawn], evidence)

    def _places(
        self, drawn: Sequence[Question], gaps: np.ndarray, all_gaps: range, rng: random.Random
    ) -> list[tuple[int, Statement]]:
        """A gap for each statement: the farthest for the first that a question needs, any for what none needs."""
        places = []
        # Taken by the first that asks for it: otherwise a long distance would be rarer than was drawn.
        farthest = [int(gaps[0])]
        for question in drawn:
            if question.quoted is not None:
                continue
            for statement in question.planted:
                if statement.evidence is None:
                    places.append((rng.choice(all_gaps), statement))
                    continue
                places.append((farthest.pop() if farthest else int(rng.choice(gaps)), statement))
        return places

    def _measure(self, messages: list[dict[str, str]], kinds: list[str], evidence: list[list[str]]) -> Distant | str:
        # As it will be encoded for training, so that the distances are those of training.
        rendered = self.template.render_conversation(messages)
        encoding = self.template.tokenize([rendered.text])[rendered.text]
        tokens = GuardedTokens(rendered.text, encoding)
        if len(tokens.ids) > self.sequence_length:
            return TOO_LONG
        (reply,) = rendered.replies
        start = tokens.at(reply.prompt.stop)  # the first token of the reply
        distances = []
        for texts in evidence:
            # Where it stands twice, the answer might be read off the nearer place.
            if any(rendered.text.count(text) != 1 for text in texts):
                return NOT_ONCE
            ends = [rendered.text.index(text) + len(text) - 1 for text in texts]
            distances.append([start - tokens.at(end) for end in ends])
        if any(not self.low <= distance <= self.high for each in distances for distance in each):
            return OUTSIDE
        # The sequence ends with the token that ends the reply's turn.
        return Distant(messages, kinds, evidence, distances, len(tokens.ids), len(tokens.ids) - start)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _tokens_behind(sentences: Sequence[Sentence]) -> np.ndarray:
    """[sentences + 1] tokens of the pages behind each gap: before each sentence, and behind the last."""
    tokens = np.array([sentence.tokens for sentence in sentences])
    return np.append(np.cumsum(tokens[::-1])[::-1], 0)


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _ask(drawn: Sequence[Question], rng: random.Random) -> tuple[str, str]:
    """What is asked, and the whole reply; several questions are numbered."""
    if len(drawn) == 1:
        return rng.choice(ONE_QUESTION).format(question=drawn[0].question), drawn[0].answer
    questions = "\n".join(f"{number}. {each.question}" for number, each in enumerate(drawn, 1))
    answers = "\n".join(f"{number}. {each.answer}" for number, each in enumerate(drawn, 1))
    return MANY_QUESTIONS.format(questions=questions), answers


def _plant(texts: list[str], first: int, planted: Sequence[tuple[int, Statement]]) -> str:
    """The sentences from `first` on as pages, with each statement before the sentence of its gap."""
    before: dict[int, list[Statement]] = {}  # by gap
    for gap, statement in planted:
        before.setdefault(gap, []).append(statement)
    parts, after_block = [], False
    for gap in range(first, len(texts) + 1):
        for statement in before.get(gap, ()):
            parts.append(("\n\n" if statement.is_block or after_block else " ") + statement.text)
            after_block = statement.is_block
        if gap < len(texts):
            # A block stands between blank lines, whatever white space the text has here.
            parts.append("\n\n" + texts[gap].lstrip() if after_block else texts[gap])
            after_block = False
    return "".join(parts).strip()
