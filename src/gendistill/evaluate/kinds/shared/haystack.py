"""Haystacks: text that something is hidden in, read from a path or made up, and the tasks that hide something in it."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from gendistill.data.conversations import Skipped
from gendistill.data.sources import read_documents
from gendistill.errors import UserError
from gendistill.evaluate.kinds.item import Draws
from gendistill.evaluate.kinds.shared.long_context import LongContextTask, Padding, token_counts
from gendistill.recipe.data import Source

HAYSTACK_CHARACTERS = 4_000_000  # of a haystack are read: some 8 times what 128K tokens take
PARAGRAPH = "\n\n"  # what is hidden may end with it; the white space of the next word is left out then
# Behind these no sentence has ended.
ABBREVIATION = re.compile(r"(?<!\w)(?:[A-Z]|Mr|Mrs|Ms|Dr|St|No)\.")

# What the made-up haystack is made of. No sentence of these holds a pair of words that is a key.
_OPENINGS = ("in the evening", "after the rain", "late in spring", "on most days", "as everyone knew", "without a word")
_SUBJECTS = (
    "the baker", "my neighbour", "an old sailor", "the teacher", "a young painter", "the mayor's sister", "our guide",
    "the postman", "a travelling merchant", "the gardener", "her grandfather", "the woman next door", "a tired farmer",
    "the children", "two musicians", "the owner of the inn",
)  # fmt: skip
_ACTIONS = (
    "walked home slowly", "told a long story", "looked for a warm place", "waited for news", "sang an old song",
    "bought bread and cheese", "wrote a letter", "repaired the roof", "read the newspaper", "talked about the harvest",
    "drank a cup of tea", "watched the sunset", "closed the shutters", "carried wood", "forgot about dinner",
    "listened to the wind", "painted the fence", "counted the steps", "asked for directions", "fell asleep",
)  # fmt: skip
_PLACES = (
    "near the harbour", "behind the mill", "in the market square", "by the window", "along the coast", "under a tree",
    "outside the village", "at the station", "in the library", "across the valley", "beside the fire", "at the corner",
    "in the old kitchen", "on the hill", "next to the church", "in a narrow street",
)  # fmt: skip
_ENDINGS = ("while the others worked", "and nobody was surprised", "as it had always been", "until it grew dark")


@dataclass(frozen=True)
class Haystack:
    """A text in words, endless: after its last word comes its first again.

    Attributes:
        text: all of it.
        words: white space in front of each.
        sizes: [words] tokens of each.
        ends: [words] tokens up to and with each.
        begins: [words] whether a sentence begins there.
        starts: [sentences] the words that sentences begin with.
    """

    text: str
    words: Sequence[str]
    sizes: np.ndarray
    ends: np.ndarray
    begins: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, text: str, tokenizer: Any) -> "Haystack":
        words = re.findall(r"\s*\S+", f" {text}")
        begins = np.array([True, *map(_ends_sentence, words[:-1])])
        sizes = token_counts(tokenizer, words)
        return cls(text, words, sizes, np.cumsum(sizes), begins, np.flatnonzero(begins))

    def start(self, rng: random.Random) -> int:
        """The first word of a sentence, drawn."""
        return int(rng.choice(self.starts))

    def write(
        self, prompt: str, start: int, hidden: Sequence[str], depths: Sequence[float], room: int
    ) -> tuple[str, float]:
        """The prompt with a stretch of at most `room` tokens for its {text}, in which texts are hidden at depths.

        Returns:
            the question, and the depth (0 to 1) of the first text hidden.
        """
        text, depth = self.stretch(start, room).hide(hidden, depths)
        for each in hidden:
            if each.endswith(PARAGRAPH):
                before, own, behind = text.partition(each.strip())
                text = f"{before}{own}{PARAGRAPH}{behind.lstrip()}".rstrip()
        return prompt.format(text=text), depth

    def stretch(self, start: int, room: int) -> Padding:
        """The words from `start` on that take at most `room` tokens, with gaps between sentences."""
        count = len(self.words)
        before = int(self.ends[start - 1]) if start else 0
        laps, rest = divmod(before + room, int(self.ends[-1]))
        stop = laps * count + int(np.searchsorted(self.ends, rest, side="right"))
        order = np.arange(start, stop) % count  # [words that fit] indices
        gaps = np.flatnonzero(self.begins[order])
        # Less than a sentence may have no gap but the one in front of it.
        gaps = gaps if len(gaps) else np.array([0])
        return Padding([self.words[index] for index in order.tolist()], self.sizes[order], gaps)


class HaystackTask(LongContextTask):
    """A task whose prompts are other text in which something is hidden."""

    haystack: str | None = Field(None, description="text to hide it in, as a data source's path; made up if absent")

    def read_haystack(self, draws: Draws, tokenizer: Any) -> Haystack:
        """The text behind the path, else sentences made up for this task.

        Raises:
            UserError: it cannot be read.
        """
        if self.haystack is not None:
            return Haystack.of(_read(self.haystack), tokenizer)
        # A sentence has some 13 tokens, so these are more than fill a prompt; the name of the stream is part of what
        # makes the items what they are.
        return Haystack.of(made_up_text(draws.of("filler"), sentences=1000 + self.length // 8), tokenizer)


def _ends_sentence(word: str) -> bool:
    closed = word.strip().rstrip("\"')]")
    return closed.endswith((".", "!", "?")) and not ABBREVIATION.fullmatch(closed.lstrip("\"'(["))


def made_up_text(rng: random.Random, sentences: int) -> str:
    """So many sentences, of some 13 tokens each, without digits."""
    made = []
    for _ in range(sentences):
        sentence = f"{rng.choice(_SUBJECTS)} {rng.choice(_ACTIONS)} {rng.choice(_PLACES)}"
        if rng.random() < 0.3:
            sentence = f"{rng.choice(_OPENINGS)}, {sentence}"
        if rng.random() < 0.3:
            sentence = f"{sentence}, {rng.choice(_ENDINGS)}"
        made.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return " ".join(made)


def _read(path: str) -> str:
    """The start of the texts behind a path."""
    texts, size = [], 0
    for document in read_documents(Source(path=path)):
        if isinstance(document, UserError):
            raise document  # a haystack that can only be read in part is not the one that was named
        if isinstance(document, Skipped):  # nothing to read in it
            continue
        texts.append(document.content)
        size += len(document.content)
        if size >= HAYSTACK_CHARACTERS:
            break
    return "\n\n".join(texts)[:HAYSTACK_CHARACTERS]
