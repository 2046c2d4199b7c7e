"""Which replies are kept. Every check is cheap next to generation, so all replies are judged anew in one go."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gendistill.analysis.repetition import repeats
from gendistill.evaluate.kinds import grade
from gendistill.evaluate.kinds.shared.programs import code_of
from gendistill.inference.generation import Reply
from gendistill.recipe.data import Synthesis
from gendistill.sandbox.run import run_many
from gendistill.synthesize.checks import Duplicates
from gendistill.synthesize.overlap import OverlapIndex
from gendistill.synthesize.prompts import Prompt


@dataclass
class Answered:
    """A prompt and one reply to it.

    Attributes:
        scores: log-likelihood of each letter as the reply, where a margin is asked for.
        failed: the first check that rejects it; None if none does.
        notes: what checks found, for the record.
    """

    prompt: Prompt
    sample: int
    reply: Reply
    scores: Sequence[float] | None = None
    failed: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def judge(answered: list[Answered], synthesis: Synthesis, overlap: OverlapIndex) -> dict[str, dict[str, int]]:
    """Notes for every reply the first check it fails.

    In this order: truncated, too_short, repeats, unparsed, wrong_answer, tests, rotations (another rotation of the
    question was rejected or answered otherwise), margin, overlap, duplicate.

    Returns:
        for each check how many replies it saw and how many it rejected.
    """
    duplicates = Duplicates()
    # In an order that matters: `unparsed` extracts the answers that later checks compare, and the cheap ones go first.
    checks: dict[str, Callable[[list[Answered]], Iterator[Answered]]] = {
        # A continuation has no end to reach: it is cut where the budget runs out.
        "truncated": lambda left: (a for a in left if a.reply.truncated and a.prompt.is_chat),
        "too_short": lambda left: (a for a in left if a.reply.tokens < synthesis.min_new_tokens),
        "repeats": lambda left: (a for a in left if repeats(a.reply.text)),
        "unparsed": lambda left: (a for a in left if a.prompt.item is not None and _parse(a) is None),
        "wrong_answer": lambda left: (
            a for a in left if synthesis.known_answer and a.prompt.item is not None and not a.notes["correct"]
        ),
        "tests": _failing_tests,
        "rotations": _disagreeing,
        "margin": lambda left: (a for a in _narrow(left, synthesis.margin)),
        "overlap": lambda left: (a for a in left if _overlaps(a, overlap)),
        "duplicate": lambda left: (a for a in left if duplicates.add(f"{a.prompt.user}\n{a.reply.text}") != "new"),
    }
    counts = {}
    for name, check in checks.items():
        # What an earlier check rejected is not looked at again: the counts add up.
        left = [a for a in answered if a.failed is None]
        rejected = list(check(left))
        for a in rejected:
            a.failed = name
        counts[name] = {"seen": len(left), "rejected": len(rejected)}
    return counts


def _parse(a: Answered) -> str | None:
    """The answer by strict extraction, noted with whether it is right: records to train on should be in form."""
    (grades,) = grade([a.prompt.item], [a.reply.text], [a.reply.truncated])
    a.notes |= {"answer": grades.strict.parsed, "correct": grades.strict.correct}
    return grades.strict.parsed


def _failing_tests(left: list[Answered]) -> Iterator[Answered]:
    tested = [a for a in left if a.prompt.tests is not None]
    # All at once, so that they run in parallel.
    outcomes = run_many([code_of(a.reply.text) for a in tested], [a.prompt.tests for a in tested])
    for a, outcome in zip(tested, outcomes, strict=True):
        a.notes["tests"] = outcome.reason
        if not outcome.ok:  # the notes say why, also of those that passed
            yield a


def _chosen_option(a: Answered) -> str:
    item = a.prompt.item
    # By its text: under each rotation it stands at another letter.
    return item.choices[item.candidates.index(a.notes["answer"])]


def _groups(left: list[Answered]) -> Iterator[list[Answered]]:
    """The replies to one multiple-choice question under its rotations, those that are left."""
    groups = defaultdict(list)
    for a in left:
        if a.prompt.has_options:
            groups[a.prompt.group, a.sample].append(a)  # samples are judged apart
    yield from groups.values()


def _disagreeing(left: list[Answered]) -> Iterator[Answered]:
    for group in _groups(left):
        # A rotation that an earlier check rejected is missing here, which rejects the question too.
        if len(group) < len(group[0].prompt.item.choices) or len(set(map(_chosen_option, group))) > 1:
            yield from group


def _narrow(left: list[Answered], margin: float | None) -> Iterator[Answered]:
    """Questions whose letter leads by less than the margin under some rotation."""
    if margin is None:
        return
    for group in _groups(left):
        for a in group:
            chosen = a.prompt.item.candidates.index(a.notes["answer"])
            # Negative if a letter other than the chosen one is the likeliest.
            others = [score for letter, score in enumerate(a.scores) if letter != chosen]
            a.notes["margin"] = round(a.scores[chosen] - max(others), 4)
        # All rotations or none: else the letters of what is kept would be out of balance.
        if min(a.notes["margin"] for a in group) < margin:
            yield from group


def _overlaps(a: Answered, overlap: OverlapIndex) -> bool:
    # With the reply: it may quote an evaluation that the prompt does not.
    found = overlap.find(f"{a.prompt.asked}\n{a.reply.text}")
    if found is not None:
        a.notes["overlap"] = {"evaluation": found.evaluation, "item": found.item, "words": found.words}
    return found is not None


def letters(answered: list[Answered]) -> dict[str, int]:
    """How often each letter is the answer among the multiple-choice replies that are kept."""
    kept = (a for a in answered if a.failed is None and a.prompt.has_options)
    return dict(sorted(Counter(a.notes["answer"] for a in kept).items()))
