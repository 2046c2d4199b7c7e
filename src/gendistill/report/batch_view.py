"""One training batch as packed sequences, documents and tokens with their loss weights; and the view in a terminal.

Weights are read off the batch the engine runs and not off the data set's mask, so that an engine that learnt the wrong
tokens would show it. A weight stands on the token that is predicted, not on the one before, which predicts it (its
predictor).
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import numpy as np
from rich.cells import cell_len
from rich.rule import Rule
from rich.text import Text

from gendistill.console import Console
from gendistill.distill.batches import Batch, Step

NEWLINE = "↵"
MARKS = {"\n": NEWLINE, " ": "·", "\t": "⇥"}
CUT = "✂ cut: no end of a text or a turn here"
ELIDED_AT_LEAST = 12  # tokens; a gap of fewer is not worth its sign
SHOWN = 32  # tokens shown at either end of a run that is elided


@dataclass(frozen=True)
class Token:
    """A token of the batch.

    Attributes:
        text: what it stands for; white space and loose bytes are made visible.
        position: in its document, 0-based.
        weight: with which it counts for the loss; 0 for context.
        target: the id that the batch tells the loss to expect here; None if nothing predicts this token.
    """

    text: str
    id: int
    position: int
    weight: float
    target: int | None = None

    @property
    def kind(self) -> str:
        """'wrong' if the loss expects another token here, else 'learnt' or 'context'."""
        if self.weight and self.target not in (None, self.id):
            return "wrong"
        return "learnt" if self.weight else "context"

    @property
    def note(self) -> str:
        expected = f", but the target is id {self.target}" if self.kind == "wrong" else ""
        return f"id {self.id}, position {self.position}, weight {self.weight:g}{expected}"


@dataclass(frozen=True)
class Document:
    """A run of tokens that share attention and state; `cut` if its last token ends neither a text nor a turn."""

    tokens: list[Token]
    padding: bool
    cut: bool

    @property
    def learnt(self) -> int:
        return sum(token.weight > 0 for token in self.tokens)


@dataclass(frozen=True)
class BatchView:
    """The packed sequences of a step's micro-batches, in their order.

    Attributes:
        alignment: the stage compares layers, so weights say which tokens are compared.
        problems: what the batch says of itself that cannot be true together; empty if it is sound.
        without_window: sequences whose windows are dropped, counted from 1.
    """

    rows: list[list[Document]]
    alignment: bool
    problems: list[str]
    without_window: tuple[int, ...] = ()

    @property
    def noun(self) -> str:
        return "compared tokens" if self.alignment else "loss tokens"

    @property
    def documents(self) -> list[Document]:
        """Padding is none."""
        return [document for row in self.rows for document in row if not document.padding]

    @property
    def tokens(self) -> int:
        """Padding included."""
        return sum(len(document.tokens) for row in self.rows for document in row)

    @property
    def padding_tokens(self) -> int:
        return self.tokens - sum(len(document.tokens) for document in self.documents)

    @property
    def learnt(self) -> int:
        return sum(document.learnt for row in self.rows for document in row)

    @property
    def cut_documents(self) -> int:
        return sum(document.cut for document in self.documents)

    def totals(self) -> dict[str, str]:
        """Of all sequences; shares are of all tokens."""
        totals = {
            "sequences": f"{len(self.rows):,}",
            "tokens": f"{self.tokens:,}",
            self.noun: f"{self.learnt:,} ({self.learnt / self.tokens:.1%})",
            "padding": f"{self.padding_tokens:,} ({self.padding_tokens / self.tokens:.1%})",
            "documents": f"{len(self.documents):,}",
            "cut documents": f"{self.cut_documents:,}",
        }
        if self.without_window:
            totals["sequences without windows"] = ", ".join(map(str, self.without_window))
        return totals

    def verdict(self) -> list[str]:
        """The problems, or one line that says what was checked."""
        if self.problems:
            return [f"inconsistent: {problem}" for problem in self.problems]
        if self.alignment:
            return [f"consistent: boundaries agree with positions, and the loss is divided by {self.learnt:,} tokens"]
        return [
            f"consistent: each of {self.learnt:,} targets is the token after its predictor and in the same document"
        ]


def view_step(step: Step, tokenizer, ends: Collection[int], *, alignment: bool) -> BatchView:
    """Reads a step's micro-batches.

    Args:
        step: the whole step, of one process.
        tokenizer: a fast transformers tokenizer.
        ends: ids that end a document or a turn.
        alignment: the stage compares layers: what counts is `Batch.valid_mask` [B, T], and predictors do not matter.
    """
    text_of = token_texts(tokenizer)
    rows = []  # of documents, one for each sequence
    for batch in step.batches:
        if alignment:  # layers are compared at a token, which nothing predicts
            weights = batch.valid_mask.numpy()  # [B, T]
            targets = np.full(batch.input_ids.shape, None).tolist()  # [B, T]
        else:
            weights, targets = _predicted(batch)  # [B, T] each
        positions = _positions(batch)  # [B, T]
        for row, ids in enumerate(batch.input_ids.tolist()):
            columns = zip(ids, positions[row].tolist(), weights[row].tolist(), targets[row], strict=True)
            tokens = [Token(text_of(id), id, *rest) for id, *rest in columns]
            rows.append(list(_documents(tokens, ends, tokenizer.pad_token_id)))
    dropped = [d for batch in step.batches if batch.without_window is not None for d in batch.without_window.tolist()]
    without_window = tuple(number for number, is_dropped in enumerate(dropped, 1) if is_dropped)
    return BatchView(rows, alignment, _problems(step, alignment), without_window)


def _predicted(batch: Batch) -> tuple[np.ndarray, list[list[int | None]]]:
    """For each token [B, T] the weight with which it is predicted, and the id that is expected in its place."""
    places, expected, weights = _entries(batch)  # [P] each
    inside = places < batch.input_ids.numel()  # [P]; an entry beyond the batch is a problem, and told as one
    weight = np.zeros(batch.input_ids.numel(), np.float32)  # [B * T]
    np.add.at(weight, places[inside], weights[inside])  # a token that is predicted twice counts twice
    targets = np.full(len(weight), None)  # [B * T]
    targets[places[inside]] = expected[inside]
    shape = batch.input_ids.shape
    return weight.reshape(shape), targets.reshape(shape).tolist()


def _entries(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each loss target its index in the flattened batch, its id and its weight [P]; without what only fills up."""
    real = (batch.weights > 0).numpy()  # [P]
    predicted = (batch.predictors + 1).numpy()  # [P]; a predictor is the position before its target
    return predicted[real], batch.targets.numpy()[real], batch.weights.numpy()[real]


