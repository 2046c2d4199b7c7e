"""Packed data sets on disk: prepared once, memory-mapped, found again by a key of all that makes them.

    cache/<key>/input_ids.npy, position_ids.npy, loss_mask.npy   [rows, sequence_length], see `packing.lay_out_row`
    cache/<key>/stats.json                                       counts, and the key

A folder appears under its key only when it is complete. While it is made it is called <key>.partial, and holds the
state of the stream besides, with checksums of the rows so far: a preparation that was killed resumes there. It may be
deleted.
"""

import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gendistill.console import Console, Progress
from gendistill.data.chat import ends_of_turns
from gendistill.data.dates import date_of, prints_date
from gendistill.data.encoding import LossOn, end_of_text
from gendistill.data.fingerprints import source_fingerprint, tokenizer_hash
from gendistill.data.held_out import EVERYTHING, Part
from gendistill.data.mixture import Mixture
from gendistill.data.packing import Piece, lay_out_row, token_count
from gendistill.errors import UserError
from gendistill.files import (
    checked_line,
    damage_of,
    make_folder,
    put_in_place,
    read_checked_line,
    seal,
    write_atomically,
)
from gendistill.recipe.data import Source

logger = logging.getLogger(__name__)

FORMAT = 3  # raise when the same inputs come to give other rows
STATE = "state.json"
# The mask in bytes: a bit each would have to be unpacked for every batch.
COLUMNS = {"input_ids": np.int32, "position_ids": np.int32, "loss_mask": np.uint8}


@dataclass
class Counts:
    """What stands in the packed sequences.

    Attributes:
        documents: begun here.
        pieces: runs of tokens whose positions start at 0, padding not among them.
        tokens: without padding.
    """

    documents: int = 0
    pieces: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    padding_tokens: int = 0

    def add_row(self, pieces: list[Piece], sequence_length: int) -> None:
        tokens = sum(map(token_count, pieces))
        self.documents += sum(piece.opens_document for piece in pieces)  # one that continues here is counted already
        self.pieces += len(pieces)
        self.tokens += tokens
        self.loss_tokens += sum(int(piece.loss_mask.sum()) for piece in pieces)
        self.padding_tokens += sequence_length - tokens


class _Request(NamedTuple):
    """All that decides what the packed sequences are, see `prepare`."""

    sources: Sequence[Source]
    tokenizer: Any
    sequence_length: int
    rows: int
    loss_on: LossOn
    seed: int
    part: Part


class PackedDataset:
    """Packed sequences of a prepared data set, in the order in which they are to be consumed: already shuffled.

    Attributes:
        stats: `Counts` of these rows; `sources`, the `stream.SourceCounts` of each with its label, share and passes;
            `ends`, ids that end a document or an assistant's turn; `loss_on`; `tokenizer`, the tokenizer's hash.
        key: hash of all that made the rows.
    """

    def __init__(self, folder: str | Path):
        """Opens a prepared folder; the rows stay on disk until they are asked for.

        Raises:
            UserError: the folder is missing, incomplete or inconsistent.
        """
        self.folder = Path(folder)
        # One number of a row, or of its mask, would train on with no sign of it.
        if (damage := damage_of(self.folder)) is not None:
            raise UserError(f"{self.folder}: {damage}; delete the folder and run again")
        try:
            described = json.loads((self.folder / "stats.json").read_text())
            self.key, self.stats = described["key"], described["stats"]
            self._columns = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.folder}: not a prepared data set ({error}); delete the folder and run again"
            ) from None
        # A column that was cut off or exchanged would give masks of other rows than the ids'.
        shapes = {name: column.shape for name, column in self._columns.items()}
        if len(set(shapes.values())) != 1 or len(shapes["input_ids"]) != 2:
            raise UserError(f"{self.folder}: columns of different shapes {shapes}; delete the folder and run again")

    def __len__(self) -> int:
        return self._columns["input_ids"].shape[0]

    @property
    def sequence_length(self) -> int:
        return self._columns["input_ids"].shape[1]

    def __getitem__(self, rows: int | slice) -> dict[str, np.ndarray]:
        """Copies of input_ids, position_ids (int32), loss_mask (uint8): [sequence_length], or [n, ...] for a slice."""
        # Copies: torch warns of memory that it may not write.
        return {name: np.array(column[rows]) for name, column in self._columns.items()}


