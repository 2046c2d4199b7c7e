"""The loop: one trajectory however it is cut, exactly the named roles change, and a stop leaves no trace."""

import gc
import itertools
import json
import math
import random
import sys
import weakref
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from gendistill.distill import divergences, objectives
from gendistill.distill.checkpoint import checkpoints
from gendistill.distill.divergences import VocabularyLoss
from gendistill.distill.objectives import Alignment, EndToEnd
from gendistill.distill.roles import set_trainable
from gendistill.distill.schedule import learning_rate_share
from gendistill.distill.tracking import flatten
from gendistill.errors import Diverged, UserError
from gendistill.models.mixers.layer import LinearAttention
from gendistill.models.modeling import LlamaMLP, describe
from gendistill.recipe.stage import Schedule
from small_models import make_student, make_teacher

MIXTURE = {"forward_kl": 1.0, "cross_entropy": 0.1, "hidden_l2": 0.3, "hidden_cosine": 0.2}
PASSES = {
    "mixer": dict(objective={"mixer_l2": 1.0, "mixer_cosine": 0.5}, train=["mixer"]),
    "block": dict(objective="block_l2", train=["mixer"]),
    "end_to_end": dict(objective=MIXTURE, train=["mixer", "mlp", "norm"]),
}
LONG = dict(steps=50, learning_rate=2e-4, sequences_per_step=4, micro_batch=4)
REFERENCES = {}  # the unbroken, uncut run of each pass, made once


@pytest.fixture
def short(shrink):
    """Models of two layers."""
    shrink(num_hidden_layers=2)


@contextmanager
def watching(do):
    """Inside the block do(number, sums, objective) follows each micro-batch; the sums are what it returns."""
    calls = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        for kind in (EndToEnd, Alignment):
            original = kind.backward
            patch.setattr(kind, "backward", lambda self, *a, of=original: do(next(calls), of(self, *a), self))
        yield


def assert_same_losses(outcome, reference):
    """Of all steps, in total and term by term, to 1e-5."""
    assert len(outcome.history) == len(reference.history) == 50
    for got, wanted in zip(outcome.history, reference.history, strict=True):
        assert got.loss == pytest.approx(wanted.loss, rel=1e-5), got.step
        assert got.terms == pytest.approx(wanted.terms, rel=1e-5), got.step


def assert_same_to_the_bit(outcome, reference):
    assert outcome.numbers == reference.numbers
    for name, value in reference.after.items():
        assert torch.equal(outcome.after[name], value), name


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(params=PASSES)
def long_stage(request, make_stage, run, short):
    """A stage of 50 steps of each pass: (what makes it, given changes; its unbroken, uncut run)."""
    settings = PASSES[request.param]
    if request.param not in REFERENCES:
        REFERENCES[request.param] = run(make_stage(**LONG, **settings), folder="reference")
    reference = REFERENCES[request.param]
    # It must go somewhere, or equal losses would say nothing.
    assert sum(reference.losses[-10:]) < 0.99 * sum(reference.losses[:10])

    def again(dataset=None, **changes):
        return run(make_stage(**(LONG | settings | changes)), folder="again", dataset=dataset)

    return again, reference


@pytest.mark.parametrize("change", [dict(micro_batch=1), dict(micro_batch=2), dict(micro_batch=3)], ids=str)
def test_the_cut_into_micro_batches_does_not_matter(long_stage, change):
    again, reference = long_stage
    assert_same_losses(again(**change), reference)


class Alone:
    """The documents of a packed data set, one a row, each followed by padding that counts for nothing."""

    def __init__(self, packed):
        ids, positions, mask = packed.ids, packed.positions, packed.mask
        length = ids.shape[1]
        self.rows = []
        for row in range(len(packed)):
            boundaries = [*(positions[row] == 0).nonzero().flatten().tolist(), length]
            for start, end in zip(boundaries, boundaries[1:], strict=False):
                padding = length - (end - start)
                self.rows.append(
                    {
                        "input_ids": F.pad(ids[row, start:end], (0, padding), value=5),
                        "position_ids": torch.cat([torch.arange(end - start), torch.arange(padding)]),
                        "loss_mask": F.pad(mask[row, start:end], (0, padding)),
                    }
                )

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return {name: torch.stack([row[name] for row in self.rows[rows]]).numpy() for name in self.rows[0]}


