"""Strategies of many processes on one GPU: what a group of one costs, and two that share the GPU over gloo.

    pytest tests/gpu/test_processes_on_gpu.py -s

Started by torchrun, this file is what each of the two processes does.
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from test_fast_training import SHAPE, STAGES
from training_speed import RandomRows
from transformers import AutoModelForCausalLM, Qwen3Config

from cli_tools import environment
from gendistill import distributed
from gendistill.compute import Compute
from gendistill.distill.engine import StepMetrics
from gendistill.distill.objectives import unmeasured_conversion_report
from gendistill.distill.roles import set_trainable
from gendistill.distill.sharding import shard
from gendistill.distill.stage import train_stage
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.recipe.stage import Stage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ON_GPU = Compute("cuda", torch.bfloat16, compiled=True, kernels=True)
# Large enough for kernels, not launches, to take the time; few layers, which compile in seconds.
WIDE = SHAPE | dict(hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8)
WIDE |= dict(head_dim=128, num_hidden_layers=4, vocab_size=16384)
SHARED = ("replicas", "fsdp")  # strategies that two processes run on one GPU


def train(
    strategy: str,
    folder: Path,
    *,
    stage: str = "words",
    shape: dict = SHAPE,
    length: int = 256,
    steps: int = 6,
    micro_batch: int = 4,
):
    """Metrics of each step, compiled, and as CUDA graphs where the strategy has them."""
    compute = replace(ON_GPU, strategy=strategy, processes=distributed.processes())
    settings = dict(
        data="text", sequence_length=length, sequences_per_step=16, micro_batch=micro_batch, learning_rate=1e-4
    )
    settings = Stage(**settings, tokens=steps * 16 * length, **STAGES[stage])
    torch.manual_seed(0)
    config = Qwen3Config(**shape)
    teacher = AutoModelForCausalLM.from_config(config).to("cuda", torch.bfloat16).eval().requires_grad_(False)
    student, _ = convert(teacher, student_config(config, [1], log_decay_bound=-5.0), seed=0)
    student = student.to("cuda", torch.float32).train()
    set_trainable(student, settings.train)
    if compute.shards_teacher:
        shard(teacher, compares="end_to_end", compute=compute)
    history, _ = train_stage(
        settings,
        teacher,
        student,
        RandomRows(16 * steps, config.vocab_size, packed=False, length=length),
        conversion_report=unmeasured_conversion_report(student.config),
        vocabulary=config.vocab_size,
        compute=compute,
        folder=folder,
        fingerprint={},
        title="test",
        console=Console(quiet=True),
    )
    return history


@pytest.fixture
def group_of_one(tmp_path):
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def losses(history: list[StepMetrics]) -> list[float]:
    return [metrics.loss for metrics in history]


@pytest.mark.parametrize("stage", ["words", "mixers"])
def test_replicas_of_one_give_the_losses_of_none(tmp_path, group_of_one, stage):
    whole = train("whole", tmp_path / "whole", stage=stage)
    replicas = train("replicas", tmp_path / "replicas", stage=stage)
    assert losses(replicas) == pytest.approx(losses(whole), rel=2e-3)
    assert losses(whole)[-1] != losses(whole)[0]


@pytest.mark.parametrize("stage", ["words", "mixers"])
def test_compiled_layers_under_fsdp_give_the_losses_of_whole_ones(tmp_path, group_of_one, stage):
    whole = train("whole", tmp_path / "whole", stage=stage)
    sharded = train("fsdp", tmp_path / "fsdp", stage=stage)
    # Rounding to bfloat16 alone moves these losses by up to 0.5 % of their value in float32.
    assert losses(sharded) == pytest.approx(losses(whole), rel=1e-2)


@pytest.mark.parametrize(
    ("strategy", "micro_batch", "least"),
    [("replicas", 4, 0.97), ("zero2", 16, 0.7), ("fsdp", 16, 0.7)],  # of 4 sequences the host is slower than the GPU
)
def test_what_a_strategy_costs_where_there_is_nobody_to_exchange_with(
    tmp_path, group_of_one, strategy, micro_batch, least
):
    """Of a shape of four layers; `benchmarks/scaling.py` measures the shapes that figures are of."""
    speeds = {}
    for turn, each in enumerate(["whole", strategy, strategy, "whole"]):
        history = train(each, tmp_path / str(turn), shape=WIDE, length=2048, steps=8, micro_batch=micro_batch)
        speeds.setdefault(each, []).extend(metrics.tokens_per_second for metrics in history[3:])
    share = median(speeds[strategy]) / median(speeds["whole"])
    print(f"{strategy}: {share:.3f} of {median(speeds['whole']):,.0f} tokens/s")
    assert share >= least


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Folder with the metrics of two processes that share the GPU, by strategy."""
    folder = tmp_path_factory.mktemp("shared")
    paths = [str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, str(folder)],
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONPATH": ":".join(paths)},
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("strategy", SHARED)
def test_two_processes_on_one_gpu_give_the_losses_of_one(tmp_path, shared, strategy):
    found = [json.loads(line)["loss"] for line in (shared / strategy / "metrics.jsonl").read_text().splitlines()]
    assert found == pytest.approx(losses(train("whole", tmp_path)), rel=1e-2)
    metrics = json.loads((shared / f"{strategy}.json").read_text())
    assert [step["loss"] for step in metrics] == found


def work(folder: Path) -> None:
    # NCCL takes no two processes on one GPU.
    torch.cuda.set_device(0)
    torch.zeros(1, device="cuda")  # from here on torch leaves the choice of device alone
    dist.init_process_group("gloo")
    for strategy in SHARED:
        history = train(strategy, folder / strategy)
        if distributed.is_rank_zero():
            (folder / f"{strategy}.json").write_text(json.dumps([asdict(step) for step in history]))
    dist.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