def prepare(
    sources: Sequence[Source],
    tokenizer,
    *,
    sequence_length: int,
    tokens: int,
    loss_on: LossOn,
    seed: int,
    cache: str | Path,
    part: Part = EVERYTHING,
) -> PackedDataset:
    """Tokenises and packs a mixture, or finds it in the cache.

    Each source gives tokens in proportion to its weight. Text fills packed sequences to their end and continues in the
    next; conversations stay whole, cut only where one is longer than sequence_length. A preparation that is killed
    resumes when it is called again.

    Args:
        sources: the mixture.
        tokenizer: a fast transformers tokenizer; for conversations, one with a chat template.
        sequence_length: tokens of a packed sequence.
        tokens: how many are wanted, padding included; rounded up to whole packed sequences.
        loss_on: "all" takes every token that can be predicted as a loss target, "completion" those of replies.
        seed: of the shuffle and of generated data. Same inputs, same seed: same rows.
        cache: folder for prepared data sets. Changed local files are noticed by content; a changed hub data set is not.
        part: which records of the sources are read. Of those that are held out there may be few: then the data set has
            fewer sequences, down to none.

    Raises:
        UserError: a source cannot be read, is exhausted, or has too many records that are malformed or empty; no loss
            token is left; the disk is full.
    """
    rows = -(-tokens // sequence_length)  # rounded up
    request = _Request(sources, tokenizer, sequence_length, rows, loss_on, seed, part)
    hashed_tokenizer = tokenizer_hash(tokenizer)  # once: of a large vocabulary it takes a tenth of a second
    key = _cache_key(request, hashed_tokenizer)
    folder = Path(cache) / key
    if not folder.is_dir():
        partial = folder.with_name(f"{key}.partial")
        make_folder(partial)
        with _locked(partial):
            if not folder.is_dir():  # nobody else has finished it in the meantime
                try:
                    _fill(partial, key, request, hashed_tokenizer)
                    put_in_place(partial, folder)  # atomic: under its key a folder is complete or not there
                except OSError as error:
                    raise UserError(
                        f"{partial}: the data set could not be written ({error}). Free some space and run the same "
                        "command again: it resumes from here"
                    ) from None
    return PackedDataset(folder)


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Held by one process at a time; given back when it dies."""
    # A file beside the folder, which is renamed while the lock is held.
    with open(partial.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fill(folder: Path, key: str, request: _Request, hashed_tokenizer: str) -> None:
    """Makes all of a data set's files; the state is gone only when everything else is there, but for the seal."""
    if request.part.held_out:
        counts, mixture = _write_at_once(folder, request)
    else:
        counts, mixture = _write(folder, request)
        _check_loss_tokens(counts, request)
    described = {"key": key, "stats": _stats(counts, mixture, request, hashed_tokenizer)}
    write_atomically(folder / "stats.json", json.dumps(described, indent=2) + "\n")
    (folder / STATE).unlink(missing_ok=True)
    seal(folder)


def _write_at_once(folder: Path, request: _Request) -> tuple[Counts, Mixture]:
    """Fills the columns with as many sequences as there are, which is known only when all are made."""
    counts, mixture = Counts(), Mixture(**request._asdict())
    made = mixture.all_rows()
    for pieces in made:
        counts.add_row(pieces, request.sequence_length)
    laid_out = [lay_out_row(pieces, request.sequence_length, _pad_id(request.tokenizer)) for pieces in made]
    for name, dtype in COLUMNS.items():
        column = np.array([row[name] for row in laid_out], dtype).reshape(len(made), request.sequence_length)
        np.save(folder / f"{name}.npy", column)
    return counts, mixture


def _write(folder: Path, request: _Request) -> tuple[Counts, Mixture]:
    """Fills the columns round by round, from the state that an earlier attempt left."""
    rows, length, tokenizer = request.rows, request.sequence_length, request.tokenizer
    # Neighbouring rows come from one window of the sources, often from one document: scatter them over the whole set.
    order = np.random.default_rng(request.seed).permutation(rows)  # [rows], from the number made to the index written
    state = _whole_state(folder, (rows, length), order)
    if not state:
        for name in COLUMNS:
            _make_column(folder, name, (rows, length))
    counts, checksums = Counts(**state.get("counts", {})), state.get("checksums", dict.fromkeys(COLUMNS, 0))
    mixture = Mixture(**request._asdict(), state=state.get("mixture"))
    pad_id = _pad_id(tokenizer)
    # The disk takes a tenth of the time, in which the next round is made. One thread, so that rounds are stored in
    # order; left by an error, it still stores those that were whole.
    # On stderr: what is made of the data may be printed for another program to read.
    progress = Progress("preparing data", rows, "sequences", Console(stderr=True), done=mixture.made)
    with progress, ThreadPoolExecutor(1) as storage:
        pending: Future | None = None
        while mixture.made < rows:
            start = mixture.made
            made = mixture.next_round()
            if pending is not None:
                pending.result()  # also where the disk was full
            # Opened for each round: the pages of those before would stay in the process's memory.
            columns = {name: _open_column(folder, name, "r+") for name in COLUMNS}
            # strict=False: what is left of the order is for later rounds.
            for index, pieces in zip(order[start:], made, strict=False):
                for name, values in lay_out_row(pieces, length, pad_id).items():
                    columns[name][index] = values
                    checksums[name] = zlib.crc32(columns[name][index], checksums[name])
                counts.add_row(pieces, length)
            # Of now: by the time it is stored, the mixture is in the next round.
            state = {"counts": asdict(counts), "checksums": checksums, "mixture": mixture.state()}
            pending = storage.submit(_store_round, folder, list(columns.values()), checked_line(state))
            progress.advance(len(made))
        if pending is not None:
            pending.result()
    return counts, mixture


def _pad_id(tokenizer) -> int:
    """Any id will do: padding is a document of its own without loss tokens."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0


def _store_round(folder: Path, columns: list[np.memmap], state: str) -> None:
    for column in columns:
        column.flush()  # before the state that says they are there
    # Only now: killed before, the round is made again, and writes the same rows to the same indices.
    write_atomically(folder / STATE, state)


def _whole_state(folder: Path, shape: tuple[int, int], order: np.ndarray) -> dict[str, Any]:
    """The state that an earlier attempt left, if it and all rows made by then are as they were written; else {}."""
    path = folder / STATE
    if not path.exists():
        return {}
    state = read_checked_line(path.read_bytes().removesuffix(b"\n"))
    made = order[: state["mixture"]["made"]] if state is not None else ()
    if state is not None and all(_checksum(folder, name, shape, made) == state["checksums"][name] for name in COLUMNS):
        return state
    logger.warning("%s: is damaged; the data set is prepared anew", folder)
    path.unlink()  # before the columns, which it speaks of
    return {}


def _checksum(folder: Path, name: str, shape: tuple[int, int], made: Sequence[int]) -> int | None:
    """Of a column's rows in the order in which they were made; None if this is no such column."""
    try:
        column = _open_column(folder, name, "r")
    except Exception:  # numpy has many types for a header that is none
        return None
    if (column.shape, column.dtype, column.flags.c_contiguous) != (shape, COLUMNS[name], True):
        return None
    checksum = 0
    for index in made:
        checksum = zlib.crc32(column[index], checksum)
    return checksum


def _make_column(folder: Path, name: str, shape: tuple[int, int]) -> None:
    path = folder / f"{name}.npy"
    path.unlink(missing_ok=True)
    np.lib.format.open_memmap(path, mode="w+", dtype=COLUMNS[name], shape=shape)
    with open(path, "r+b") as file:
        # A file with holes would kill the process where the disk is full; this says so beforehand.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _open_column(folder: Path, name: str, mode: str) -> np.memmap:
    return np.load(folder / f"{name}.npy", mmap_mode=mode)


def _stats(counts: Counts, mixture: Mixture, request: _Request, hashed_tokenizer: str) -> dict[str, Any]:
    total = sum(stream.counts.tokens for stream in mixture.streams)
    sources = []
    for stream in mixture.streams:
        given = stream.counts
        about = {"source": stream.source.label, "share": round(given.tokens / max(total, 1), 6)}
        sources.append(about | {"passes": stream.position.epoch} | asdict(given))
    # Ids that `masks` and show-batch look for: without one, a document was cut.
    ends = {end_of_text(request.tokenizer)} - {None}
    if any(source.is_chat for source in request.sources):
        ends |= ends_of_turns(request.tokenizer)
    return asdict(counts) | {
        "sources": sources,
        "ends": sorted(ends),
        "loss_on": request.loss_on,
        "tokenizer": hashed_tokenizer,
    }


def _check_loss_tokens(counts: Counts, request: _Request) -> None:
    labels = ", ".join(source.label for source in request.sources)
    if counts.loss_tokens == 0:
        raise UserError(
            f"{labels}: {counts.tokens} tokens but no loss token; take a longer sequence_length or other data"
        )
    # The first token of each piece is never a loss token, so these are all that could be.
    if request.loss_on == "completion" and counts.loss_tokens == counts.tokens - counts.pieces:
        raise UserError(
            f"{labels}: every token counts as a completion, prompts too, so the mask is wrong; check the chat template"
        )


def _cache_key(request: _Request, hashed_tokenizer: str) -> str:
    is_chat = any(source.is_chat for source in request.sources)
    # Names of the fields go into the hash too: another spelling here would prepare all data anew.
    everything = {
        "format": FORMAT,
        "sources": [source_fingerprint(source) for source in request.sources],
        "tokenizer": hashed_tokenizer,
        "sequence_length": request.sequence_length,
        "rows": request.rows,
        "loss_on": request.loss_on,
        "seed": request.seed,
        "date": str(date_of(request.tokenizer)) if is_chat and prints_date(request.tokenizer) else None,
    }
    if request.part != EVERYTHING:  # where nothing is held out, keys are those of before records could be
        everything["part"] = asdict(request.part)
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:20]
