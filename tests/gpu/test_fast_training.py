"""The fast path of training, compiled layers and CUDA graphs, does what the plain one does, and waits for nothing."""

import gc

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, Qwen3Config

from gendistill.compute import Compute
from gendistill.distill.acceleration import GraphedMicroBatch
from gendistill.distill.batches import Batch
from gendistill.distill.engine import Trainer
from gendistill.distill.roles import set_trainable
from gendistill.distill.stage import train_stage
from gendistill.errors import UserError
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.recipe.stage import Stage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTH, WORDS = 256, 1000
SHAPE = dict(
    vocab_size=WORDS,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    tie_word_embeddings=True,
    initializer_range=0.1,
)
STAGES = {
    "mixers": dict(objective="mixer_l2", train=["mixer_qk", "mixer_conv", "mixer_gate"]),
    "blocks": dict(objective={"block_l2": 1, "block_cosine": 0.5}, train=["mixer"]),
    "words": dict(objective={"forward_kl": 1, "cross_entropy": 0.1}, train=["mixer", "mlp", "norm"]),
    "words and hidden states": dict(objective={"reverse_kl": 1, "hidden_l2": 0.5}, train=["mixer", "embedding"]),
    "checkpointed": dict(objective="jensen_shannon", train=["mixer", "mlp"], gradient_checkpointing=True),
    "labels": dict(objective="cross_entropy", train=["mixer"]),  # which no teacher is asked for
}
every_stage = pytest.mark.parametrize("stage", STAGES)


class Rows:
    """Random words; rows of one document, or packed ones whose number of documents and of loss tokens varies."""

    def __init__(self, rows: int, packed: bool):
        random = np.random.default_rng(0)
        self.ids = random.integers(0, WORDS, (rows, LENGTH), dtype=np.int32)
        cuts = [sorted(random.choice(np.arange(1, LENGTH), random.integers(1, 5), replace=False)) for _ in range(rows)]
        borders = [[0, *(cut if packed else []), LENGTH] for cut in cuts]
        self.positions = np.stack(
            [np.concatenate([np.arange(b - a) for a, b in zip(row, row[1:], strict=False)]) for row in borders]
        ).astype(np.int32)
        counts = random.random((rows, LENGTH)) < (random.random((rows, 1)) if packed else 1)
        self.mask = (counts & (self.positions > 0)).astype(np.uint8)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, rows):
        columns = {"input_ids": self.ids, "position_ids": self.positions, "loss_mask": self.mask}
        return {name: column[rows].copy() for name, column in columns.items()}


def train(
    stage: str,
    folder,
    fast: bool,
    packed: bool = True,
    mixer: str = "kda",
    bound: float | None = None,
    window_dropout: float = 0.0,
    **options,
):
    settings = dict(data="text", sequence_length=LENGTH, sequences_per_step=8, micro_batch=4, learning_rate=1e-4)
    stage = Stage(**settings, tokens=6 * 8 * LENGTH, window_dropout=window_dropout, **STAGES[stage])
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPE)
    teacher = AutoModelForCausalLM.from_config(config).to("cuda", torch.bfloat16).eval().requires_grad_(False)
    student, _ = convert(teacher, student_config(config, [1], mixer=mixer, log_decay_bound=bound, **options), seed=0)
    student = student.to("cuda", torch.float32).train()
    set_trainable(student, stage.train)
    power = dict(attention_mean_square=1.0, update_mean_square=1.0, hidden_mean_square=1.0)
    history, optimizer = train_stage(
        stage,
        teacher if stage.needs_teacher else None,
        student,
        Rows(48, packed),
        conversion_report={"layers": [{"layer": i} | power for i in (0, 2)]},
        vocabulary=WORDS,
        compute=Compute("cuda", torch.bfloat16, compiled=fast, kernels=True),
        folder=folder,
        fingerprint={},
        title="test",
        console=Console(quiet=True),
    )
    return history, optimizer.weights()


