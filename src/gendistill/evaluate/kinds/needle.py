"""Needles in a haystack, as in RULER (Hsieh et al. 2024, arXiv 2404.06654): sentences that give magic numbers, hidden
in other text; one is asked for."""

import random
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field

from gendistill.data.conversations import Skipped
from gendistill.data.sources import read_documents
from gendistill.errors import UserError
from gendistill.evaluate.kinds.item import Draws
from gendistill.evaluate.kinds.shared.distractors import DISTRACTORS
from gendistill.evaluate.kinds.shared.keys import KEYS
from gendistill.evaluate.kinds.shared.long_context import Draft, LongContextTask, Padding, token_counts
from gendistill.recipe.data import Source

VALUES = range(1_000_000, 10_000_000)
HAYSTACK_CHARACTERS = 4_000_000  # of a haystack are read: some 8 times what 128K tokens take
TOKENS_OF_8_SENTENCES = 100  # at least, so that `length // 8` sentences and some more fill any prompt of `length`

NEEDLE = " One of the special magic numbers for {key} is {value}."
PROMPT = (
    "Some special magic numbers are hidden in the following text. Remember them: you will be asked for one of them "
    "afterwards.\n\n{text}\n\nWhat is the special magic number for {key} mentioned in the text above? Answer with the "
    "number only."
)

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


class Needle(LongContextTask):
    """`keys` needles are hidden in a haystack, one of them is asked for. Ranked are its number and three others: those
    of other needles first, else numbers that are nowhere in the prompt."""

    kind: Literal["needle"] = "needle"
    haystack: str | None = Field(
        None, description="text to hide needles in, as a data source's path; made up if absent"
    )

    def drafts(self, draws: Draws, tokenizer: Any) -> Iterator[Draft]:
        """Drafts with `keys` needles, the first of which is asked for."""
        self.check_keys(draws, len(KEYS))
        if self.haystack is None:
            # A sentence has some 13 tokens, so these are more than fill a prompt; the name of the stream is part of
            # what makes the items what they are.
            text = made_up_text(draws.of("filler"), sentences=1000 + self.length // 8)
        else:
            text = _read(self.haystack)
        taken = set(re.findall("(?<![0-9])[0-9]{7}(?![0-9])", text))  # no needle may give a number of the haystack
        haystack = _words(text, tokenizer)
        for index, depth, rng in self.indices(draws):
            # The order of the draws is what makes an item the same in every version of this code.
            keys = rng.sample(KEYS, self.keys)
            wanted = self.keys + DISTRACTORS
            # As many more as may be taken, so that enough are left.
            drawn = map(str, rng.sample(VALUES, wanted + len(taken)))
            values = [value for value in drawn if value not in taken][:wanted]
            depths = [depth, *(rng.random() for _ in keys[1:])]
            start = rng.choice(haystack.gaps)
            item = self.make_item(index, values[:1], values[1 : 1 + DISTRACTORS], rng)
            needles = [NEEDLE.format(key=key, value=value) for key, value in zip(keys, values, strict=False)]
            yield Draft(item, partial(_write, haystack, start, needles, depths, keys[0]))


def _words(text: str, tokenizer: Any) -> Padding:
    """A text in words, with gaps between its sentences."""
    words = re.findall(r"\s*\S+", f" {text}")
    begins = [True]  # [words] whether a sentence begins there
    begins += [word.rstrip("\"')]").endswith((".", "!", "?")) for word in words[:-1]]
    return Padding(words, token_counts(tokenizer, words), np.flatnonzero(begins))


def _write(
    haystack: Padding, start: int, needles: Sequence[str], depths: Sequence[float], key: str, room: int
) -> tuple[str, float]:
    text, depth = _stretch(haystack, start, room).hide(needles, depths)
    return PROMPT.format(text=text, key=key), depth


def _stretch(text: Padding, start: int, room: int) -> Padding:
    """The words from `start` on that take at most `room` tokens; after the last word comes the first again."""
    count = len(text.pieces)
    rounds = 2 + room // int(text.sizes.sum())  # one more than fill the room, since it may start at the last word
    order = (start + np.arange(rounds * count)) % count  # [rounds * count] indices of words
    ends = np.cumsum(text.sizes[order])  # [rounds * count] tokens up to and with each
    order = order[: np.searchsorted(ends, room, side="right")]  # [words that fit]
    gaps = np.flatnonzero(np.isin(order, text.gaps))
    # Less than a sentence may have no gap but the one in front of it.
    gaps = gaps if len(gaps) else np.array([0])
    return Padding([text.pieces[index] for index in order], text.sizes[order], gaps)


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
