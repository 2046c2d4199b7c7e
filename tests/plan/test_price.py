"""What a stage needs, by formula: exact where counting is exact, near what was measured where it is not."""

import json
from dataclasses import replace

import pytest
import torch
from figures import QWEN3_0_6B
from ledger import ROOT
from transformers import Qwen3Config

from gendistill.compute import Compute, peak_flops
from gendistill.distill.checkpoint import save_checkpoint
from gendistill.distill.optimizer import MasterOptimizer
from gendistill.models.families import student_config
from gendistill.plan.price import CUDA_CONTEXT, GIB, STEP_COPIES, Planner
from gendistill.plan.refusal import refusal
from gendistill.plan.scaling import bytes_sent, link_of, step_time
from gendistill.recipe.data import Source
from gendistill.recipe.loading import load_recipe
from gendistill.run.probe import short_stage, timing
from small_models import FAMILIES, make_student, make_teacher

RECIPE = load_recipe(ROOT / "recipes/qwen3-0.6b.yaml")
STAGES = {name: stage.model_copy(update={"micro_batch": 4}) for name, stage in RECIPE.stages.items()}
KD = STAGES["logit_distillation"]
ON_GPU = Compute("cuda", torch.bfloat16, compiled=True, kernels=True)
ON_CPU = Compute("cpu", torch.float32, compiled=False, kernels=False)


def make_planner(**options):
    teacher = Qwen3Config(**QWEN3_0_6B)
    return Planner(teacher, student_config(teacher, RECIPE.student.keep_attention, **options), ON_GPU)


@pytest.fixture(scope="module")
def planner():
    return make_planner()


def test_parameters_are_counted_exactly(planner):
    counts = planner.parameters(KD)
    assert (counts.teacher, counts.student) == (596_049_920, 613_422_800)
    # 21 mixers, the MLPs of 28 layers, every norm; seven attention layers and the embedding stay as they are.
    assert counts.trained == 413_798_352
    assert counts.trained_gates == counts.student_gates == 21 * (16 + 2048)


def test_what_is_held_follows_from_the_counts(planner):
    parts, counts = planner.price(KD).parts, planner.parameters(KD)
    rounded = counts.trained - counts.trained_gates
    assert parts["teacher weights"] == 2 * 596_049_920
    assert parts["student weights"] == 2 * 613_422_800 + 2 * counts.student_gates
    assert parts["float32 masters"] == 4 * rounded
    assert parts["optimizer state"] == 8 * counts.trained
    assert parts["gradients"] == 4 * counts.trained + 2 * rounded
    smaller = planner.price(KD.model_copy(update={"optimizer": "adamw_8bit"}))
    assert smaller.parts["optimizer state"] == 2 * counts.trained
    assert planner.price(KD).total - smaller.total == 6 * counts.trained


def test_memory_measured_on_a_gpu():
    """Peaks of torch.cuda.max_memory_allocated in results/gpu/training_speed.json."""
    raw = json.loads((ROOT / "results/gpu/training_speed.json").read_text())
    planner = make_planner(log_decay_bound=raw["kd ours 1"]["log_decay_bound"])
    measured = {"kd ours 1": KD, "qk_alignment": STAGES["qk_alignment"], "block_alignment": STAGES["block_alignment"]}
    for name, stage in measured.items():
        planned = planner.price(stage.model_copy(update={"micro_batch": raw[name]["micro_batch"]})).counted / GIB
        assert planned == pytest.approx(raw[name]["peak_gib"], rel=0.12), name


def test_gradient_checkpointing_keeps_one_layer(planner):
    checkpointed = planner.price(KD.model_copy(update={"gradient_checkpointing": True}))
    hidden_states = 28 * 4 * 2048 * 1024 * 2
    layer = checkpointed.parts["activations"] - hidden_states
    assert 0 < layer < planner.price(KD).parts["activations"] / 20
    assert checkpointed.total < 0.6 * planner.price(KD).total


def test_alignment_needs_a_layer_and_no_logits(planner):
    price = planner.price(STAGES["block_alignment"])
    assert price.parts["loss"] == 0
    assert price.parts["activations"] < planner.price(KD).parts["activations"] / 10


def test_graphs_keep_their_memory_during_the_optimizers_step(planner):
    price = planner.price(KD)
    step = STEP_COPIES * planner.parameters(KD).trained
    assert price.graphs and price.needed == price.total + step + CUDA_CONTEXT


