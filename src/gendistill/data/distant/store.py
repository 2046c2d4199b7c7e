"""Distant conversations as a file of records, made once and found again by a key of all that makes them.

    KEY/records.jsonl   {"messages", "asked": [{"kind", "evidence", "distance"}]}
    KEY/stats.json      `DistantCounts`

While it is made the folder is called KEY.partial and holds the state besides; what was killed resumes there.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from gendistill.console import Console, Progress
from gendistill.data.dates import date_of, prints_date
from gendistill.data.distant.checking import Check
from gendistill.data.distant.make import Distant, DistantCounts, Draft, Maker
from gendistill.data.distant.passages import Passages, Place
from gendistill.data.fingerprints import source_fingerprint, tokenizer_hash
from gendistill.errors import UserError
from gendistill.files import (
    checked_line,
    make_folder,
    put_in_place,
    read_checked_line,
    read_json,
    seal,
    write_atomically,
)
from gendistill.recipe.data import Source

T, U = TypeVar("T"), TypeVar("U")
FORMAT = 1  # raise when the same inputs come to give other conversations
RECORDS, STATS, STATE = "records.jsonl", "stats.json", "state.json"
BETWEEN_STATES = 100  # conversations, used or not: a round
THREADS = min(8, os.cpu_count() or 1)  # more would wait for the interpreter
FEW = 100  # conversations, after which most of them should have been used


def make_distant(
    source: Source,
    tokenizer: Any,
    *,
    sequence_length: int,
    tokens: int,
    seed: int,
    purpose: str,
    evaluations: Any,
    overlaps: Callable[[], Callable[[str], bool]],
    cache: Path,
    check: Check | None = None,
) -> tuple[Path, bool]:
    """The file of conversations made of a source's texts, and whether it was there already.

    Args:
        source: with `made` and `distances`.
        sequence_length: no conversation is longer.
        tokens: of all conversations together, at least.
        purpose: of which two give different conversations of the same texts.
        evaluations: what `overlaps` depends on, as JSON.
        overlaps: gives what says whether a text holds an evaluation item; only called where something is to be made.
        cache: folder for all such files.
        check: leaves out what the teacher answers wrongly; None: nothing is asked.

    Raises:
        UserError: the text is too small; the distances leave no room; most of what is made cannot be used; the source
            cannot be read; the disk is full.
    """
    # All that decides what is made, so that nothing else is found under the key.
    made_of = {
        "format": FORMAT,
        "source": source_fingerprint(source) | {"weight": None},  # decides how many, which is said by `tokens`
        "tokenizer": tokenizer_hash(tokenizer),
        "date": str(date_of(tokenizer)) if prints_date(tokenizer) else None,
        "sequence_length": sequence_length,
        "tokens": tokens,
        "seed": [seed, purpose],
        "evaluations": evaluations,
        "checked_by": None if check is None else check.by,
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:20]
    folder = cache / key
    found = (folder / STATS).exists()
    if not found:
        maker = Maker(source, tokenizer, sequence_length=sequence_length, seed=f"{seed} {purpose}", overlaps=overlaps())
        partial = folder.with_name(f"{key}.partial")  # it takes its name when it is whole
        try:
            make_folder(partial)
            _fill(partial, maker, tokens, seed, check)
            seal(partial)
            shutil.rmtree(folder, ignore_errors=True)
            put_in_place(partial, folder)
        except OSError as error:
            raise UserError(
                f"{partial}: could not be written ({error}). Free some space and run the same command again: it "
                "resumes from here"
            ) from None
    return folder / RECORDS, found


def distant_counts(records: Path) -> DistantCounts:
    """What was counted when a file of conversations was made."""
    return DistantCounts(**read_json(records.with_name(STATS)))


def _fill(folder: Path, maker: Maker, tokens: int, seed: int, check: Check | None) -> None:
    state = _whole_state(folder)
    counts, checksum = DistantCounts(**state["made"]), state["crc32"]
    passages = Passages(maker.source, maker.tokenizer, seed, Place(*state["place"]))
    title = f"making distant answers of {maker.source.label}"
    # On stderr, as the preparation of data.
    progress = Progress(title, tokens, "tokens", Console(stderr=True), done=min(tokens, counts.tokens))
    with progress, ThreadPoolExecutor(THREADS) as pool, open(folder / RECORDS, "ab") as file:
        file.truncate(state["bytes"])  # behind the state: made again, the same
        for first in count(state["number"], BETWEEN_STATES):
            for draft, made in _round(maker, first, passages, check, pool):
                if counts.tokens >= tokens:
                    break
                if made is None:  # the text is at its end
                    raise _too_small(maker.source, passages, counts, tokens)
                counts.add(made, draft)
                if not isinstance(made, str):
                    line = json.dumps(made.to_record(), ensure_ascii=False).encode() + b"\n"
                    checksum = zlib.crc32(line, checksum)
                    file.write(line)
                _check_unused(maker.source, counts)
                progress.advance(min(tokens, counts.tokens) - progress.done)
            if counts.tokens >= tokens:
                break
            file.flush()
            os.fsync(file.fileno())  # before the state that says it is there
            now = {"bytes": file.tell(), "crc32": checksum}
            now |= {"number": first + BETWEEN_STATES, "place": passages.place, "made": asdict(counts)}
            write_atomically(folder / STATE, checked_line(now))
    write_atomically(folder / STATS, json.dumps(asdict(counts), indent=1) + "\n")
    (folder / STATE).unlink(missing_ok=True)


def _round(
    maker: Maker, first: int, passages: Passages, check: Check | None, pool: ThreadPoolExecutor
) -> Iterator[tuple[Draft | str | None, Distant | str | None]]:
    """Those of a round: drafts and what came of them; None where the text is at its end."""
    taken = (maker.take(number, passages) for number in range(first, first + BETWEEN_STATES))
    drafts = _ahead(pool, maker.draw, taken)
    if check is not None:  # all at once, for the teacher to answer in batches
        drafts = check.keep(list(drafts))
    return _ahead(pool, lambda draft: (draft, maker.finish(draft)), drafts)


def _ahead(pool: ThreadPoolExecutor, do: Callable[[T], U], things: Iterable[T]) -> Iterator[U]:
    """`do` of each, in their order, by threads that are some ahead: the tokenizer does not need the interpreter."""
    begun: deque[Future[U]] = deque()
    for thing in things:
        begun.append(pool.submit(do, thing))
        if len(begun) > 2 * THREADS:
            yield begun.popleft().result()
    for each in begun:
        yield each.result()


def _whole_state(folder: Path) -> dict[str, Any]:
    """Where an earlier attempt was; at the beginning, if there was none or a byte of what it made has changed."""
    beginning = {"bytes": 0, "crc32": 0, "number": 0, "place": [], "made": {}}
    if not (folder / STATE).exists():
        return beginning
    state = read_checked_line((folder / STATE).read_bytes().removesuffix(b"\n"))
    if state is None:
        return beginning
    made = (folder / RECORDS).read_bytes()[: state["bytes"]]
    return state if zlib.crc32(made) == state["crc32"] else beginning


def _check_unused(source: Source, counts: DistantCounts) -> None:
    unused = sum(counts.unused.values())
    # Not before there are some: a text may begin with a table of contents.
    if unused >= FEW and unused > counts.conversations:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.unused.items())
        raise UserError(
            f"{source.label}: of {unused + counts.conversations:,} conversations {unused:,} could not be used: "
            f"{reasons}. Give another text, or distances further apart"
        )


def _too_small(source: Source, passages: Passages, counts: DistantCounts, tokens: int) -> UserError:
    shortest, longest = source.distances
    # In the units of the settings that can mend it.
    passes = f"{source.epochs} pass{'es' if source.epochs > 1 else ''}"
    gave = f"{counts.conversations:,} conversations of {counts.tokens:,} tokens"
    return UserError(
        f"{source.label}: the text is too small: {passes} over it gave {gave}, {tokens:,} tokens are wanted, with "
        f"answers {shortest:,} to {longest:,} tokens back. Give more text, more epochs, a smaller weight or shorter "
        "distances"
    )
