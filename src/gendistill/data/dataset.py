"""Packed data sets on disk: prepared once, memory-mapped, found again by a key of all that makes them.

    cache/<key>/input_ids.npy, position_ids.npy, loss_mask.npy   [rows, sequence_length], see `packing.lay_out_row`
    cache/<key>/stats.json                                       counts, and the key

A folder appears under its key only when it is complete. While it is made it is called <key>.partial, and holds the
state of the stream besides: a preparation that was killed resumes there. It may be deleted.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gendistill import __version__
from gendistill.data.chat import ends_of_turns
from gendistill.data.encoding import end_of_text
from gendistill.data.mixture import Mixture
from gendistill.data.packing import Piece, lay_out_row
from gendistill.data.sources import EMBEDDED, local_files, local_suffix
from gendistill.errors import UserError
from gendistill.files import write_atomically
from gendistill.recipe.data import Source

FORMAT = 2  # raise when the same inputs come to give other rows
STATE = "state.json"
COLUMNS = {"input_ids": np.int32, "position_ids": np.int32, "loss_mask": np.uint8}


@dataclass
class Counts:
    """What stands in the rows.

    Attributes:
        documents: begun here.
        pieces: runs of tokens whose positions start at 0, without filler.
        tokens: without filler.
    """

    documents: int = 0
    pieces: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    filler_tokens: int = 0

    def add_row(self, pieces: list[Piece], sequence_length: int) -> None:
        tokens = sum(len(piece.input_ids) for piece in pieces)
        self.documents += sum(piece.opens_document for piece in pieces)
        self.pieces += len(pieces)
        self.tokens += tokens
        self.loss_tokens += sum(int(piece.loss_mask.sum()) for piece in pieces)
        self.filler_tokens += sequence_length - tokens


class PackedDataset:
    """Rows of a prepared data set, in the order in which they are to be consumed; the rows are already shuffled.

    Attributes:
        stats: `Counts` of these rows; `sources`, the `SourceCounts` of each with its label, share and passes; `ends`,
            ids that end a document or an assistant's turn; `loss_on`; `tokenizer`, the hash of the tokenizer.
        key: hash of all that made the rows.
    """

    def __init__(self, folder: str | Path):
        """Opens a prepared folder; the rows stay on disk until they are asked for.

        Raises:
            UserError: the folder is missing, incomplete or inconsistent.
        """
        self.folder = Path(folder)
        try:
            described = json.loads((self.folder / "stats.json").read_text())
            self.key, self.stats = described["key"], described["stats"]
            self._columns = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.folder}: not a prepared data set ({error}); delete the folder and run again"
            ) from None
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
        return {name: np.array(column[rows]) for name, column in self._columns.items()}


def prepare(
    sources: Sequence[Source],
    tokenizer,
    *,
    sequence_length: int,
    tokens: int,
    loss_on: Literal["all", "completion"],
    seed: int,
    cache: str | Path,
) -> PackedDataset:
    """Tokenises and packs a mixture, or finds it in the cache.

    Each source gives tokens in proportion to its weight. Text is poured into rows; conversations stay whole, cut only
    where one is longer than a row. A preparation that is killed resumes when it is called again.

    Args:
        sources: the mixture.
        tokenizer: a fast transformers tokenizer; for conversations, one with a chat template.
        sequence_length: tokens a row.
        tokens: how many are wanted, filler included; rounded up to whole rows.
        loss_on: "all" takes every token that can be predicted as a loss target, "completion" those of replies.
        seed: of the shuffle and of generated data. Same inputs, same seed: same rows.
        cache: folder for prepared data sets. Changed local files are noticed by content; a changed hub data set is not.

    Raises:
        UserError: a source cannot be read, runs dry, or has too many records that are malformed or empty; nothing to
            learn is left; the disk is full.
    """
    rows = -(-tokens // sequence_length)
    key = _cache_key(sources, tokenizer, sequence_length, rows, loss_on, seed)
    folder = Path(cache) / key
    if not folder.is_dir():
        partial = folder.with_name(f"{key}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            if not folder.is_dir():  # nobody else has finished it in the meantime
                try:
                    counts, mixture = _write(partial, sources, tokenizer, sequence_length, rows, loss_on, seed)
                    _check_learnable(counts, sources, loss_on)
                    stats = _stats(counts, mixture, tokenizer, loss_on)
                    write_atomically(partial / "stats.json", json.dumps({"key": key, "stats": stats}, indent=2) + "\n")
                    (partial / STATE).unlink()
                    partial.rename(folder)
                except OSError as error:
                    raise UserError(
                        f"{partial}: the data set could not be written ({error}). Free some space and run the same "
                        "command again: it resumes from here"
                    ) from None
    return PackedDataset(folder)


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Held by one process at a time; given back when it dies."""
    with open(partial.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(folder: Path, sources, tokenizer, sequence_length, rows, loss_on, seed) -> tuple[Counts, Mixture]:
    """Fills the columns round by round, from the state that an earlier attempt left."""
    state = json.loads((folder / STATE).read_text()) if (folder / STATE).exists() else {}
    counts = Counts(**state.get("counts", {}))
    mixture = Mixture(sources, tokenizer, sequence_length, rows, loss_on, seed, state.get("mixture"))
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    # Neighbouring rows come from one window of the sources, often from one document: scatter them over the whole set.
    places = np.random.default_rng(seed).permutation(rows)
    with _progress() as progress:
        bar = progress.add_task("Preparing data", total=rows, completed=mixture.made)
        while mixture.made < rows:
            start = mixture.made
            made = mixture.next_round()
            # Opened for each round: the pages of those before would stay in the process's memory.
            columns = {name: _column(folder, name, (rows, sequence_length)) for name in COLUMNS}
            for place, pieces in zip(places[start:], made, strict=False):
                for name, values in lay_out_row(pieces, sequence_length, pad_id).items():
                    columns[name][place] = values
                counts.add_row(pieces, sequence_length)
            for column in columns.values():
                column.flush()
            write_atomically(folder / STATE, json.dumps({"counts": asdict(counts), "mixture": mixture.state()}))
            progress.update(bar, completed=mixture.made)
    return counts, mixture


def _column(folder: Path, name: str, shape: tuple[int, int]) -> np.memmap:
    """A column to write to, as an earlier round or attempt left it, or new."""
    path = folder / f"{name}.npy"
    if path.exists():
        return np.load(path, mmap_mode="r+")
    column = np.lib.format.open_memmap(path, mode="w+", dtype=COLUMNS[name], shape=shape)
    with open(path, "r+b") as file:
        # A file with holes would kill the process where the disk is full; this says so beforehand.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return column


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _stats(counts: Counts, mixture: Mixture, tokenizer, loss_on: str) -> dict[str, Any]:
    total = sum(stream.counts.tokens for stream in mixture.streams)
    sources = [
        {"source": stream.source.label, "share": round(stream.counts.tokens / total, 6)}
        | {"passes": stream.position.epoch}
        | asdict(stream.counts)
        for stream in mixture.streams
    ]
    ends = {end_of_text(tokenizer)} - {None}
    if any(stream.source.is_chat for stream in mixture.streams):
        ends |= ends_of_turns(tokenizer)
    return asdict(counts) | {
        "sources": sources,
        "ends": sorted(ends),
        "loss_on": loss_on,
        "tokenizer": tokenizer_hash(tokenizer),
    }


def _check_learnable(counts: Counts, sources, loss_on: str) -> None:
    labels = ", ".join(source.label for source in sources)
    if counts.loss_tokens == 0:
        raise UserError(f"{labels}: {counts.tokens} tokens but none to learn from; take longer rows or other data")
    if loss_on == "completion" and counts.loss_tokens == counts.tokens - counts.pieces:
        raise UserError(
            f"{labels}: every token counts as a completion, prompts too, so the mask is wrong; check the chat template"
        )


def _cache_key(sources, tokenizer, sequence_length: int, rows: int, loss_on: str, seed: int) -> str:
    everything = {
        "format": FORMAT,
        "sources": [_fingerprint(source) for source in sources],
        "tokenizer": tokenizer_hash(tokenizer),
        "sequence_length": sequence_length,
        "rows": rows,
        "loss_on": loss_on,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:20]


def _fingerprint(source: Source) -> dict:
    """What a source will yield, whatever it is called: fields and content, not the path."""
    fields = source.model_dump(exclude={"path", "skip_malformed"})
    if source.path is None:
        return fields
    if source.path.startswith(EMBEDDED):
        return fields | {"embedded": source.path, "version": __version__}
    return fields | {"files": [_file_fingerprint(file) for file in local_files(source)]}


def _file_fingerprint(path: Path) -> tuple[str, str | None]:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), local_suffix(path.name)


def tokenizer_hash(tokenizer) -> str:
    """Hash of all that makes token ids of text and conversations.

    Raises:
        UserError: this is no fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; give the teacher a tokenizer.json")
    backend.no_truncation()  # left over from earlier calls, and set anew by every call
    backend.no_padding()
    ids = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    digest = hashlib.sha256(backend.to_str().encode())
    digest.update(json.dumps([tokenizer.chat_template, *ids]).encode())
    return digest.hexdigest()[:20]