def _positions(batch: Batch) -> np.ndarray:
    """[B, T]; sequences of one document each come without positions."""
    if batch.position_ids is not None:
        return batch.position_ids.numpy()
    return np.broadcast_to(np.arange(batch.input_ids.shape[1]), batch.input_ids.shape)


def _documents(row: list[Token], ends: Collection[int], pad_id: int | None) -> Iterator[Document]:
    starts = [index for index, token in enumerate(row) if token.position == 0 or index == 0]
    for start, stop in zip(starts, [*starts[1:], len(row)], strict=True):
        tokens = row[start:stop]
        # Nothing in a batch says what is padding: a sequence's last document, behind some other one, of padding tokens.
        padding = start > 0 and stop == len(row) and all(token.id == pad_id for token in tokens)
        yield Document(tokens, padding, cut=not padding and tokens[-1].id not in ends)


def _problems(step: Step, alignment: bool) -> list[str]:
    counts = Counter()
    for batch in step.batches:
        counts["boundaries of documents that cu_seqlens and positions disagree on"] += _disputed_boundaries(batch)
        if not alignment:
            counts.update(_misplaced(batch))
    problems = [f"{what}: {count:,}" for what, count in counts.items() if count]
    # What the engine divides by is counted apart from the batches, so the two can differ.
    held = sum((batch.valid_mask if alignment else batch.weights).sum().item() for batch in step.batches)
    if held != step.loss_tokens:
        problems.append(f"the step divides its loss by {step.loss_tokens:,} tokens, its batches hold {held:,g}")
    return problems


def _misplaced(batch: Batch) -> dict[str, int]:
    places, expected, _ = _entries(batch)  # [P] each
    inside = places < batch.input_ids.numel()  # [P]
    ids = batch.input_ids.flatten().numpy()  # [B * T]
    opens = _positions(batch).flatten() == 0  # [B * T], the first tokens of documents
    wrong = ids[places[inside]] != expected[inside]
    return {
        "targets that are not the token after their predictor": int(wrong.sum() + (~inside).sum()),
        "targets that open a document, so that another document predicts them": int(opens[places[inside]].sum()),
        "targets that are predicted more than once": len(places) - len(np.unique(places)),
    }


def _disputed_boundaries(batch: Batch) -> int:
    if batch.cu_seqlens is None:
        return 0
    starts = np.flatnonzero(_positions(batch).flatten() == 0)  # [documents]
    # As sets: documents without tokens, which only fill up, repeat the last boundary.
    return len(np.setxor1d(batch.cu_seqlens.numpy(), np.append(starts, batch.input_ids.numel())))


def token_texts(tokenizer) -> Callable[[int], str]:
    """Gives the visible text of a token by its id: white space is a mark, a byte that is no whole character ⟨F0⟩."""
    # Special tokens stand for themselves, whatever the tokenizer's own decoder would do to them.
    added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
    # Decoding a token by itself would turn a part of a character into a question mark, so bytes are put together here.
    alphabet = _byte_alphabet() if "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder) else None

    @cache
    def text_of(id: int) -> str:
        token = added.get(id) or tokenizer.convert_ids_to_tokens(id)
        if token is None:  # embeddings may have more rows than the tokenizer has tokens
            return f"⟨id {id}⟩"
        if id in added:
            return visible(token)
        if alphabet is not None and all(character in alphabet for character in token):
            return visible(bytes(alphabet[character] for character in token).decode(errors="surrogateescape"))
        if byte := re.fullmatch("<0x([0-9A-F]{2})>", token):  # byte fallback of SentencePiece
            return visible(bytes.fromhex(byte[1]).decode(errors="surrogateescape"))
        return visible(token.replace("▁", " "))  # SentencePiece's mark of a space

    return text_of


