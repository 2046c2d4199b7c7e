"""On-policy stages beside compiled layers and CUDA graphs: the same losses on the same replies, and replies of the
weights that are in training."""

import shutil
from copy import deepcopy

import numpy as np
import pytest
import torch
from rich.console import Console
from test_fast_training import LENGTH, SHAPE, WORDS
from transformers import AutoModelForCausalLM, Qwen3Config

from gendistill.compute import Compute
from gendistill.data.packing import lay_out_row, make_piece
from gendistill.distill.on_policy import Writing
from gendistill.distill.replies import ReplyTokens, ReplyWriter
from gendistill.distill.roles import set_trainable
from gendistill.distill.stage import train_stage
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.recipe.stage import Stage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 6
TOKENS = ReplyTokens(ends=range(2, 22), pad=0, decode=str)  # some replies end, some do not


class Chats:
    """Packed conversations of random words; rows hold two or three, and end in padding."""

    def __init__(self, rows):
        rng = np.random.default_rng(0)
        made = []
        for row in range(rows):
            sizes = [(30, 40), (50, 30), (20, 40)][: 2 + row % 2]
            pieces = [make_piece(rng.integers(2, WORDS, p + r), [0] * p + [1] * r) for p, r in sizes]
            made.append(lay_out_row(pieces, LENGTH, 0))
        self.columns = {name: np.stack([row[name] for row in made]) for name in made[0]}

    def __len__(self):
        return len(self.columns["input_ids"])

    def __getitem__(self, rows):
        return {name: column[rows].copy() for name, column in self.columns.items()}


def train(folder, fast: bool, learning_rate: float = 1e-4):
    """The metrics, and the student as training left it."""
    stage = Stage(
        objective="reverse_kl",
        loss_on="completion",
        data={"on_policy": "chats", "share": 0.5, "new_tokens": [16, 48]},
        train=["mixer", "mlp", "norm"],
        tokens=STEPS * 8 * LENGTH,
        sequence_length=LENGTH,
        sequences_per_step=8,
        micro_batch=4,
        learning_rate=learning_rate,
    )
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPE)
    teacher = AutoModelForCausalLM.from_config(config).to("cuda", torch.bfloat16).eval().requires_grad_(False)
    student, _ = convert(teacher, student_config(config, [1], log_decay_bound=-5.0), seed=0)
    student = student.to("cuda", torch.float32).train()
    set_trainable(student, stage.train)
    power = dict(attention_mean_square=1.0, update_mean_square=1.0, hidden_mean_square=1.0)
    history, _ = train_stage(
        stage,
        teacher,
        student,
        Chats(STEPS * 8),
        conversion_report={"layers": [{"layer": i} | power for i in (0, 2)]},
        vocabulary=WORDS,
        compute=Compute("cuda", torch.bfloat16, compiled=fast, kernels=True),
        folder=folder,
        fingerprint={},
        title="test",
        console=Console(quiet=True),
        writing=Writing(TOKENS),
    )
    return history, student


def test_compiled_and_graphed_equals_plain_on_the_same_replies(tmp_path):
    plain, _ = train(tmp_path / "plain", fast=False)
    (tmp_path / "fast").mkdir()
    shutil.copy(tmp_path / "plain/replies.jsonl", tmp_path / "fast")
    fast, _ = train(tmp_path / "fast", fast=True)
    assert [m.replies for m in fast] == [m.replies for m in plain]
    assert [m.loss_tokens for m in fast] == [m.loss_tokens for m in plain]
    assert [m.loss for m in fast] == pytest.approx([m.loss for m in plain], rel=1e-2)


@pytest.mark.parametrize("fast", [False, True])
def test_replies_are_of_the_weights_in_training(tmp_path, fast):
    """A copy of the student, for which nothing was put together before, says the same as the one that trained."""
    _, student = train(tmp_path, fast, learning_rate=1e-2)
    prompts = [list(range(30, 30 + length)) for length in (20, 35, 9)]
    replies = [
        ReplyWriter(model, TOKENS, torch.bfloat16).write(prompts, 24, 1.0, ["a", "b", "c"])
        for model in (student, deepcopy(student))
    ]
    assert replies[0] == replies[1]


def test_writing_leaves_no_memory_behind(tmp_path):
    _, student = train(tmp_path, fast=False)
    writer = ReplyWriter(student, TOKENS, torch.bfloat16)
    held = []
    for turn in range(4):
        writer.write([list(range(30, 50 + 3 * turn))] * 40, 24, 1.0, [f"{turn} {i}" for i in range(40)])
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    assert max(held[1:]) - held[0] < 2**20
