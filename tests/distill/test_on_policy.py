"""The on-policy stage: the right loss on what the student wrote, whatever the cut, and after whatever stop."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gendistill.distill import replies
from gendistill.distill.objectives import EndToEnd
from gendistill.distill.on_policy import OnPolicyLoader, Writing
from gendistill.distill.replies import (
    Prompt,
    ReplyLog,
    ReplyTokens,
    ReplyWriter,
    count_replies,
    describe_counts,
    lay_out,
    prompts_of,
)
from gendistill.distill.reply_kl import ReplyKLCheck, budget_for, check_start, measure_reply_kl
from gendistill.distill.roles import set_trainable
from gendistill.distill.tracking import complaint
from gendistill.errors import UserError
from gendistill.inference.decoding import DecodingBatch
from small_models import make_student, make_teacher

LENGTH = 36
ENDS = tuple(range(2, 12))  # a tenth of all words, so that some replies end and some do not
TOKENS = ReplyTokens(ENDS, pad=0, decode=lambda ids: " ".join(map(str, ids)))
SETTINGS = dict(
    objective="reverse_kl",
    loss_on="completion",
    data={"on_policy": "chats", "share": 0.5, "new_tokens": [3, 9]},
    sequence_length=LENGTH,
    learning_rate=3e-3,
)


@pytest.fixture
def on_policy(make_stage, run, chats, shrink):
    """Runs an on-policy stage of four steps, two layers each side."""
    shrink(num_hidden_layers=2)

    def call(folder="run", writing=None, **changes):
        stage = make_stage(**(SETTINGS | changes))
        dataset = chats(stage.steps * stage.sequences_per_step)
        return run(stage, folder=folder, dataset=dataset, writing=writing or Writing(TOKENS))

    return call


@pytest.fixture
def loader(make_stage, chats, shrink, tmp_path):
    """A loader of an on-policy stage, and the float64 student that writes for it."""
    shrink(num_hidden_layers=2)
    stage = make_stage(**SETTINGS)
    student = make_student("qwen3").double()
    set_trainable(student, stage.train)
    writer = ReplyWriter(student, TOKENS, torch.float64)
    log = ReplyLog(tmp_path / "replies.jsonl", {})
    return OnPolicyLoader(chats(32), stage, writer, log), student


def logged(folder):
    """By step, (row, place, ids) of each reply."""
    lines = (folder / "replies.jsonl").read_text().splitlines()
    return {record["step"]: record["replies"] for record in map(json.loads, lines)}


def plain_gradient(teacher, student, dataset, written, row_numbers, is_written):
    """Sum of KL(student || teacher) over reply tokens and its divisor, each document alone, by autograd."""
    total, count = 0, 0
    for number in row_numbers:
        own = [ids for row, _, ids in written if row == number]
        columns = dataset[number : number + 1]
        for prompt in next(prompts_of(columns, number)):
            if is_written(number):
                reply = own[prompt.place]
            else:
                document = np.flatnonzero(columns["position_ids"][0] == 0)[prompt.place] + len(prompt.ids)
                reply = columns["input_ids"][0][document : document + prompt.reference].tolist()
            ids = torch.tensor([prompt.ids + reply])
            at = slice(len(prompt.ids) - 1, ids.shape[1] - 1)
            with torch.no_grad():
                log_p = F.log_softmax(teacher(ids).logits[0, at], -1)
            log_q = F.log_softmax(student(ids).logits[0, at], -1)
            total = total + (log_q.exp() * (log_q - log_p)).sum()
            count += len(reply)
    return total / count, count


def test_gradients_are_those_of_a_plain_computation_on_the_replies(loader, conversion_report):
    loader, student = loader
    teacher = make_teacher("qwen3").double().requires_grad_(False)
    step = loader.step(1)
    objective = EndToEnd(teacher, student, loader.stage, conversion_report(student), vocabulary=97)
    scale = torch.tensor(1.0, dtype=torch.float64) / step.loss_tokens
    sums = sum(objective.backward(batch, scale) for batch in step.batches)
    found = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    written = logged(loader.log.path.parent)[1]
    expected, count = plain_gradient(
        teacher, student, loader.dataset, written, range(8, 16), loader.settings.is_written
    )
    expected.backward()
    assert step.loss_tokens == count
    assert sums.item() / count == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in found.items():
        wanted = dict(student.named_parameters())[name].grad
        # Layers round some numbers to float32 on the way.
        assert (gradient - wanted).norm() <= 1e-4 * wanted.norm() + 1e-9, name


def test_a_share_of_the_sequences_is_the_students(loader):
    loader, _ = loader
    step = loader.step(0)
    data = loader.dataset[0:8]
    ids = torch.cat([batch.input_ids for batch in step.batches]).numpy()
    same = (ids == data["input_ids"]).all(1)
    assert same.tolist() == [not loader.settings.is_written(row) for row in range(8)]
    assert same.sum() == 4
    # At most three tokens a reply at the first step; nine at the last.
    assert max(len(reply) for _, _, reply in logged(loader.log.path.parent)[0]) == 3
    assert [loader.settings.most_new_tokens(i, 4) for i in range(4)] == [3, 5, 7, 9]
    assert step.replies["written"] == len(logged(loader.log.path.parent)[0])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 1.0])
def test_the_share_is_spread_evenly(make_stage, share):
    settings = make_stage(**(SETTINGS | {"data": {"on_policy": "chats", "share": share, "new_tokens": [3, 9]}}))
    written = [settings.on_policy.is_written(row) for row in range(400)]
    sums = np.convolve(written, np.ones(40), "valid")
    assert abs(sums - 40 * share).max() <= 1


def test_the_cut_into_micro_batches_does_not_matter(on_policy):
    reference = on_policy("8")
    assert reference.losses[0] > 0
    for size in (1, 2):
        outcome = on_policy(str(size), micro_batch=size)
        assert logged(outcome.folder) == logged(reference.folder)
        assert outcome.losses == pytest.approx(reference.losses, rel=1e-5)
        assert [m.loss_tokens for m in outcome.history] == [m.loss_tokens for m in reference.history]


def test_replies_are_of_the_weights_of_their_step(on_policy):
    """With weights that hardly move the student says other things than with those that do, from the second step on."""
    still, moving = (logged(on_policy(name, learning_rate=rate).folder) for name, rate in (("a", 1e-9), ("b", 3e-2)))
    assert still[0] == moving[0]
    assert still[1] != moving[1]


@contextmanager
def stopped(kind, method, call):
    """Raises KeyboardInterrupt in the call of this number."""
    original, calls = getattr(kind, method), iter(range(1, 10**6))

    def step(*arguments, **named):
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, method, step)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize(
    ("kind", "method", "call"),
    [(DecodingBatch, "decode_steps", 14), (EndToEnd, "backward", 3), (replies.ReplyLog, "add", 3)],
    ids=["while it writes", "in the middle of a step", "before what it wrote is kept"],
)
@pytest.mark.parametrize("saves_every", [1, 10], ids=["checkpoint", "no checkpoint yet"])
def test_a_killed_stage_resumes_to_the_same_numbers(on_policy, kind, method, call, saves_every):
    unbroken = on_policy("unbroken", checkpoint_every=saves_every)
    with stopped(kind, method, call):
        on_policy("killed", checkpoint_every=saves_every)
    before = logged(unbroken.folder.parent / "killed")
    assert 0 < len(before) < 4  # it was killed on the way
    resumed = on_policy("killed", checkpoint_every=saves_every)
    assert resumed.numbers == unbroken.numbers
    assert logged(resumed.folder) == logged(unbroken.folder)
    for name, value in unbroken.after.items():
        assert torch.equal(resumed.after[name], value), name


def test_replies_that_were_written_are_not_written_again(on_policy, monkeypatch):
    whole = on_policy("again")
    calls = []
    write = ReplyWriter.write
    monkeypatch.setattr(ReplyWriter, "write", lambda *a: calls.append(a) or write(*a))
    assert not (whole.folder / "checkpoints").exists()  # all steps are to be done again
    again = on_policy("again")
    assert again.numbers == whole.numbers
    assert calls == []
    # A line that was cut off is written again, and so is all of another trajectory.
    log = whole.folder / "replies.jsonl"
    written = logged(whole.folder)
    log.write_text(log.read_text()[:-20])
    assert on_policy("again").numbers == whole.numbers
    assert logged(whole.folder) == written
    assert len(calls) == 1
    on_policy("again", learning_rate=1e-4)
    assert len(calls) == 5


def test_a_line_with_a_changed_byte_is_none(tmp_path):
    log = ReplyLog(tmp_path / "replies.jsonl", {})
    for step in (0, 1):
        log.add(step, {(2, 0): [31, 32]})
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[::-1].replace(b"3", b"4", 1)[::-1])  # in the second line, which is still JSON
    log.open(0)
    assert log.found == {0: {(2, 0): [31, 32]}}
    assert log.path.read_bytes() == whole.splitlines(keepends=True)[0]


def test_a_line_for_each_step_says_how_replies_ended(on_policy):
    outcome = on_policy("lines")
    lines = [json.loads(line)["replies"] for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    for counts, (step, written) in zip(lines, logged(outcome.folder).items(), strict=True):
        limit = outcome_limit(step)
        ids = [reply for _, _, reply in written]
        assert counts["written"] == len(ids)
        assert counts["tokens"] == sum(map(len, ids))
        assert counts["at_limit"] == sum(len(reply) == limit and reply[-1] not in ENDS for reply in ids)
    assert any(counts["at_limit"] for counts in lines) and any(counts["ended_early"] for counts in lines)


def outcome_limit(step):
    return [3, 5, 7, 9][step]


def test_a_loss_that_rises_with_longer_replies_is_no_complaint(make_stage):
    losses = [{"loss": loss} for loss in (1.0, 1.1, 1.3, 1.4)]
    assert "above where it began" in complaint(make_stage(), losses)
    assert complaint(make_stage(**SETTINGS), losses) is None


def test_what_becomes_of_replies_is_counted():
    asked = [Prompt(0, place, [5, 6], 10) for place in range(5)]
    text = {30: "on and on and ", 31: "done"}
    tokens = ReplyTokens((1,), 0, lambda ids: "".join(text[i] for i in ids))
    said = [[30, 1], [30] * 5 + [1], [30] * 20, [31] * 20, [1]]
    counts = count_replies(asked, said, 20, tokens)
    assert counts == dict(written=5, ended_early=2, at_limit=2, looping=1, tokens=2 + 6 + 20 + 20 + 1)
    assert "5 replies of 10 tokens: 40% ended early, 40% at the limit, 20% looping" in describe_counts(counts)
    assert describe_counts({}) == ""


def test_a_sequence_holds_what_fits():
    row = {"input_ids": np.zeros(12, np.int32)}
    asked = [Prompt(0, 0, [5, 6], 3), Prompt(0, 1, [7, 8, 9], 3), Prompt(0, 2, [5, 6, 7], 3)]
    laid = lay_out(row, asked, [[20, 21], [22, 23, 24], [25]], pad=0)
    assert laid["input_ids"].tolist() == [5, 6, 20, 21, 7, 8, 9, 22, 23, 24, 0, 0]  # no room for the third's reply
    assert laid["loss_mask"].tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0]
    assert laid["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1]
    cut = lay_out(row, asked[:2], [[20] * 5, [22, 23, 24]], pad=0)
    assert cut["input_ids"].tolist() == [5, 6, 20, 20, 20, 20, 20, 7, 8, 9, 22, 23]
    assert cut["loss_mask"].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1]


def test_the_last_reply_of_a_conversation_is_the_students():
    """Earlier turns are context."""
    ids = np.arange(10, 20)[None]
    mask = np.array([[0, 0, 1, 1, 0, 0, 1, 1, 1, 0]])
    positions = np.array([[*range(9), 0]])
    (found,) = prompts_of({"input_ids": ids, "position_ids": positions, "loss_mask": mask}, 4)
    assert found == [Prompt(4, 0, [10, 11, 12, 13, 14, 15], 3)]


def held_out(chats):
    return [prompt for row in prompts_of(chats(6, seed=9)[0:6], 0) for prompt in row]


def measured(student, teacher, prompts):
    return measure_reply_kl(teacher, student, ReplyWriter(student, TOKENS, torch.float32), prompts, vocabulary=97)


def test_reply_kl_is_that_of_a_plain_computation(chats, shrink, monkeypatch):
    shrink(num_hidden_layers=2)
    student, teacher, prompts = make_student("qwen3"), make_teacher("qwen3"), held_out(chats)
    said = []
    write = ReplyWriter.write
    monkeypatch.setattr(ReplyWriter, "write", lambda *a: said.extend(write(*a)) or said)
    found = measured(student, teacher, prompts)
    assert budget_for(prompts) == found.new_tokens == 6
    values = []
    for prompt, reply in zip(prompts, said, strict=True):
        ids = torch.tensor([prompt.ids + reply])
        at = slice(len(prompt.ids) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            log_p, log_q = (F.log_softmax(model(ids).logits[0, at].double(), -1) for model in (teacher, student))
        values.append((log_q.exp() * (log_q - log_p)).sum(-1).tolist())
    assert found.mean == pytest.approx(sum(map(sum, values)) / sum(map(len, values)), rel=1e-4)
    assert found.sums == pytest.approx(list(map(sum, values)), rel=1e-3)
    first, third = ([own[i] for own in values if len(own) > i] for i in (0, 2))
    assert found.by_position[0] == pytest.approx(np.mean(first), rel=1e-4)
    assert found.by_position[2] == pytest.approx(np.mean(third), rel=1e-4)
    assert found.tokens_by_position[2] == len(third) < len(first)


def test_a_student_that_is_its_teacher_has_none(chats, shrink):
    shrink(num_hidden_layers=2)
    found = measured(make_student("qwen3", keep=(0, 1)), make_teacher("qwen3"), held_out(chats))
    assert abs(found.mean) < 1e-6


def test_a_stage_starts_below_the_bound_only(chats, shrink):
    shrink(num_hidden_layers=2)
    found = measured(make_student("qwen3"), make_teacher("qwen3"), held_out(chats))
    check_start("last", found, bound=found.mean * 1.01)
    with pytest.raises(UserError, match=rf"stages.last: the reply-KL .* is {found.mean:.3g} nats .*bound is 0.001"):
        check_start("last", found, bound=0.001)
    with pytest.raises(UserError, match="is nan nats"):
        check_start("last", replace(found, mean=float("nan")), bound=1)


def test_a_student_that_never_ends_is_refused(chats, shrink):
    shrink(num_hidden_layers=2)
    student, prompts = make_student("qwen3"), held_out(chats)
    writer = ReplyWriter(student, replace(TOKENS, ends=(-1,)), torch.float32)
    found = measure_reply_kl(make_teacher("qwen3"), student, writer, prompts, vocabulary=97)
    assert found.counts["at_limit"] == len(prompts)
    with pytest.raises(UserError, match=r"does not end its replies: 0 of 15 ended within 6 tokens, where .* 4 at the"):
        check_start("last", found, bound=100)


def test_a_rise_is_one_beyond_chance(chats, shrink):
    shrink(num_hidden_layers=2)
    before = measured(make_student("qwen3"), make_teacher("qwen3"), held_out(chats))
    assert before.rise_since(before) == (0, 0)
    lines = []
    # Every reply a tenth worse: no two differ in how much.
    worse = replace(before, mean=before.mean * 1.1, sums=[1.1 * x for x in before.sums])
    rise, _ = worse.rise_since(before)
    assert rise == pytest.approx(0.1 * before.mean)
    ReplyKLCheck("last", before, 100, lambda: before, lines.append)(3)
    assert f"step 3: reply-KL {before.mean:.4f} nats" in lines[0]
    with pytest.raises(UserError, match="step 3: the reply-KL on held-out prompts has risen from"):
        ReplyKLCheck("last", before, 100, lambda: worse, lines.append)(3)
    with pytest.raises(UserError, match="above reply_kl_bound 0.01"):
        ReplyKLCheck("last", before, 0.01, lambda: before, lines.append)(3)
    # One reply that went astray says little of the others.
    astray = [before.sums[0] + sum(before.sums) * 0.5, *before.sums[1:]]
    ReplyKLCheck("last", before, 100, lambda: replace(before, sums=astray), lines.append)(3)


def test_a_stage_that_gets_worse_is_stopped_before_it_is_kept(on_policy, chats, shrink, tmp_path):
    shrink(num_hidden_layers=2)
    prompts = held_out(chats)
    before = measured(make_student("qwen3"), make_teacher("qwen3"), prompts)
    settings = dict(learning_rate=1e-6, checkpoint_every=2, data=SETTINGS["data"] | {"reply_kl_bound": 100})
    on_policy("fine", Writing(TOKENS, prompts, before), **settings)
    nearer = replace(before, mean=before.mean / 2, sums=[x / 2 for x in before.sums])
    with pytest.raises(UserError, match="test, step 2: the reply-KL on held-out prompts has risen"):
        on_policy("worse", Writing(TOKENS, prompts, nearer), **settings)
    assert list((tmp_path / "fine/checkpoints").iterdir())
    assert not (tmp_path / "worse/checkpoints").exists()
