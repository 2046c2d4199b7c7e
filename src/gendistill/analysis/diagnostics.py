"""What is wrong with a model's replies on one task: rates, letters, rotations, and diagnoses by name.

All is derived from the records that `evaluate_model` writes. Rates are shares (0 to 1) of items unless they say
otherwise.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from gendistill.analysis.repetition import repeats
from gendistill.analysis.significance import mcnemar
from gendistill.names import LETTERS

# Fewer items than this are not diagnosed: a model that guesses among four letters gives one of them in 4 of 5 replies
# once in 16 times, in 7 of 8 once in 650.
MIN_ITEMS = 8
# What a model does in more than half of its replies is what it does.
MAJORITY = 0.5
# Most models lean towards some letter (arXiv 2309.03882); at four replies in five it is no answer any more.
SAME_LETTER = 0.8
# The right answers may lean as well: in a task whose answer is A four times in five, A is no diagnosis.
ABOVE_GOLD = 0.25
# A loop is never an answer, so a tenth of the replies is enough for a name.
REPETITIVE = 0.1
# In skill, the share beyond guessing: ranking guesses among four where generation has to find the words. In GSM8K
# Qwen2.5-1.5B has no such lead of ranking, the student of results/qwen2.5-1.5b one of 0.13.
SKILL_GAP = 0.1
SIGNIFICANT = 0.05

Record = Mapping[str, Any]


class Diagnosis(NamedTuple):
    """A name and a sentence that says what it rests on."""

    name: str
    sentence: str


@dataclass(frozen=True)
class Rotations:
    """Multiple-choice items prompted with their options at every letter in turn.

    Attributes:
        accuracy: over all rotations of all items.
        all_right: items right under every rotation.
        same_letter: items answered with one and the same letter under every rotation, whatever stood there.
        same_choice: items answered with one and the same option under every rotation, right or wrong.
    """

    accuracy: float
    all_right: float
    same_letter: float
    same_choice: float


@dataclass(frozen=True)
class Diagnostics:
    """One model on one task.

    Attributes:
        ranking: accuracy; None if the task is not ranked. `generation` and `flexible` are those of the replies.
        skill: by ranking and by generation, the accuracy beyond guessing, (accuracy - chance) / (1 - chance), at least
            0; None if the task is not ranked.
        truncated: replies that ran out of their budget.
        tokens: median length of a reply, and the length that 90 % do not exceed.
        repetitive: replies that are caught in a loop, see `repetition.repeats`.
        letters: of a multiple_choice task, each letter's share of the replies that gave one; else empty.
        gold_letters: each letter's share of the right answers.
        ranking_by: accuracy by each way to rank options, see `recipe.Task.rank_by`; empty if there are no options.
        margin: mean lead of the best candidate's score over the second's, in nats; None if the task is not ranked.
        rotations: None if the task was not rotated.
    """

    items: int
    ranking: float | None
    generation: float
    flexible: float
    skill: tuple[float, float] | None
    unparsed: float
    flexible_unparsed: float
    truncated: float
    tokens: tuple[float, float]
    repetitive: float
    letters: dict[str, float]
    gold_letters: dict[str, float]
    ranking_by: dict[str, float]
    margin: float | None
    rotations: Rotations | None
    diagnoses: tuple[Diagnosis, ...] = ()

    @property
    def too_few(self) -> bool:
        """Whether nothing could be diagnosed, whatever the replies are like."""
        return self.items < MIN_ITEMS

    def to_dict(self) -> dict[str, Any]:
        # asdict makes dicts of dataclasses, and leaves a NamedTuple a list without its names.
        return asdict(self) | {"diagnoses": [diagnosis._asdict() for diagnosis in self.diagnoses]}


def diagnose(records: Sequence[Record]) -> Diagnostics:
    """Rates and diagnoses of one model on one task, from its records.

    Diagnoses, each for at least MIN_ITEMS items:

    - "always answers X": SAME_LETTER of the replies that give a letter give X, and X is right far less often;
    - "sticks to a letter": SAME_LETTER of the items get the same letter wherever their options stand;
    - "answers in prose": MAJORITY of the replies end by themselves and hold no answer that can be extracted;
    - "generates nothing": MAJORITY of the replies are empty;
    - "never stops": MAJORITY of the replies run out of their budget;
    - "repeats itself": REPETITIVE of the replies are loops;
    - "ranks well but does not generate it": skill by ranking exceeds that by generation by SKILL_GAP, and by McNemar's
      test.
    """
    ranked = records[0]["ranking_correct"] is not None  # a task is ranked as a whole or not at all
    lengths = [record["reply_tokens"] for record in records]
    figures = Diagnostics(
        items=len(records),
        ranking=_share(record["ranking_correct"] for record in records) if ranked else None,
        generation=_share(record["generation_correct"] for record in records),
        flexible=_share(record["flexible_correct"] for record in records),
        skill=_skill(records) if ranked else None,
        unparsed=_share(record["parsed"] is None for record in records),
        flexible_unparsed=_share(record["flexible_parsed"] is None for record in records),
        truncated=_share(record["truncated"] for record in records),
        # "higher": a length that some reply has, never one between two.
        tokens=(float(np.median(lengths)), float(np.quantile(lengths, 0.9, method="higher"))),
        repetitive=_share(repeats(record["reply"]) for record in records),
        letters=_letters(records),
        gold_letters=_gold_letters(records),
        ranking_by=_ranking_by(records),
        margin=fmean(_margin(record["scores"]) for record in records) if ranked else None,
        rotations=_rotations(records),
    )
    if figures.too_few:
        return figures  # rates of few items are still true, names for them would be guesses
    return replace(figures, diagnoses=tuple(_diagnoses(figures, records)))


def _share(values: Any) -> float:
    return fmean(map(bool, values))


def _skill(records: Sequence[Record]) -> tuple[float, float]:
    """By ranking and by generation; guesses of a reply without options to choose from are never right."""
    guessed_rankings = [len(record["gold"]) / len(record["candidates"]) for record in records]
    guessed_replies = [len(record["gold"]) / len(record["choices"]) if record["choices"] else 0 for record in records]
    by_ranking = _beyond(fmean(guessed_rankings), _share(record["ranking_correct"] for record in records))
    by_generation = _beyond(fmean(guessed_replies), _share(record["generation_correct"] for record in records))
    return by_ranking, by_generation


def _beyond(chance: float, accuracy: float) -> float:
    """The share of what guessing leaves open; 0 below it, since being wrong on purpose is no skill."""
    return max(0.0, (accuracy - chance) / (1 - chance))


def _letters(records: Sequence[Record]) -> dict[str, float]:
    """Letters that could have been given, in order; none was given: all 0."""
    offered = LETTERS[: max(len(record["choices"]) for record in records)]  # none, if no item has options
    given = Counter(record["parsed"] for record in records if record["parsed"] is not None)
    total = max(1, given.total())
    return {letter: given[letter] / total for letter in offered}


def _gold_letters(records: Sequence[Record]) -> dict[str, float]:
    """An item with several right letters counts for each by its part."""
    shares = dict.fromkeys(_letters(records), 0.0)
    if not shares:
        return shares  # no options: `gold` counts candidates, which have no letters
    for record in records:
        for index in record["gold"]:
            shares[LETTERS[index]] += 1 / len(record["gold"]) / len(records)
    return shares


def _ranking_by(records: Sequence[Record]) -> dict[str, float]:
    ways = records[0].get("ranking_by", ())  # absent from records of tasks without options
    return {way: _share(record["ranking_by"][way] for record in records) for way in ways}


def _margin(scores: Sequence[float]) -> float:
    best, second, *_ = sorted(scores, reverse=True)  # log-likelihoods of the candidates
    return best - second


def _rotations(records: Sequence[Record]) -> Rotations | None:
    if "rotations" not in records[0]:
        return None
    by_item = [record["rotations"] for record in records]
    return Rotations(
        accuracy=_share(rotation["correct"] for rotations in by_item for rotation in rotations),
        all_right=_share(all(rotation["correct"] for rotation in rotations) for rotations in by_item),
        same_letter=_share(_agree(rotations, "parsed") for rotations in by_item),
        same_choice=_share(_agree(rotations, "choice") for rotations in by_item),
    )


def _agree(rotations: Sequence[Record], key: str) -> bool:
    """Whether all give the same; None, an unparsed reply, agrees with nothing."""
    given = {rotation[key] for rotation in rotations}
    return len(given) == 1 and None not in given


def _diagnoses(figures: Diagnostics, records: Sequence[Record]) -> Iterator[Diagnosis]:
    """The more specific first: what a letter explains need not be explained by the rest."""
    yield from _by_letter(figures)
    yield from _by_reply(figures, records)
    yield from _by_gap(figures, records)


def _by_letter(figures: Diagnostics) -> Iterator[Diagnosis]:
    if not figures.letters:
        return  # no options
    letter = max(figures.letters, key=figures.letters.__getitem__)
    share, right = figures.letters[letter], figures.gold_letters[letter]
    # `share` is of the replies that give a letter: of too few of them it would name what the model rarely does.
    given = (1 - figures.unparsed) * figures.items
    often = given >= max(MIN_ITEMS, MAJORITY * figures.items)
    if often and share >= SAME_LETTER and share - right >= ABOVE_GOLD:
        yield Diagnosis(
            f"always answers {letter}",
            f"{share:.0%} of the replies that give a letter give {letter}, which is right in {right:.0%} of the items.",
        )
    elif figures.rotations is not None and figures.rotations.same_letter >= SAME_LETTER:
        # A letter for each item, and another for the next: no letter leads, and yet the options decide nothing.
        yield Diagnosis(
            "sticks to a letter",
            f"{figures.rotations.same_letter:.0%} of the items get one letter, wherever their options stand.",
        )


def _by_reply(figures: Diagnostics, records: Sequence[Record]) -> Iterator[Diagnosis]:
    median, _ = figures.tokens
    empty = _share(not record["reply"] for record in records)
    if empty >= MAJORITY:
        yield Diagnosis("generates nothing", f"{empty:.0%} of the replies are empty.")
    # An empty reply is no prose, and of a truncated one nobody knows how it would have ended.
    prose = _share(record["parsed"] is None and record["reply"] and not record["truncated"] for record in records)
    if prose >= MAJORITY:
        yield Diagnosis(
            "answers in prose",
            f"{prose:.0%} of the replies end by themselves and hold no answer in the requested format (median "
            f"{median:.0f} tokens); flexible extraction leaves {figures.flexible_unparsed:.0%} unparsed.",
        )
    # Both of these may hold at once: a loop seldom ends by itself.
    if figures.truncated >= MAJORITY:
        yield Diagnosis(
            "never stops",
            f"{figures.truncated:.0%} of the replies run out of their budget (median {median:.0f} tokens): the model "
            "does not end its turn, or max_new_tokens is too small for the way it answers.",
        )
    if figures.repetitive >= REPETITIVE:
        yield Diagnosis("repeats itself", f"{figures.repetitive:.0%} of the replies are caught in a loop.")


def _by_gap(figures: Diagnostics, records: Sequence[Record]) -> Iterator[Diagnosis]:
    if figures.skill is None:
        return  # not ranked
    by_ranking, by_generation = figures.skill
    ranked = np.array([record["ranking_correct"] for record in records])  # [items] bool
    generated = np.array([record["generation_correct"] for record in records])  # [items] bool
    # The gap says how much, the test that it is no accident: of 12 items a gap of 0.2 is nothing.
    if by_ranking - by_generation >= SKILL_GAP and mcnemar(ranked, generated) < SIGNIFICANT:
        yield Diagnosis(
            "ranks well but does not generate it",
            f"Right in {figures.ranking:.0%} by ranking and {figures.generation:.0%} by generation; beyond guessing "
            f"{by_ranking:.0%} and {by_generation:.0%}.",
        )
