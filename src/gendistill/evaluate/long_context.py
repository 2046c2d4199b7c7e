"""Long context made on the spot: needles in a haystack, and associative recall, filling a prompt of a given length.

Needles are as in RULER (Hsieh et al. 2024, arXiv 2404.06654): sentences that give magic numbers, hidden in other text;
one is asked for. Recall, in the sense of Arora et al. 2023 (arXiv 2312.04927), is a list of names and values of which
some are asked for: all needles and no hay.

An item depends on the seed, the task's name and its own index: it is the same however many are asked. Depths advance by
the golden ratio from item to item, so that any number of items is spread evenly over the context.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from gendistill.data.chat import render_prompt
from gendistill.data.sources import read_documents
from gendistill.errors import UserError
from gendistill.evaluate.items import DISTRACTORS, Item
from gendistill.evaluate.parsing import Answer
from gendistill.recipe.data import Source
from gendistill.recipe.evaluation import Task

ITEMS = 50  # where a task does not say
FULL = 0.97  # of the length asked for
GOLDEN = (math.sqrt(5) - 1) / 2
NEEDLE_VALUES, RECALL_VALUES = range(1_000_000, 10_000_000), range(100, 1000)
HAYSTACK_CHARACTERS = 4_000_000  # of a haystack are read: some 8 times what 128K tokens take
LEAST_LINE = 3  # no line of a list takes fewer tokens
TAIL = 3  # lines at the end of a list that give way to lines of fitting sizes

NEEDLE = " One of the special magic numbers for {key} is {value}."
NEEDLE_PROMPT = (
    "Some special magic numbers are hidden in the following text. Remember them: you will be asked for one of them "
    "afterwards.\n\n{text}\n\nWhat is the special magic number for {key} mentioned in the text above? Answer with the "
    "number only."
)
PAIR = "\n{key}: {value}"
RECALL_PROMPT = "Here is a list of names and their values.\n\n{text}\n\nWhat {question}."

# Keys are pairs of these, and no filler of ours holds such a pair. They are enough for lists of 128K tokens.
_FIRST = """

amber ancient arctic autumn azure bitter blank blue bold brave brief bright bronze brown busy calm careful cheap clean
clear clever cold common cool copper coral crimson crisp curious daily damp dark deep distant double dry dull dusty
eager early easy eastern elegant empty equal exact faint fair famous fancy fast fierce final fine firm flat fluffy
foggy formal fresh frozen full funny gentle giant glad golden grand grave gray great green grim happy hard harsh heavy
hidden high hollow honest huge humble icy inner ivory jolly keen kind large late lazy light little lively lonely long
loud low loyal lucky marble mellow mild misty modern modest narrow natural neat noble northern odd olive open orange
pale perfect plain polite proud purple quick quiet rapid rare ready red rough round royal rusty salty scarlet secret
sharp shiny short shy silent silver simple slim slow small smooth soft solid southern square steady
""".split()
_SECOND = """