class SameRows:
    """The same rows at every step."""

    def __init__(self, packed):
        self.packed = packed

    def __getitem__(self, rows):
        return self.packed[0 : rows.stop - rows.start]


def test_packing_does_not_matter(long_stage, rows):
    """Two documents a row, and the same one a row: a step has twice the rows and the same loss tokens."""
    again, reference = long_stage
    alone = Alone(rows(50 * 4))
    assert len(alone) == 2 * 50 * 4
    outcome = again(dataset=alone, sequences_per_step=8, micro_batch=8, tokens=50 * 8 * 12)
    assert [m.loss_tokens for m in outcome.history] == [m.loss_tokens for m in reference.history]
    assert_same_losses(outcome, reference)


@contextmanager
def stopped_in_micro_batch(number):
    def stop(now, sums, _):
        if now == number:
            raise KeyboardInterrupt
        return sums

    with watching(stop), pytest.raises(KeyboardInterrupt):
        yield


RESUMED = dict(steps=7, checkpoint_every=3, sequences_per_step=4, micro_batch=1)  # 28 micro-batches, 2 checkpoints


@pytest.mark.parametrize("place", PASSES)
@pytest.mark.parametrize("seed", range(2))
def test_a_stopped_run_resumes_to_the_bit(make_stage, run, short, place, seed):
    """At a random place, mostly in the middle of an accumulation; and once more while it resumes."""
    stage = make_stage(**RESUMED, **PASSES[place])
    unbroken = run(stage, folder="unbroken")
    chance = random.Random(f"{place} {seed}")
    for last in (28, 4):  # four are left even after the latest stop
        with stopped_in_micro_batch(chance.randint(1, last)):
            run(stage, folder="stopped")
    resumed = run(stage, folder="stopped")
    assert_same_to_the_bit(resumed, unbroken)
    assert lines_of(resumed.folder) == [vars(metrics) for metrics in resumed.history]