def visible(text: str) -> str:
    """Text in which every character can be seen, and none steers a terminal.

    Surrogates stand for bytes that are part of a character only, as in Python's error handler "surrogateescape".
    """

    def mark(character: str) -> str:
        if character in MARKS or character.isprintable():
            return MARKS.get(character, character)
        code = ord(character)
        # surrogateescape puts byte b at U+DC00 + b.
        return f"⟨{code & 0xFF:02X}⟩" if 0xDC80 <= code <= 0xDCFF else f"⟨U+{code:04X}⟩"

    return "".join(map(mark, text))


def _byte_alphabet() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary: itself if printable, else counted up from U+0100."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    renamed = sorted(set(range(0x100)) - set(themselves))
    return {chr(byte): byte for byte in themselves} | {chr(0x100 + i): byte for i, byte in enumerate(renamed)}


def label_of(document: Document, number: int, noun: str) -> str:
    size, learnt = quantity(len(document.tokens), "tokens"), quantity(document.learnt, noun)
    if document.padding:
        return f"padding, {size}, {learnt}" if document.learnt else f"padding, {size}"
    return f"document {number}: {size}, {learnt}"


def quantity(number: int, plural: str) -> str:
    return f"{number:,} {plural.removesuffix('s') if number == 1 else plural}"


# The terminal

STYLES = {"learnt": "green underline", "context": "dim", "wrong": "bold white on red"}
BRACKETS = {"learnt": "⟦⟧", "context": ("", ""), "wrong": "⟪⟫"}


def print_view(view: BatchView, console: Console, *, title: str, rows: int | None = None, full: bool = False) -> None:
    """Prints totals and sequences; where the console has no colours, brackets tell what is learnt.

    Args:
        rows: how many sequences to show; all if None.
        full: show every token; else the middle of a long run of one kind is elided, with its count.
    """
    plain = console.color_system is None or console.no_color
    console.print(Text(title, "bold"))
    console.print(Text("   ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in view.totals().items()))
    for line in view.verdict():
        console.print(Text(line, "bold red" if view.problems else "green"))
    console.print(_legend(view, plain))
    for number, row in enumerate(view.rows[:rows], 1):
        console.print()
        for place, document in enumerate(row, 1):
            label = f"sequence {number}, {label_of(document, place, view.noun)}"
            console.print(Rule(Text(label, "bold"), align="left", style="dim"))
            if document.padding and not document.learnt:
                continue  # but padding that is learnt is a mistake, and shown
            console.print(_flow(_pieces(document, plain, full), console.width), overflow="fold")
            if document.cut:
                console.print(Text(CUT, "bold red"))
    if hidden := len(view.rows) - len(view.rows[:rows]):
        console.print(Text(f"\n{quantity(hidden, 'more sequences')}", "dim"))


def _legend(view: BatchView, plain: bool) -> Text:
    shown = ("learnt", "context", "wrong") if view.problems else ("learnt", "context")
    names = {"learnt": view.noun, "context": "context", "wrong": "another target than the token"}
    samples = []
    for kind in shown:
        opening, closing = BRACKETS[kind] if plain else ("", "")
        samples.append(Text(f"{opening}{names[kind]}{closing}", STYLES[kind]))
    marks = Text(f"{NEWLINE} newline  · space  ⟨F0⟩ byte of a character  … left out", "dim")
    return Text("   ").join([*samples, marks])


def _pieces(document: Document, plain: bool, full: bool) -> Iterator[tuple[str, str]]:
    """What is printed of a document, piece by piece: text and style."""
    for kind, run in groupby(document.tokens, key=lambda token: token.kind):
        texts, style = [token.text for token in run], STYLES[kind]
        if plain:
            opening, closing = BRACKETS[kind]
            texts = [opening + texts[0], *texts[1:]]  # round the run, not round each token
            texts[-1] += closing
        left_out = 0 if full else len(texts) - 2 * SHOWN
        if left_out < ELIDED_AT_LEAST:
            yield from ((text, style) for text in texts)
            continue
        yield from ((text, style) for text in texts[:SHOWN])
        yield f" … {left_out:,} tokens … ", "italic dim"
        yield from ((text, style) for text in texts[-SHOWN:])


def _flow(pieces: Iterator[tuple[str, str]], width: int) -> Text:
    """Console of at most `width` cells, broken between tokens and after newlines: rich would break within them."""
    text, column = Text(), 0
    for piece, style in pieces:
        if column and column + cell_len(piece) > width:
            text.append("\n")
            column = 0
        text.append(piece, style)
        column += cell_len(piece)  # cells and not characters: Chinese ones are two wide
        if NEWLINE in piece:
            text.append("\n")
            column = 0
    text.rstrip()
    return text
