"""Questions with lettered options for the real-teacher runs: of train splits, of instructions, and of a dictionary."""

import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gendistill.evaluate.kinds.item import user_turn
from gendistill.names import LETTERS
from gendistill.synthesize.overlap import OverlapIndex

CHOICE_SETS = ("arc_easy", "arc_challenge", "openbookqa")
# What is measured, by its file; none of it is asked here.
MEASURED = (
    "arc_easy/test",
    "arc_challenge/test",
    "openbookqa/test",
    "mmlu_redux/test",
    "commonsense_qa/dev",
    "boolq/dev",
)
# Of the templates of an instruction set: those that list options and no more, and those that ask of a passage what it
# answers in its own words.
LISTED = ("commonsense_qa_question_answering", "cosmos_qa_no_prompt_text", "qasc_qa_with_combined_facts_1")
PASSAGES = (
    "adversarial_qa_dbert_question_context_answer",
    "adversarial_qa_dbidaf_question_context_answer",
    "adversarial_qa_droberta_question_context_answer",
    "quoref_Given_Context_Answer_Question",
    "ropes_plain_background_situation",
    "kilt_tasks_hotpotqa_straighforward_qa",
)
OPTION = re.compile(r"^ ?- (.+)\n?", re.MULTILINE)
WORDS = 6_000  # questions of the dictionary
LONGEST = 1500  # characters of a question: a longer one has hundreds of tokens for a letter
MOST_OPTIONS = 5


class Question(NamedTuple):
    """A question, its options, and the number of the right one."""

    text: str
    options: tuple[str, ...]
    right: int

    def turns(self) -> tuple[str, str]:
        """What the user says and the assistant answers, worded as the evaluator words it."""
        return user_turn(self.text, self.options), LETTERS[self.right]

    def rotations(self) -> Iterator["Question"]:
        """Each option once under each letter."""
        for by in range(len(self.options)):
            options = self.options[by:] + self.options[:by]
            yield Question(self.text, options, options.index(self.options[self.right]))


def choices(data: Path) -> list[tuple[str, str]]:
    """Turns of all questions under all rotations of their options, but for what is measured.

    Every third question of a train split has one of another's options as its fifth, or the fifth letter would be one
    that nobody ever answers.
    """
    rng = random.Random(0)
    measured = measured_questions(data)
    trained = [question for name in CHOICE_SETS for question in split(data / name / "train.jsonl.gz")]
    instructions = read(data / "p3_subset" / "train.jsonl.gz")
    asked = [
        *widened(trained, rng),
        *listed(instructions, rng),
        *judged(instructions, rng),
        *defined(read(data / "wordnet_glosses" / "glosses.jsonl.gz"), rng),
    ]
    fit = [each for each in asked if len(each.text) <= LONGEST and len(set(each.options)) == len(each.options)]
    kept = [question for question in fit if measured.find(question.text) is None]
    turns = [rotation.turns() for question in kept for rotation in question.rotations()]
    print(f"{len(kept)} questions with options, {len(turns)} rotated; {len(fit) - len(kept)} left out, being measured")
    return turns


def read(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def measured_questions(data: Path) -> OverlapIndex:
    index = OverlapIndex()
    for name in MEASURED:
        for record in read(data / f"{name}.jsonl.gz"):
            index.add(name, record["question"])
    return index


def split(path: Path) -> Iterator[Question]:
    for record in read(path):
        yield Question(record["question"], tuple(record["choices"]), record["answer"])


def widened(questions: list[Question], rng: random.Random) -> Iterator[Question]:
    for number, question in enumerate(questions):
        if number % 3 or len(question.options) >= MOST_OPTIONS:
            yield question
        else:
            yield question._replace(options=(*question.options, rng.choice(rng.choice(questions).options)))


def listed(instructions: Iterable[dict], rng: random.Random) -> Iterator[Question]:
    """Questions that list their options, of which some are left out where there are more than five."""
    for record in instructions:
        if record["template"] not in LISTED:
            continue
        answer = record["completion"].strip()
        wrong = [option.strip() for option in OPTION.findall(record["prompt"]) if option.strip() != answer]
        options = [answer, *rng.sample(wrong, min(len(wrong), MOST_OPTIONS - 1))]
        rng.shuffle(options)
        text = OPTION.sub("", record["prompt"]).removesuffix("Answer choices:\n").strip()
        yield Question(text, tuple(options), options.index(answer))


def judged(instructions: list[dict], rng: random.Random) -> Iterator[Question]:
    """Questions for yes or no: those that are answered so, and whether an answer to others is right."""
    passages = [record for record in instructions if record["template"] in PASSAGES]
    for record in instructions:
        answer = record["completion"].strip().lower()
        if answer in ("no", "yes"):
            yield Question(record["prompt"], ("no", "yes"), answer == "yes")
    for record in passages:
        right = rng.random() < 0.5
        answer = record["completion"] if right else other_than(record["completion"], passages, rng)
        passage = record["prompt"].removesuffix("Answer:").strip()
        yield Question(f'{passage}\n\nQuestion: is the answer "{answer.strip()}"?', ("no", "yes"), right)


def other_than(answer: str, records: list[dict], rng: random.Random) -> str:
    other = answer
    while other.strip() == answer.strip():
        other = rng.choice(records)["completion"]
    return other


def defined(entries: list[dict], rng: random.Random) -> Iterator[Question]:
    """What a word means, or which word means this: four or five options, all of them nouns, or verbs, and so on."""
    by_kind = defaultdict(list)
    for entry in entries:
        by_kind[entry["pos"]].append(entry)
    for entry in rng.sample(entries, WORDS):
        others = rng.sample(by_kind[entry["pos"]], rng.randint(3, MOST_OPTIONS - 1))
        drawn = [entry, *(other for other in others if other["words"] != entry["words"])]
        rng.shuffle(drawn)
        right = drawn.index(entry)
        if rng.random() < 0.5:
            yield Question(f'What does "{entry["words"][0]}" mean?', tuple(map(meaning, drawn)), right)
        else:
            words = tuple(other["words"][0] for other in drawn)
            yield Question(f'Which word means "{meaning(entry)}"?', words, right)


def meaning(entry: dict) -> str:
    """Without examples, which hold the word."""
    return entry["text"].partition("): ")[2].partition('; "')[0]