def test_steps_to_be_done_again_are_taken_out_of_the_metrics(make_stage, run, short, tmp_path):
    stage = make_stage(**RESUMED)
    with stopped_in_micro_batch(24):  # in step 6
        run(stage, folder="stopped")
    folder = tmp_path / "stopped"
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step-00000003"]
    assert [line["step"] for line in lines_of(folder)] == [1, 2, 3, 4]
    run(stage, folder="stopped")
    assert [line["step"] for line in lines_of(folder)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("case", ["bfloat16", "dropout", "cosine schedule", "another cut", "adamw_8bit"])
def test_all_that_a_step_depends_on_is_resumed(make_stage, run, short, shrink, case):
    """Masters behind a rounded model, random numbers, the schedule, state in 8 bits; the cut may change on the way."""
    options, settings, forced = {}, {}, nullcontext()
    if case == "bfloat16":
        options = dict(dtype=torch.bfloat16)
    elif case == "dropout":
        options = dict(change=lambda student: setattr(student.config, "attention_dropout", 0.2))
    elif case == "cosine schedule":
        settings = dict(schedule=dict(shape="cosine", warmup=0.3))
    elif case == "adamw_8bit":
        pytest.importorskip("torchao")
        forced = torch.compiler.set_stance("force_eager")  # torchao would compile its step
        settings = dict(optimizer="adamw_8bit")
        shrink(num_hidden_layers=2, hidden_size=64)  # torchao takes tensors of 4096 numbers and more
    stage = make_stage(**RESUMED, **settings)
    with forced:
        unbroken = run(stage, folder="unbroken", **options)
        with stopped_in_micro_batch(18):
            run(stage, folder="stopped", **options)
        again = stage if case != "another cut" else stage.model_copy(update={"micro_batch": 4})
        resumed = run(again, folder="stopped", **options)
    if case == "another cut":
        assert resumed.losses == pytest.approx(unbroken.losses, rel=1e-5)
        return
    assert_same_to_the_bit(resumed, unbroken)
    if case == "dropout":
        assert run(stage, folder="without").losses != unbroken.losses
    if case == "adamw_8bit":
        quantised = [name for name in unbroken.optimizer.state_dict() if name.endswith(".codes")]
        assert any("mlp" in name and name.startswith("exp_avg_sq") for name in quantised)
        assert all(unbroken.optimizer.state_dict()[name].dtype == torch.uint8 for name in quantised)


def test_eight_bits_of_state_learn_as_well(make_stage, run, shrink, rows):
    pytest.importorskip("torchao")
    shrink(num_hidden_layers=2, hidden_size=64)
    settings = dict(steps=20, learning_rate=3e-3, sequences_per_step=2, micro_batch=2)
    data = SameRows(rows(2))
    with torch.compiler.set_stance("force_eager"):
        small, full = (
            run(make_stage(optimizer=kind, **settings), folder=kind, dataset=data) for kind in ("adamw_8bit", "adamw")
        )
    assert small.losses != full.losses
    fallen = [outcome.losses[0] - outcome.losses[-1] for outcome in (full, small)]
    assert fallen[0] > 0.1 * full.losses[0] and fallen[1] == pytest.approx(fallen[0], rel=0.05)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # what replaces it is not in 5.17
@pytest.mark.parametrize("place", ["block", "end_to_end"])
def test_recomputing_activations_does_not_matter(make_stage, run, short, place):
    plain = run(make_stage(**PASSES[place]), folder="plain")
    again = run(make_stage(gradient_checkpointing=True, **PASSES[place]), folder="again")
    assert_same_to_the_bit(again, plain)


# Written out apart from `roles`, which is what is tested.
TENSORS = {
    "mixer_qk": "*.linear_attn.[qk]_proj.*",
    "mixer_value": "*.linear_attn.[vo]_proj.*",
    "mixer_conv": "*.linear_attn.[qkv]_conv1d.*",
    "mixer_gate": "*.linear_attn.*",  # whatever else a mixer has
    "attention": "*.self_attn.*",
    "mlp": "*.mlp.*",
    "norm": "*norm.weight",
    "embedding": "model.embed_tokens.weight",
    "head": "lm_head.weight",
}
MIXER_ROLES = [role for role in TENSORS if role.startswith("mixer")]


def named(role, name):
    part = next(part for part, pattern in TENSORS.items() if fnmatch(name, pattern))
    return part == role or (role == "mixer" and part in MIXER_ROLES)


@pytest.mark.parametrize(
    ("family", "objective", "roles"),
    [
        *(("qwen3", "mixer_l2", [role]) for role in MIXER_ROLES),
        ("qwen3", "mixer_cosine", ["mixer_qk", "mixer_conv", "mixer_gate"]),
        ("llama", "block_l2", ["mixer"]),
        ("qwen3", "block_cosine", ["mixer_gate", "mixer_value"]),
        ("qwen3", "forward_kl", ["mixer", "mlp", "norm"]),  # attention frozen
        ("qwen3", "reverse_kl", ["mixer", "attention", "norm"]),  # MLPs frozen
        ("qwen2", "jensen_shannon", ["mixer_qk"]),
        *(("qwen3", "forward_kl", [role]) for role in ("attention", "mlp", "norm", "embedding")),
        *(("llama", MIXTURE, [role]) for role in ("embedding", "head")),
        ("llama", "cross_entropy", ["mixer", "attention", "mlp", "norm", "embedding", "head"]),
        ("qwen3", "hidden_l2", ["mixer", "mlp"]),
    ],
    ids=str,
)
def test_exactly_the_named_roles_change(make_stage, run, short, family, objective, roles):
    outcome = run(
        make_stage(objective=objective, train=roles, steps=20, sequences_per_step=2, micro_batch=2), family=family
    )
    assert len(outcome.history) == 20
    changed = {name for name, value in outcome.after.items() if not torch.equal(value, outcome.before[name])}
    assert changed == {name for name in outcome.before if any(named(role, name) for role in roles)}
    teacher = make_teacher(family).state_dict()
    assert all(torch.equal(value, teacher[name]) for name, value in outcome.teacher.state_dict().items())


def test_the_ledger_counts_every_parameter():
    student = make_student("qwen3")
    ledger = set_trainable(student, ["mixer", "norm"])
    for role, (count, trains) in ledger.items():
        members = [p for name, p in student.named_parameters() if named(role, name)]
        assert count == sum(p.numel() for p in members) > 0
        assert {p.requires_grad for p in members} == {trains} == {role in [*MIXER_ROLES, "norm"]}
    assert sum(count for count, _ in ledger.values()) == sum(p.numel() for p in student.parameters())


@pytest.mark.parametrize(
    ("family", "keep", "role"), [("qwen3", (1,), "head"), ("qwen3", (), "attention")], ids=["tied head", "pure student"]
)
def test_a_role_that_the_student_lacks_is_an_error(make_stage, run, family, keep, role):
    with pytest.raises(UserError, match=f"train: {role}: this student has no such parameters; it has .*mixer_qk.*norm"):
        run(make_stage(train=["mixer", role]), family=family, keep=keep)


def test_small_updates_reach_a_norm_weight_in_bf16(make_stage, run, short):
    """bf16 cannot hold 1 - 1e-5, nor even 1 - 1e-3; the float32 master can."""
    assert torch.tensor(1.0, dtype=torch.bfloat16) - 1e-3 == 1

    def ones(student):
        for name, parameter in student.named_parameters():
            if describe(name).role == "norm":
                torch.nn.init.ones_(parameter)

    stage = make_stage(train=["norm"], learning_rate=1e-5, steps=100, sequences_per_step=2, micro_batch=2)
    outcome = run(stage, dtype=torch.bfloat16, change=ones)
    moved = (outcome.after["model.norm.weight"] - 1).abs()
    assert outcome.after["model.norm.weight"].dtype == torch.float32
    assert 1e-4 < moved.median() < moved.max() < 100 * 1.1e-5 and (moved > 0).all()


def test_metrics_say_what_a_step_was(make_stage, run, short, rows):
    """Of the first step, against direct computations on the student as it was and as it is after."""
    rates = {"mixer": 1e-3, "mlp": 2e-4, "norm": 5e-4}
    schedule = dict(warmup=0.0, decay=0.0)
    stage = make_stage(objective=MIXTURE, steps=1, micro_batch=3, learning_rate=rates, schedule=schedule)
    data = rows(8)
    outcome = run(stage, dataset=data)
    (metrics,) = outcome.history
    assert lines_of(outcome.folder) == [vars(metrics)]
    assert metrics.terms.keys() == MIXTURE.keys()
    assert metrics.loss == pytest.approx(sum(MIXTURE[name] * value for name, value in metrics.terms.items()))
    assert metrics.tokens == data.ids.numel() and metrics.loss_tokens == data.mask.sum()
    assert metrics.learning_rate == 1e-3
    assert metrics.tokens_per_second == pytest.approx(metrics.tokens / metrics.seconds, rel=0.01)

    student = make_student("qwen3")
    logits = student(input_ids=data.ids, position_ids=data.positions, use_cache=False).logits[:, :-1]
    targets = data.ids[:, 1:].masked_fill(~data.mask[:, 1:], -100)
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
    assert metrics.terms["cross_entropy"] == pytest.approx(plain, rel=1e-5)

    assert set(metrics.update_ratio) == {*MIXER_ROLES, "mlp", "norm"}
    for role, ratio in metrics.update_ratio.items():
        names = [name for name in outcome.before if named(role, name)]
        before, after = (torch.cat([x[name].flatten() for name in names]) for x in (outcome.before, outcome.after))
        assert ratio == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-3)


