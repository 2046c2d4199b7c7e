"""Which questions the teacher answers rightly when it is shown nothing but what they depend on.

A student is taught by the teacher's own distributions: where the teacher goes wrong even with the passage before it,
there is nothing to learn of reading far back.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gendistill.data.distant.make import Draft
from gendistill.data.distant.questions import Question

AROUND = 1  # sentences before and behind one of the text's own
BRIEFLY = "Answer with nothing else."

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Check:
    """Who answers, and how it is asked.

    Attributes:
        by: of which two give different answers.
        answer: the replies to conversations of one turn each.
    """

    by: str
    answer: Callable[[list[Messages]], Sequence[str]]

    def keep(self, drafts: Sequence[Draft | str | None]) -> list[Draft | str | None]:
        """The drafts without the questions that were answered wrongly; what is none stays as it is."""
        whole = [draft for draft in drafts if isinstance(draft, Draft)]
        asked = [passage(draft, question) for draft in whole for question in draft.drawn]
        replies = iter(self.answer(asked))
        kept = []
        for draft in drafts:
            if isinstance(draft, Draft):
                right = [question for question in draft.drawn if is_right(question, next(replies))]
                draft = draft._replace(drawn=right, wrong=[q.kind for q in draft.drawn if q not in right])
            kept.append(draft)
        return kept


def passage(draft: Draft, question: Question) -> Messages:
    """The question behind what it depends on, alone."""
    texts = [statement.text for statement in question.planted]
    if question.quoted is not None:  # nothing is planted: a few sentences of the text
        place = question.quoted
        near = draft.sentences[max(0, place - AROUND) : place + AROUND + 1]
        texts = ["".join(sentence.text for sentence in near).strip()]
    return [{"role": "user", "content": "\n\n".join([*texts, f"{question.question} {BRIEFLY}"])}]


def is_right(question: Question, reply: str) -> bool:
    """Whether a reply says all that a right answer says, and nothing else in its place."""
    text = " ".join(reply.split())  # a long one may be wrapped
    found = [_place(text, each) for each in question.needed or (question.answer,)]
    if None in found:
        return False
    others = [place for each in question.instead if (place := _place(text, each)) is not None]
    return all(found[0] < place for place in others)


def _place(text: str, part: str) -> int | None:
    """Where a part begins, not inside of a longer word or number."""
    match = re.search(rf"(?<![\w.,]){re.escape(part)}(?!\w|[.,]\d)", text)
    return None if match is None else match.start()