def test_graphs_where_launches_would_wait_for_the_host(planner):
    """0.6 billion parameters: not for micro-batches that keep a GPU busy for some hundred milliseconds."""
    assert planner.price(KD.model_copy(update={"micro_batch": 8})).graphs
    long = planner.price(KD.model_copy(update={"micro_batch": 16, "sequence_length": 4096}))
    assert not long.graphs and long.needed == long.total + CUDA_CONTEXT and long.counted == long.total
    assert not planner.price(KD, "fsdp").graphs
    assert not make_planner(mixer="gla").price(KD).graphs  # its kernels read the device


def test_steps_and_disk(planner):
    price, counts = planner.price(KD), planner.parameters(KD)
    assert price.steps == -(-500_000_000 // (64 * 2048)) and price.tokens == price.steps * 64 * 2048
    assert price.disk.data_set == 9 * price.tokens
    assert price.disk.checkpoints == 3 * 12 * counts.trained
    frozen = counts.student - counts.trained
    assert price.disk.student == 4 * counts.trained + 2 * frozen  # all gates train


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_student_takes_what_is_planned(family, tmp_path):
    """Counts, masters, a checkpoint and a saved student of a real model, in bfloat16 on a CPU."""
    stage = KD.model_copy(update={"micro_batch": 1, "sequence_length": 16})
    student = make_student(family)
    planner = Planner(FAMILIES[family], student.config, Compute("cpu", torch.bfloat16, False, False))
    price = planner.price(stage)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(dict(planner.student.named_parameters())[name].requires_grad)
    optimizer = MasterOptimizer(student, stage, torch.bfloat16)
    optimizer.step(1.0)

    def size(tensors) -> int:
        return sum(tensor.nbytes for tensor in tensors)

    masters = [m for name, m in optimizer.masters.items() if m is not optimizer.parameters[name]]
    assert price.parts["student weights"] == size(student.parameters())
    assert price.parts["float32 masters"] == size(masters)
    assert price.disk.student == size(optimizer.weights().values())
    save_checkpoint(tmp_path, 1, optimizer, {})
    written = sum(path.stat().st_size for path in (tmp_path / "step-00000001").iterdir())
    assert written >= price.disk.checkpoints / 3
    state = size(t for name, t in optimizer.state_dict().items() if not name.startswith("step."))
    assert state == price.disk.checkpoints / 3


def test_operations_of_the_teacher():
    """Against torch's own count of a forward pass, which takes every token to meet every other one."""
    from torch.utils.flop_counter import FlopCounterMode

    teacher, length = make_teacher("qwen3"), 64
    teacher.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        teacher(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    planner = Planner(teacher.config, student_config(teacher.config, [0]), ON_CPU)
    # A causal pass over twice as many: half of them meet on average.
    with_teacher, without = (
        planner.price(KD.model_copy(update={"sequence_length": 2 * length, "objective": objective})).flops_per_token
        for objective in ("forward_kl", "cross_entropy")
    )
    assert with_teacher - without == pytest.approx(counter.get_total_flops() / length, rel=1e-6)


def test_refusal_says_parts_and_ways_out(planner):
    memory = 40 * GIB
    assert refusal("kd", KD, planner, "a card", memory) is None
    large = KD.model_copy(update={"micro_batch": 16})
    reason = refusal("kd", large, planner, "a card", memory)
    for needle in (
        "stages.kd cannot fit",
        "a card has 40.00",
        "teacher weights 1.11",
        "micro_batch: 4 (needs",
        "gradient_checkpointing: true",
        "optimizer: adamw_8bit",
    ):
        assert needle in reason
    assert "micro_batch: 8" not in reason  # that would not fit either


def test_float32_has_no_masters():
    student = make_student("qwen3")
    price = Planner(FAMILIES["qwen3"], student.config, ON_CPU).price(KD)
    assert price.parts["float32 masters"] == 0
    assert price.needed == price.total


def test_a_probe_is_the_stage_in_short():
    short = short_stage(KD)
    assert (short.steps, short.sequences_per_step) == (20, 8 * KD.micro_batch)
    assert short.micro_batch == KD.micro_batch and short.terms == KD.terms
    probe = timing([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 5.0], 23.0, 32, None)
    assert (probe.step_seconds, probe.start_up_seconds) == (1.0, 15.0)
    assert probe.hours(KD) == pytest.approx(KD.steps * 2 / 3600)  # a step has 64 sequences, the probe's 32


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", None),
        ("Tesla T4", None),
        (None, None),
    ],
)
def test_peak_of_known_gpus(name, flops):
    assert peak_flops(name) == flops


def test_conversations_made_of_texts_take_disk(planner):
    """A third of the tokens of a stage whose mixture has distant answers."""
    text = Source(path="embedded:text", weight=1)
    far = Source(path="embedded:text", made="distant", distances=(512, 1024), weight=1)
    chats = Source(path="embedded:chat", messages="messages", weight=2)
    stages = {"logit_distillation": KD}
    without, with_it = (
        planner.whole_disk(RECIPE.model_copy(update={"data": {KD.data: [source, chats]}, "stages": stages}))
        for source in (text, far)
    )
    assert with_it - without == round(KD.whole_tokens * 6 / 3)