def test_the_learning_rate_follows_the_schedule(make_stage, run, short):
    schedule = dict(warmup=0.4, decay=0.4, final=0.1)
    outcome = run(make_stage(steps=5, schedule=schedule, sequences_per_step=1, micro_batch=1))
    wanted = [1e-3 * share for share in (0.5, 1.0, 1.0, 0.55, 0.1)]
    assert [m.learning_rate for m in outcome.history] == pytest.approx(wanted)


def test_schedules():
    wsd = [learning_rate_share(Schedule(), step, 100) for step in range(100)]
    assert wsd[0] == pytest.approx(0.1) and wsd[9] == 1.0 and wsd[50] == 1.0 and wsd[89] == 1.0
    assert wsd[90] < 1.0 and wsd[99] == pytest.approx(0.02)
    cosine = [learning_rate_share(Schedule(shape="cosine", warmup=0.1, final=0.01), step, 100) for step in range(100)]
    assert cosine[9] == 1.0 and cosine[99] == pytest.approx(0.01)
    assert cosine[54] == pytest.approx(0.505, abs=1e-3)
    assert all(a >= b for a, b in zip(cosine[9:], cosine[10:], strict=False))
    assert math.isclose(learning_rate_share(Schedule(warmup=0.0, decay=0.0), 0, 1), 1.0)