@every_stage
@pytest.mark.parametrize("packed", [False, True], ids=["whole rows", "packed"])
@pytest.mark.parametrize("bound", [None, -5.0], ids=["unbounded", "bounded"])
def test_compiled_and_graphed_equals_plain(tmp_path, stage, packed, bound):
    plain, weights = train(stage, tmp_path / "plain", fast=False, packed=packed, bound=bound)
    fast, fast_weights = train(stage, tmp_path / "fast", fast=True, packed=packed, bound=bound)
    # Rounding to bfloat16 alone moves these losses by up to 0.5 % of their value in float32.
    assert [m.loss for m in fast] == pytest.approx([m.loss for m in plain], rel=1e-2)
    assert [m.gradient_norm for m in fast] == pytest.approx([m.gradient_norm for m in plain], rel=5e-2)
    assert fast[-1].loss != fast[0].loss
    changed = 0.0
    for name, weight in weights.items():
        torch.testing.assert_close(fast_weights[name].float(), weight.float(), atol=2e-3, rtol=1e-2)
        changed += (fast_weights[name].float() - weight.float()).abs().sum().item()
    assert changed > 0  # not the same path twice


@pytest.mark.parametrize("mixer", ["gated_deltanet", "lightning", "gla", "mamba2"])
def test_other_mixers_train_compiled_without_graphs(tmp_path, mixer):
    plain, _ = train("words", tmp_path / "plain", fast=False, mixer=mixer)
    fast, _ = train("words", tmp_path / "fast", fast=True, mixer=mixer)
    assert [m.loss for m in fast] == pytest.approx([m.loss for m in plain], rel=5e-3)


@pytest.mark.parametrize("stage", ["mixers", "words"])
def test_the_loop_never_waits_for_the_device(tmp_path, monkeypatch, stage):
    """After the first step, which compiles and captures."""
    start = Trainer._start

    def watched(trainer, step):
        torch.cuda.set_sync_debug_mode("error" if step.index > 1 else "default")
        try:
            return start(trainer, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_start", watched)
    history, _ = train(stage, tmp_path, fast=True, packed=False)
    assert len(history) == 6


def test_a_stage_leaves_no_memory_taken(tmp_path):
    gc.collect()
    gc.disable()  # a stage that refers to itself would be collected some time, and the next needs the memory now
    try:
        taken = []
        for folder in ("first", "second", "third"):
            train("words", tmp_path / folder, fast=True)
            torch._C._cuda_clearCublasWorkspaces()  # a stage has streams of its own, and each stream a workspace
            taken.append(torch.cuda.memory_allocated())
        assert taken[2] - taken[1] < 2**18
    finally:
        gc.enable()


def test_out_of_memory_says_in_which_part(tmp_path):
    gc.collect()  # what earlier tests left would be room that the limit does not see
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 40 * 2**20) / total)
    try:
        with pytest.raises(UserError, match="out of memory in the .*Lower micro_batch"):
            train("words", tmp_path, fast=False)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_graphs_make_room_for_the_warm_ups_of_other_shapes():
    """Of two shapes that do not fit together the first one's graph is let go, and captured again later."""
    calls = []

    def run(batch, scale):
        calls.append(len(batch.weights))
        if graphed.captured and len(batch.weights) == 8:
            raises_out_of_memory(batch, scale)
        return 2 * batch.weights.sum() + scale * 0

    graphed = GraphedMicroBatch(run, "cuda")
    one = torch.ones((), device="cuda")
    sums = [graphed(batch_of(size), one).item() for size in (4, 8, 4, 8)]
    assert sums == [8, 16, 8, 16]
    # 4: warm-ups and capture; 8: one that fails, warm-ups and capture; 4 again: the capture alone.
    assert calls == [4, 4, 4, 8, 8, 8, 8, 4]
    with pytest.raises(UserError, match="out of memory"):  # nothing to let go: it is said
        GraphedMicroBatch(raises_out_of_memory, "cuda")(batch_of(4), one)


def batch_of(size: int) -> Batch:
    some = torch.zeros(1, size, dtype=torch.long)
    weights = torch.ones(size)
    return Batch(some, None, None, torch.ones(1, size), some[0], some[0], weights)


def raises_out_of_memory(batch, scale):
    raise UserError("out of memory in the student's forward pass") from torch.OutOfMemoryError("CUDA")