def on(processes: int, memory: int | None = None, strategy: str = "auto") -> Planner:
    teacher = Qwen3Config(**QWEN3_0_6B)
    student = student_config(teacher, RECIPE.student.keep_attention)
    return Planner(teacher, student, replace(ON_GPU, processes=processes, strategy=strategy), memory)


def test_replicas_where_they_fit_else_sharded_else_refused():
    assert on(8).strategy(KD) == on(8, 80 * GIB).strategy(KD) == "replicas"
    needs = {name: on(8, strategy=name).price(KD).needed for name in ("replicas", "zero2", "fsdp")}
    assert needs["fsdp"] < needs["zero2"] < needs["replicas"] < make_planner().price(KD).needed
    for before, then in (("replicas", "zero2"), ("zero2", "fsdp")):
        between = on(8, needs[before] - 1)
        assert between.strategy(KD) == then and refusal("kd", KD, between, "a card", between.memory) is None
    below = on(8, needs["fsdp"] - 1)
    said = refusal("kd", KD, below, "a card", below.memory)
    assert "cannot fit: it needs" in said and "GiB on each of 8 processes (fsdp), and a card has" in said


def test_several_hosts_are_replicas_of_each_other_where_a_host_has_the_memory():
    needs = [replaced(4).price(KD, strategy).needed for strategy in ("replicas", "hybrid", "zero2", "fsdp")]
    assert needs[0] > max(needs[1:3]) > needs[3]
    assert replaced(4, needs[0]).strategy(KD) == "replicas"
    assert replaced(4, needs[1]).strategy(KD) == "hybrid" and replaced(1, needs[2]).strategy(KD) == "zero2"
    assert replaced(4, needs[3]).strategy(KD) == "fsdp"
    assert replaced(4).price(KD, "hybrid").parts == on(2).price(KD, "fsdp").parts


def replaced(hosts: int, memory: int | None = None) -> Planner:
    """Of eight processes on so many hosts."""
    planner = on(8, memory)
    planner.compute = replace(planner.compute, hosts=hosts)
    return planner


def test_with_more_processes_each_holds_less():
    parts = {n: on(n, strategy="replicas").price(KD).parts for n in (2, 4, 8)}
    trained = on(2).parameters(KD).trained
    for n, part in parts.items():
        assert part["float32 masters"] == 4 * -(-trained // n)
        assert part["optimizer state"] == 8 * -(-trained // n)
        assert part["teacher weights"] == 2 * 596_049_920
    sharded = [on(n, strategy="fsdp").price(KD) for n in (2, 4, 8)]
    assert sorted(sharded, key=lambda price: -price.total) == sharded


def test_bytes_sent_in_a_step_and_the_time_they_take():
    counts, trained = on(2).parameters(KD), on(2).parameters(KD).trained
    assert bytes_sent("whole", counts, KD, 2, 1) == 0
    assert bytes_sent("replicas", counts, KD, 2, 2) == trained * 6 / 2  # half of the sums in float32, half in bfloat16
    assert bytes_sent("replicas", counts, KD, 2, 8) == trained * 6 * 7 / 8
    # Of 64 sequences each of two has eight micro-batches of four, in each of which all layers are gathered.
    gathered = 2 * (2 * counts.student_layers + counts.teacher_layers) + 4 * counts.trained_layers
    whole = 8 * (trained - counts.trained_layers)
    assert bytes_sent("fsdp", counts, KD, 2, 2) == (8 * gathered + whole) / 2
    once = 2 * counts.student_layers + 8 * 4 * counts.trained_layers
    assert bytes_sent("zero2", counts, KD, 2, 2) == (once + whole) / 2
    with pytest.raises(ValueError, match="unknown strategy 'ddp'; known: whole, replicas, hybrid, zero2, fsdp"):
        bytes_sent("ddp", counts, KD, 2, 2)
    assert (link_of("NVIDIA H200"), link_of("NVIDIA H100 PCIe"), link_of("a card")) == (450e9, 32e9, None)
    times = step_time(1.0, 0.75 * 450e9 / 10, 450e9, "replicas", 2)
    assert (times.seconds, times.exchange) == (pytest.approx(0.6), pytest.approx(0.1))
    assert replace(times, strategy="fsdp").seconds == replace(times, strategy="zero2").seconds == 0.5  # beside it
    assert step_time(1.0, 1e9, None, "replicas", 2).seconds == 0.5