OUT_OF_MEMORY = {
    "the teacher's forward pass": ("forward_kl", Qwen3MLP, "forward"),
    "the student's forward pass": ("forward_kl", LlamaMLP, "forward"),
    "the loss": ("forward_kl", divergences, "vocabulary_losses"),
    "the loss (hidden states)": ("hidden_l2", objectives, "distance"),
    "the student's backward pass": ("forward_kl", VocabularyLoss, "backward"),
    "the optimizer's step": ("forward_kl", torch.optim.AdamW, "step"),
    "the teacher's forward pass (alignment)": ("mixer_l2", Qwen3MLP, "forward"),
    "the student's layer 0": ("mixer_l2", LinearAttention, "forward"),
}


@pytest.mark.parametrize("part", OUT_OF_MEMORY)
def test_out_of_memory_says_where_and_what_to_change(make_stage, run, short, monkeypatch, part):
    objective, owner, name = OUT_OF_MEMORY[part]

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd ten lines more.")

    monkeypatch.setattr(owner, name, staticmethod(fail))
    with pytest.raises(UserError) as caught:
        run(make_stage(objective=objective, train=["mixer"]))
    message = str(caught.value)
    assert message.startswith(
        f"out of memory in {part.split(' (')[0]} (CUDA out of memory. Tried to allocate 2.00 GiB.)"
    )
    assert "ten lines" not in message
    for advice in ("micro_batch", "gradient_checkpointing: true", "optimizer: adamw_8bit", "gendistill plan"):
        assert advice in message


def nan_gradient(objective):
    next(p for p in objective.student.parameters() if p.requires_grad).grad.fill_(math.nan)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda sums, _: sums * math.nan, r"the loss is nan \(forward_kl nan\).*Lower the learning rate"),
        (lambda sums, _: sums * math.inf, r"the loss is inf .*Lower the learning rate"),
        (lambda sums, objective: nan_gradient(objective) or sums, r"the gradient norm nan\. Lower the learning rate"),
        (lambda sums, _: sums * 1e4, r"expected_loss of this stage is 0 to 100\. Lower .* change expected_loss"),
        (lambda sums, _: sums * -1e4, r"the loss is -[\d.]+ .*expected_loss of this stage is 0 to 100"),
    ],
    ids=["loss is nan", "loss is infinite", "gradient is nan", "loss too high", "loss too low"],
)
def test_a_run_gone_wrong_stops_and_keeps_the_last_good_checkpoint(make_stage, run, short, spoil, message):
    """Step 5 is spoilt; checkpoints are of steps 2 and 4. With the mistake gone the run resumes from there."""
    stage = make_stage(**RESUMED | dict(checkpoint_every=2, micro_batch=4), expected_loss=[0, 100])
    unbroken = run(stage, folder="unbroken")
    with (
        watching(lambda number, sums, objective: spoil(sums, objective) if number == 5 else sums),
        pytest.raises(Diverged, match=f"(?s)test, step 5: .*{message}.*The last good checkpoint is kept in ") as caught,
    ):
        run(stage, folder="stopped")
    folder = unbroken.folder.parent / "stopped"
    assert str(folder / "checkpoints") in str(caught.value)
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step-00000002", "step-00000004"]
    assert len(lines_of(folder)) == 4
    assert_same_to_the_bit(run(stage, folder="stopped"), unbroken)


def test_a_diverging_run_stops(make_stage, run, short):
    with pytest.raises(Diverged, match=r"the loss is (nan|inf).*Lower the learning rate.*No checkpoint was due"):
        run(make_stage(learning_rate=1e30))


