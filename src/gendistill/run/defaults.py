"""A recipe for a model that has none: what is asked for, and what is found out about it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gendistill.compute import start_compute
from gendistill.console import Console
from gendistill.data.chat import render_prompt
from gendistill.data.sources import Document, read_documents, read_records
from gendistill.errors import UserError
from gendistill.files import located, located_model
from gendistill.models.families import student_config
from gendistill.models.loading import load_config, load_model, load_tokenizer
from gendistill.models.positions import most_positions
from gendistill.recipe.data import Source
from gendistill.recipe.loading import Recipe
from gendistill.run.draft import EPOCHS, Draft
from gendistill.run.duration import seconds_per_token
from gendistill.run.probe import Probe, probe_stages

HOURS = {"cpu": 0.5, "cuda": 2.0}  # of a whole run, where nobody says
COUNTED = 20_000_000  # tokens of the user's data; who has more has enough for any default
# Fields of conversations; the first row that a record has all of counts, `input` apart.
CHATS: tuple[dict[str, str], ...] = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "completion": "completion"},
    {"prompt": "prompt", "completion": "response"},
    {"prompt": "instruction", "completion": "output"},
    {"prompt": "question", "completion": "answer"},
)


@dataclass(frozen=True)
class Asked:
    """What the person gives: a model, and data and hours if they like.

    Attributes:
        text, chats: files, folders or patterns.
        hours: of the whole run.
    """

    model: str
    text: str | None = None
    chats: str | None = None
    hours: float | None = None

    @property
    def name(self) -> str:
        """Of the run: the model's last name."""
        return re.sub(r"[^A-Za-z0-9._-]", "-", Path(self.teacher).name).lstrip(".-")[:90] or "model"

    @property
    def teacher(self) -> str:
        """The model as the recipe names it: a folder by its absolute path, for the recipe may lie anywhere."""
        return located_model(self.model, Path.cwd())

    @property
    def first_line(self) -> str:
        """Of the recipe: the call that makes it."""
        options = {"text": self._located(self.text), "chats": self._located(self.chats), "hours": self.hours}
        given = [f"--{name} {value}" for name, value in options.items() if value is not None]
        # On one line, whatever a path holds.
        return "# " + " ".join(" ".join(["gendistill init", self.teacher, *given]).split())

    @staticmethod
    def _located(path: str | None) -> str | None:
        return None if path is None else located(path, Path.cwd())

    def sources(self) -> dict[str, Source]:
        """The data as a recipe has them, by mixture.

        Raises:
            UserError: they cannot be read, or are no conversations.
        """
        found = {}
        # In this order: alignment takes the first.
        if self.text is not None:
            found["text"] = Source(path=self._located(self.text), epochs=EPOCHS)
        if self.chats is not None:
            path = self._located(self.chats)
            # One record shows what its fields are called; those after it are checked when they are read.
            fields = chat_fields(next(read_records(Source(path=path))), self.chats)
            found["chats"] = Source(path=path, **fields, epochs=EPOCHS)
        return found


class Offer(NamedTuple):
    """A recipe and its price.

    Attributes:
        text: of the file.
        seconds: of each part of the run, about; together more than `wanted_seconds` where no run takes less.
        probes: by stage.
    """

    text: str
    recipe: Recipe
    seconds: dict[str, float]
    wanted_seconds: float
    probes: dict[str, Probe]


@dataclass(frozen=True)
class _Auto:
    """How the default recipe computes."""

    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    compile: str = "auto"


def default_recipe(asked: Asked, console: Console) -> Offer:
    """A recipe for the model whose run takes about the hours asked for, by what its parts are measured to take here.

    Raises:
        UserError: the model cannot be loaded, is of no supported family, or has no chat template; the data cannot be
            read, hold too little, or are no conversations; a stage does not fit in memory.
    """
    # The data first: a mistyped path shows at once.
    sources = asked.sources()
    config = load_config(asked.teacher)
    student_config(config, keep_attention=[0])  # refuses other families
    tokenizer = load_tokenizer(asked.teacher, config.vocab_size)
    render_prompt(tokenizer, [{"role": "user", "content": "hi"}])  # layers are chosen, and models judged, by chats
    compute = start_compute(_Auto())
    # Half an hour of a CPU shows what a hybrid keeps; a GPU trains something in two.
    hours = HOURS[compute.device] if asked.hours is None else asked.hours
    draft = Draft(
        name=asked.name,
        teacher=asked.teacher,
        first_line=asked.first_line,
        compute=compute,
        positions=most_positions(config),
        layers=config.num_hidden_layers,
        seconds=hours * 3600,
        sources=sources,
        holds={name: count_tokens(source, tokenizer) for name, source in sources.items()},
    )
    draft.fit_memory()
    console.print(f"{asked.model}: measures on {compute.device} what a run takes")
    model = load_model(asked.teacher, compute.dtype, compute.device)
    per_token = seconds_per_token(model)
    del model  # the probe loads its own
    draft.choose_counts(per_token)
    probes = probe_stages(draft.recipe(), list(draft.budgets), console)
    draft.choose_budgets(per_token, probes)
    return Offer(draft.text(), draft.recipe(), draft.parts(per_token, probes), draft.seconds, probes)


def chat_fields(record: Mapping, name: str) -> dict[str, str]:
    """Which fields of a record are a conversation, as a source's settings; UserError if none are known to be."""
    for row in CHATS:
        if set(row.values()) <= record.keys():
            # Alpaca's second part of the prompt.
            return row | ({"input": "input"} if "prompt" in row and "input" in record else {})
    forms = "; ".join(", ".join(row.values()) for row in CHATS)
    raise UserError(
        f"--chats {name}: its first record has the fields {', '.join(map(str, record))}; known are {forms}. Name "
        "others in a recipe: gendistill init prints one to begin with. Replies to bare prompts can be written by the "
        "teacher: docs/data.md"
    )


def count_tokens(source: Source, tokenizer) -> int:
    """Tokens of a source in one pass, up to COUNTED."""
    tokens = 0
    for document in read_documents(source):
        if not isinstance(document, Document):  # what is skipped gives none
            continue
        content = document.content
        texts = [content] if isinstance(content, str) else [message["content"] for message in content]
        # Not more than is needed: a folder may hold a web crawl.
        tokens += sum(map(len, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]))
        if tokens >= COUNTED:
            break
    return tokens
