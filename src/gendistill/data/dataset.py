"""Packed data sets on disk: prepared once, memory-mapped, found again by a key of all that makes them.

    cache/<key>/input_ids.npy, position_ids.npy, loss_mask.npy   [rows, sequence_length], see `packing.lay_out_row`
    cache/<key>/stats.json                                       counts, and the key

A folder appears under its key only when it is complete. A preparation that is killed outright leaves a `*.partial`
folder, which is never read and may be deleted.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from gendistill import __version__
from gendistill.data.mixture import Counts, packed_rows
from gendistill.data.packing import lay_out_row
from gendistill.data.sources import EMBEDDED, local_suffix
from gendistill.errors import UserError
from gendistill.recipe import Source

FORMAT = 1  # raise when the same inputs come to give other rows
COLUMNS = {"input_ids": np.int32, "position_ids": np.int32, "loss_mask": np.uint8}


class PackedDataset:
    """Rows of a prepared data set, in the order in which they are to be consumed; the rows are already shuffled.

    Attributes:
        stats: counts. In these rows: documents (begun here), pieces (runs of tokens whose positions start at 0, without
            filler), tokens (without filler), loss_tokens, filler_tokens. On the way: documents read, skipped (empty, or
            nothing to learn within sequence_length) and cut; epochs (passes over the sources begun).
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

    The sources take turns, one record each; one that runs out leaves its turns to the others. When all have run out
    before there are enough rows, they are read again (`stats["epochs"]`). Text is poured into rows; conversations stay
    whole, cut only where one is longer than a row.

    Args:
        sources: the mixture.
        tokenizer: a fast transformers tokenizer; for conversations, one with a chat template.
        sequence_length: tokens a row.
        tokens: how many are wanted, filler included; rounded up to whole rows.
        loss_on: "all" takes every token that can be predicted as a loss target, "completion" those of replies.
        seed: of the shuffle and of generated data. Same inputs, same seed: same rows.
        cache: folder for prepared data sets. Changed local files are noticed by content; a changed hub data set is not.

    Raises:
        UserError: a source cannot be read; a conversation cannot be encoded; nothing to learn is left.
    """
    rows = -(-tokens // sequence_length)
    key = _cache_key(sources, tokenizer, sequence_length, rows, loss_on, seed)
    folder = Path(cache) / key
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".partial", dir=folder.parent))
        try:
            counts = _write(partial, sources, tokenizer, sequence_length, rows, loss_on, seed)
            _check_learnable(counts, sources, loss_on)
            (partial / "stats.json").write_text(json.dumps({"key": key, "stats": vars(counts)}, indent=2) + "\n")
            _publish(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return PackedDataset(folder)


def _write(folder: Path, sources, tokenizer, sequence_length, rows, loss_on, seed) -> Counts:
    counts = Counts()
    columns = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(rows, sequence_length))
        for name, dtype in COLUMNS.items()
    }
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    # Neighbouring rows come from one window of the sources, often from one document: scatter them over the whole set.
    places = np.random.default_rng(seed).permutation(rows)
    packed = packed_rows(sources, tokenizer, sequence_length, rows, loss_on, seed, counts)
    for place, pieces in zip(places, packed, strict=True):
        for name, values in lay_out_row(pieces, sequence_length, pad_id).items():
            columns[name][place] = values
        counts.add_row(pieces, sequence_length)
    for column in columns.values():
        column.flush()
    return counts


def _check_learnable(counts: Counts, sources, loss_on: str) -> None:
    labels = ", ".join(source.label for source in sources)
    if counts.loss_tokens == 0:
        raise UserError(f"{labels}: {counts.tokens} tokens but none to learn from; take longer rows or other data")
    if loss_on == "completion" and counts.loss_tokens == counts.tokens - counts.pieces:
        raise UserError(
            f"{labels}: every token counts as a completion, prompts too, so the mask is wrong; check the chat template"
        )


def _publish(partial: Path, folder: Path) -> None:
    os.chmod(partial, 0o755)  # mkdtemp makes it private to its owner
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        # Another process has prepared the same rows in the meantime; they are as good as ours.


def _cache_key(sources, tokenizer, sequence_length: int, rows: int, loss_on: str, seed: int) -> str:
    everything = {
        "format": FORMAT,
        "sources": [_fingerprint(source) for source in sources],
        "tokenizer": _tokenizer_state(tokenizer),
        "sequence_length": sequence_length,
        "rows": rows,
        "loss_on": loss_on,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:20]


def _fingerprint(source: Source) -> dict:
    """What a source will yield, whatever it is called: fields and content, not the path."""
    fields = source.model_dump(exclude={"path"})
    if source.path is None:
        return fields
    if source.path.startswith(EMBEDDED):
        return fields | {"embedded": source.path, "version": __version__}
    if not Path(source.path).is_file():
        return fields | {"missing": source.path}  # reading it says what is wrong
    with open(source.path, "rb") as file:
        return fields | {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "kind": local_suffix(source.path)}


def _tokenizer_state(tokenizer) -> dict:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; give the teacher a tokenizer.json")
    state = json.loads(backend.to_str())
    # Left over from earlier calls, and set anew by every call.
    del state["truncation"], state["padding"]
    return state | {
        "chat_template": tokenizer.chat_template,
        "end": tokenizer.eos_token_id,
        "separator": tokenizer.sep_token_id,
        "pad": tokenizer.pad_token_id,
    }