def test_a_step_without_loss_tokens_is_an_error(make_stage, run, short, rows):
    data = rows(32)
    data.mask[16:24] = False
    with pytest.raises(UserError, match="step 3: none of its tokens counts for the loss; check the data and loss_on"):
        run(make_stage(), dataset=data)


@pytest.mark.parametrize(
    ("change", "name"), [(dict(learning_rate=2e-3), "learning_rate"), (dict(train=["mixer"]), "train")]
)
def test_resuming_with_a_changed_recipe_is_refused(make_stage, run, short, change, name):
    stage = make_stage(checkpoint_every=2)
    run(stage)
    with pytest.raises(
        UserError, match=f"step-00000004: written with other settings.*different: {name}\\. Undo the ch"
    ):
        run(make_stage(checkpoint_every=2, **change))


@pytest.mark.parametrize("settings", [{}, {"objective": "block_l2", "train": ["mixer"]}], ids=["logits", "blocks"])
def test_a_stage_leaves_nothing_behind(make_stage, run, settings):
    """Its memory is there for the next one at once: CUDA has none to spare until Python collects cycles."""
    kept = []
    gc.disable()
    try:
        run(make_stage(**settings), change=lambda student: kept.append(weakref.ref(student)))
        assert [student() for student in kept] == [None]
    finally:
        gc.enable()


def test_curves_are_written_to_tensorboard(make_stage, run, short):
    pytest.importorskip("torch.utils.tensorboard", exc_type=ImportError)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage = make_stage(**RESUMED)
    with stopped_in_micro_batch(24):  # in step 6: step 4 is done, and will be done again
        run(stage)
    outcome = run(stage)
    curves = EventAccumulator(str(outcome.folder / "curves")).Reload()
    numbers = [{name: x for name, x in flatten(m).items() if x is not None} for m in outcome.history]
    assert {"loss", "terms/forward_kl", "update_ratio/mixer_qk", "gradient_norm", "tokens_per_second"} <= set(
        numbers[0]
    )
    assert set(curves.Tags()["scalars"]) == set(numbers[0])
    for name in numbers[0]:
        events = curves.Scalars(name)
        assert [event.step for event in events] == list(range(1, 8)), name
        assert [event.value for event in events] == pytest.approx([step[name] for step in numbers], rel=1e-5), name


def without_tensorboard(monkeypatch, trackio):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "trackio", trackio)


def test_curves_go_to_trackio_where_tensorboard_is_not(make_stage, run, short, monkeypatch):
    calls = []
    fake = SimpleNamespace(
        init=lambda **options: calls.append(options["project"]),
        log=lambda numbers, step: calls.append((step, numbers["loss"])),
        finish=lambda: calls.append("finished"),
    )
    without_tensorboard(monkeypatch, fake)
    outcome = run(make_stage())
    assert calls == ["gendistill", *((m.step, m.loss) for m in outcome.history), "finished"]


def test_nothing_breaks_without_either(make_stage, run, short, monkeypatch):
    without_tensorboard(monkeypatch, None)
    outcome = run(make_stage())
    assert len(outcome.history) == 4 and not (outcome.folder / "curves").exists()


@pytest.mark.parametrize(
    "damage",
    {
        "no JSON": lambda lines: [b"{", *lines[1:]],
        "another number": lambda lines: [lines[0].replace(b'"step": 1', b'"step": 2'), *lines[1:]],
        "lines are missing": lambda lines: lines[:3],
    }.items(),
    ids=lambda damage: damage[0],
)
def test_metrics_come_back_with_the_checkpoint(make_stage, run, shrink, damage):
    """Lines of steps that a checkpoint has behind it: it has them as well."""
    shrink(num_hidden_layers=2)
    stage = make_stage(checkpoint_every=2, micro_batch=2, sequences_per_step=2)
    outcome = run(stage)
    log = outcome.folder / "metrics.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b"".join(damage[1](whole.splitlines(keepends=True))))
    assert log.read_bytes() != whole
    assert run(stage).history == outcome.history
    assert log.read_bytes() == whole
