"""A small teacher and its student, packed rows of random tokens, and a stage run through the real loop."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel, Qwen3Config

import small_models
from gendistill.compute import Compute
from gendistill.data.packing import lay_out_row, make_piece
from gendistill.distill.optimizer import MasterOptimizer
from gendistill.distill.roles import set_trainable
from gendistill.distill.stage import train_stage
from gendistill.recipe.stage import Stage
from small_models import SHAPE, make_student, make_teacher

LENGTH = 12


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On a shared machine, threads that wait for each other make tensors this small a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_stage():
    def make(**settings):
        defaults = dict(
            objective="forward_kl",
            train=["mixer", "mlp", "norm"],
            data="text",
            sequence_length=LENGTH,
            sequences_per_step=8,
            micro_batch=8,
            learning_rate=1e-3,
        )
        chosen = defaults | settings
        steps = chosen.pop("steps", 4)
        return Stage(**({"tokens": steps * chosen["sequence_length"] * chosen["sequences_per_step"]} | chosen))

    return make


class Rows:
    """A data set in memory: packed random documents, some of whose tokens do not count, from `words` words."""

    def __init__(self, rows, length=LENGTH, seed=0, words=97):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(2, words, (rows, length), generator=generator)
        cut = torch.randint(1, length, (rows,), generator=generator)
        index = torch.arange(length)[None]
        self.positions = torch.where(index < cut[:, None], index, index - cut[:, None])
        counts = torch.rand(rows, length, generator=generator) < 0.4
        self.mask = counts & (self.positions > 0)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, rows):
        columns = {"input_ids": self.ids, "position_ids": self.positions, "loss_mask": self.mask}
        return {name: column[rows].numpy() for name, column in columns.items()}


@pytest.fixture
def rows():
    return Rows


class Chats:
    """A data set in memory: packed conversations, each a prompt and a reply that counts; some rows end in padding."""

    PROMPTS, REPLIES = (3, 7, 5), (6, 2, 4)

    def __init__(self, rows, length=36, seed=0, words=97):
        rng = np.random.default_rng(seed)
        made = []
        for row in range(rows):
            pieces = []
            for prompt, reply in list(zip(self.PROMPTS, self.REPLIES, strict=True))[: 2 + row % 2]:
                ids = rng.integers(2, words, prompt + reply)
                pieces.append(make_piece(ids, [0] * prompt + [1] * reply))
            made.append(lay_out_row(pieces, length, pad_id=0))
        self.columns = {name: np.stack([row[name] for row in made]) for name in made[0]}

    def __len__(self):
        return len(self.columns["input_ids"])

    def __getitem__(self, rows):
        return {name: column[rows].copy() for name, column in self.columns.items()}


@pytest.fixture
def chats():
    return Chats


@pytest.fixture
def shrink(monkeypatch):
    """Makes the Qwen3 of `small_models` still smaller, or whatever shape is asked for."""

    def change(**shape):
        config = Qwen3Config(**(SHAPE | shape), head_dim=16, tie_word_embeddings=True)
        monkeypatch.setitem(small_models.FAMILIES, "qwen3", config)

    return change


@pytest.fixture
def conversion_report():
    """Powers of each replaced layer, none of them 1 and none like another."""

    def measure(student):
        layers = student.config.layers_of_type("linear_attention")
        powers = dict(attention_mean_square=0.5, update_mean_square=2.0, hidden_mean_square=3.0)
        return {"layers": [{"layer": i} | {name: x * (i + 1) for name, x in powers.items()} for i in layers]}

    return measure


@dataclass
class Outcome:
    history: list
    before: dict  # the student's weights
    after: dict
    optimizer: MasterOptimizer
    teacher: PreTrainedModel
    folder: Path

    @property
    def losses(self):
        return [metrics.loss for metrics in self.history]

    @property
    def numbers(self):
        """All that a resume must give again to the last bit."""
        timed = ("seconds", "tokens_per_second", "mfu")
        return [{name: x for name, x in vars(m).items() if name not in timed} for m in self.history]


@pytest.fixture
def run(rows, conversion_report, tmp_path):
    """Runs a stage as the pipeline does, from a fresh student of the family."""

    def call(
        stage,
        *,
        folder="run",
        family="qwen3",
        keep=(1,),
        dtype=torch.float32,
        dataset=None,
        held_out=None,
        distant=None,
        change=None,
        options=None,
        console=None,
        writing=None,
    ):
        teacher = make_teacher(family).requires_grad_(False)
        student = make_student(family, keep=keep, **(options or {})).train()
        if change is not None:
            change(student)
        before = {name: p.detach().clone() for name, p in student.named_parameters()}
        set_trainable(student, stage.train)
        history, optimizer = train_stage(
            stage,
            teacher.to(dtype),
            student,
            dataset if dataset is not None else rows(stage.steps * stage.sequences_per_step, stage.sequence_length),
            conversion_report=conversion_report(student),
            vocabulary=97,
            compute=Compute("cpu", dtype, compiled=False, kernels=False),
            folder=tmp_path / folder,
            fingerprint=stage.model_dump(mode="json", include={"train", "learning_rate", "temperature"}),
            title="test",
            console=console or Console(quiet=True),
            held_out=held_out,
            distant=distant,
            writing=writing,
        )
        return Outcome(history, before, optimizer.weights(), optimizer, teacher, tmp_path / folder)

    return call