acorn anchor ant apple apron arrow badge bagel ball bamboo banana banjo barrel basket bat beacon bean bear beaver bee
bell berry bird boat bottle bow bowl box brick bridge brush bucket button cabin cactus cake camel candle canoe card
carrot castle cat chain chair cherry clock cloud coat coin comet cookie cow crab crane crow crown cup daisy deer desk
dog door dragon drum duck eagle engine falcon fan feather fern fish flag flute forest fork fox frog garden ghost
giraffe glove goat goose grape guitar hammer harp hat hawk helmet honey horse island jacket jar kettle key kite ladder
lake lamp leaf lemon lion lizard lock maple mask meadow melon mirror moon moose mouse needle nest oak ocean onion
otter owl paddle panda parrot peach pear pencil penguin piano pillow pine planet pony potato puppy rabbit radio raven
ribbon river robin rocket rose sail seal shell ship shoe
""".split()
_KEYS = [f"{first} {second}" for first in _FIRST for second in _SECOND]

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
class _Draft:
    """An item whose length is still open.

    Attributes:
        item: without its question.
        write: from the filler's size, in tokens by estimate, to the question and the depth of what it asks for, 0 to 1.
    """

    item: Item
    write: Callable[[int], tuple[str, float]]


@dataclass(frozen=True)
class _Filler:
    """Text in pieces, with estimates of their tokens.

    Attributes:
        pieces: texts, white space in front.
        sizes: [pieces] tokens.
        places: indices of pieces before which something may be put, in rising order.
    """

    pieces: Sequence[str]
    sizes: np.ndarray
    places: np.ndarray

    def hide(self, texts: Sequence[str], depths: Sequence[float]) -> tuple[str, float]:
        """The filler with each text at the place nearest to its depth (0 to 1); and the depth of the first of them."""
        before = np.concatenate([[0], np.cumsum(self.sizes)])
        depth_at = before[self.places] / max(before[-1], 1)
        found = [int(np.abs(depth_at - depth).argmin()) for depth in depths]
        parts, done = [], 0
        for place, text in sorted(zip(self.places[found].tolist(), texts, strict=True)):
            parts += [*self.pieces[done:place], text]
            done = place
        return "".join([*parts, *self.pieces[done:]]).strip(), float(depth_at[found[0]])


def long_context_items(name: str, task: Task, seed: int, tokenizer) -> list[Item]:
    """Makes the items of a `needle` or `recall` task, for one tokenizer.

    A prompt as the model sees it (chat template and all) has at most `task.length` tokens, and 97 % of them or more
    unless a single word or line takes more than the rest. `checks` of an item holds "length", as the task says, and
    "depth": the share of the filler's tokens that stand before what is asked for (before the first, if several are).

    Raises:
        UserError: the length is too short for the question and what it asks for, or longer than any list of names;
            there are more keys than names or values; the haystack cannot be read.
    """
    drafts = list((_needles if task.kind == "needle" else _lists)(name, task, seed, tokenizer))
    bare = [_measure(tokenizer, draft, 0) for draft in drafts]
    least = max(tokens for _, tokens in bare)
    if least > task.length:
        raise UserError(
            f"task '{name}': a prompt of {task.length} tokens cannot hold its question and keys ({task.keys}), which "
            f"take up to {least} with this tokenizer. Give a length of at least {least}"
        )
    return [_fit(task.length, tokenizer, draft, *start) for draft, start in zip(drafts, bare, strict=True)]


def parse_value(reply: str, answers: Sequence[str]) -> Answer:
    """Reads the numbers off a reply: right if they are those of `answers[0]`, in its order, and no others.

    Only numbers with as many digits count, or any if there are none. A number may be repeated and may hold thousands
    separators. A reply with too many or too few numbers is unparsed.
    """
    wanted = re.findall("[0-9]+", answers[0])
    digits = len(wanted[0])
    if digits > 3:
        reply = re.sub("(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", reply)
    numbers = re.findall("[0-9]+", reply)
    found = list(dict.fromkeys([number for number in numbers if len(number) == digits] or numbers))
    return Answer(", ".join(found) if len(found) == len(wanted) else None, found == wanted)


def _fit(length: int, tokenizer, draft: _Draft, best: Item, bare: int) -> Item:
    """The item with as much filler as its prompt may hold; `best` is the one without any, of `bare` tokens.

    The filler's size is an estimate, off by a token or two for most tokenizers. Where it is off by more, what one
    prompt measures says what to try next, and bisection sees to it that this ends.
    """
    aim = round(length * (9 + FULL) / 10)  # a little less, or long prompts would be measured again for a token
    fits, exceeds = 0, math.inf
    room = aim - bare
    while fits < room < exceeds:
        item, tokens = _measure(tokenizer, draft, room)
        if tokens > length:
            exceeds = room
        else:
            best, fits = item, room
            if tokens >= FULL * length:
                break
        room = max(room * (aim - bare) // max(tokens - bare, 1), fits + 1)
        if room >= exceeds:
            room = (fits + exceeds) // 2
    return best


def _measure(tokenizer, draft: _Draft, room: int) -> tuple[Item, int]:
    """The item with so much filler, and the tokens of its prompt."""
    question, depth = draft.write(room)
    item = replace(draft.item, question=question, checks=draft.item.checks | {"depth": round(depth, 4)})
    return item, len(render_prompt(tokenizer, item.messages))


def _item(task: Task, index: int, values: list[str], others: list[str], draw: random.Random) -> Item:
    """An item that asks for `values`. In each wrong candidate one of them is replaced by one of `others`."""
    candidates = [list(values) for _ in range(1 + DISTRACTORS)]
    for number, other in enumerate(others):
        candidates[1 + number][number % len(values)] = other
    joined = [", ".join(candidate) for candidate in candidates]
    right = joined[0]
    draw.shuffle(joined)
    return Item(
        id=index,
        kind=task.kind,
        question="",
        candidates=tuple(joined),
        gold=(joined.index(right),),
        answers=(right,),
        worked=right,
        checks={"length": task.length},
    )


def _draws(name: str, task: Task, seed: int) -> Iterator[tuple[int, float, random.Random]]:
    """Of each item the index, the depth, and what it is drawn with."""
    start = random.Random(f"{seed}/{name}/depth").random()
    for index in range(ITEMS if task.items is None else task.items):
        yield index, (start + index * GOLDEN) % 1, random.Random(f"{seed}/{name}/{index}")


def _check_keys(name: str, task: Task, most: int) -> None:
    if task.keys > most:
        raise UserError(f"task '{name}': keys: {task.keys} is more than there are; give at most {most:,}")


def _token_counts(tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Tokens of each text by itself. Most tokenizers cut before white space, so that such counts can be added up."""
    distinct = list(dict.fromkeys(texts))
    ids = tokenizer(distinct, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    counts = dict(zip(distinct, map(len, ids), strict=True))
    return np.array([counts[text] for text in texts])


def _needles(name: str, task: Task, seed: int, tokenizer) -> Iterator[_Draft]:
    """Drafts with `task.keys` needles, the first of which is asked for."""
    _check_keys(name, task, len(_KEYS))
    text = (
        _generate(f"{seed}/{name}/filler", 1000 + task.length // 8) if task.haystack is None else _read(task.haystack)
    )
    taken = set(re.findall("(?<![0-9])[0-9]{7}(?![0-9])", text))
    words = re.findall(r"\s*\S+", f" {text}")
    begins = [True] + [word.rstrip("\"')]").endswith((".", "!", "?")) for word in words[:-1]]
    haystack = _Filler(words, _token_counts(tokenizer, words), np.flatnonzero(begins))
    for index, depth, draw in _draws(name, task, seed):
        keys = draw.sample(_KEYS, task.keys)
        wanted = task.keys + DISTRACTORS
        drawn = map(str, draw.sample(NEEDLE_VALUES, wanted + len(taken)))
        values = [value for value in drawn if value not in taken][:wanted]
        depths = [depth, *(draw.random() for _ in keys[1:])]
        start = draw.choice(haystack.places)
        item = _item(task, index, values[:1], values[1 : 1 + DISTRACTORS], draw)
        needles = [NEEDLE.format(key=key, value=value) for key, value in zip(keys, values, strict=False)]
        yield _Draft(item, partial(_write_needles, haystack, start, needles, depths, keys[0]))


def _write_needles(
    haystack: _Filler, start: int, needles: list[str], depths: list[float], key: str, room: int
) -> tuple[str, float]:
    text, depth = _stretch(haystack, start, room).hide(needles, depths)
    return NEEDLE_PROMPT.format(text=text, key=key), depth


def _stretch(text: _Filler, start: int, room: int) -> _Filler:
    """The words from `start` on that take at most `room` tokens; after the last word comes the first again."""
    count = len(text.pieces)
    rounds = 2 + room // int(text.sizes.sum())
    order = (start + np.arange(rounds * count)) % count
    order = order[: np.searchsorted(np.cumsum(text.sizes[order]), room, side="right")]
    places = np.flatnonzero(np.isin(order, text.places))
    return _Filler([text.pieces[index] for index in order], text.sizes[order], places if len(places) else np.array([0]))


def _generate(seed: str, count: int) -> str:
    """So many sentences, of some 13 tokens each, without digits."""
    draw = random.Random(seed)
    sentences = []
    for _ in range(count):
        sentence = f"{draw.choice(_SUBJECTS)} {draw.choice(_ACTIONS)} {draw.choice(_PLACES)}"
        if draw.random() < 0.3:
            sentence = f"{draw.choice(_OPENINGS)}, {sentence}"
        if draw.random() < 0.3:
            sentence = f"{sentence}, {draw.choice(_ENDINGS)}"
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return " ".join(sentences)


def _read(path: str) -> str:
    """The start of the texts behind a path."""
    texts, size = [], 0
    for document in read_documents(Source(path=path)):
        if isinstance(document, UserError):
            raise document
        texts.append(document.content)
        size += len(document.content)
        if size >= HAYSTACK_CHARACTERS:
            break
    return "\n\n".join(texts)[:HAYSTACK_CHARACTERS]


def _lists(name: str, task: Task, seed: int, tokenizer) -> Iterator[_Draft]:
    """Drafts with a list, of which the values of `task.keys` names are asked for."""
    _check_keys(name, task, len(RECALL_VALUES) - DISTRACTORS)
    starts = _token_counts(tokenizer, [f"\n{first}" for first in _FIRST])
    ends = _token_counts(tokenizer, [f" {second}: {RECALL_VALUES[0]}" for second in _SECOND])
    sizes = np.add.outer(starts, ends).ravel()  # in the order of _KEYS
    for index, depth, draw in _draws(name, task, seed):
        order = draw.sample(range(len(_KEYS)), min(len(_KEYS), task.keys + DISTRACTORS + task.length // LEAST_LINE))
        values = [str(number) for number in draw.sample(RECALL_VALUES, task.keys + DISTRACTORS)]
        values += [str(number) for number in draw.choices(RECALL_VALUES, k=len(order) - len(values))]
        lines = [PAIR.format(key=_KEYS[key], value=value) for key, value in zip(order, values, strict=True)]
        depths = [(depth + number / task.keys) % 1 for number in range(task.keys)]
        item = _item(task, index, values[: task.keys], values[task.keys : task.keys + DISTRACTORS], draw)
        others = _Filler(lines[task.keys :], sizes[order[task.keys :]], np.array([0]))
        question = _ask([_KEYS[key] for key in order[: task.keys]])
        yield _Draft(item, partial(_write_list, name, others, lines[: task.keys], depths, question))


def _ask(keys: list[str]) -> str:
    if len(keys) == 1:
        return f"is the value of {keys[0]} in the list above? Answer with the value only"
    return (
        f"are the values of {', '.join(keys[:-1])} and {keys[-1]} in the list above? Answer with the values only, in "
        "this order, separated by commas"
    )


def _write_list(
    name: str, others: _Filler, asked: list[str], depths: list[float], question: str, room: int
) -> tuple[str, float]:
    """The list as text; the lines that wrong candidates are taken from are there at any size."""
    most = int(others.sizes[DISTRACTORS:].sum())
    if room > most:
        raise UserError(
            f"task '{name}': there are names for a list of some {most:,} tokens with this tokenizer. Give a shorter "
            "length"
        )
    chosen = [*range(DISTRACTORS), *_lines_for(others.sizes, DISTRACTORS, room)]
    random.Random(question).shuffle(chosen)
    pieces = [others.pieces[index] for index in chosen]
    text, depth = _Filler(pieces, others.sizes[chosen], np.arange(len(chosen) + 1)).hide(asked, depths)
    return RECALL_PROMPT.format(text=text, question=question), depth


def _lines_for(sizes: np.ndarray, start: int, room: int) -> list[int]:
    """Lines from `start` on that take `room` tokens or as little less as can be.

    They are taken in order but for the last few, which are picked by size: a whole line is much of a short prompt.
    """
    ends = np.concatenate([[0], np.cumsum(sizes[start:])])
    count = max(0, int(np.searchsorted(ends, room, side="right")) - 1 - TAIL)
    room -= int(ends[count])
    left: dict[int, list[int]] = {}
    for line in range(start + count, len(sizes)):
        left.setdefault(int(sizes[line]), []).append(line)
    made = {0: []}  # sizes that add up to a number of tokens
    for tokens in range(1, room + 1):
        for size, lines in left.items():
            part = made.get(tokens - size)
            if part is not None and part.count(size) < len(lines):
                made[tokens] = [*part, size]
                break
    return [*range(start, start + count), *(left[size].pop(0) for size in made[max(made)])]
