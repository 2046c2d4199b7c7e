"""Has the teacher reply to a set of prompts, and keeps the replies that pass the checks.

folder/settings.json   hash of all that the replies depend on
folder/replies.jsonl   every reply, written batch by batch; a killed run resumes behind the last whole batch
folder/records.jsonl   the replies that passed, as records to train on
folder/rejected.jsonl  the others, with the check they failed
folder/stats.json      counts of every check, tokens, seconds; then SHA256SUMS, hashes of all these
"""

import hashlib
import json
import os
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gendistill.console import Console, Progress
from gendistill.distributed import WHOLE, Share, as_rank_zero_says, of_all_processes, on_rank_zero
from gendistill.errors import UserError
from gendistill.evaluate.items import load_items
from gendistill.evaluate.kinds.base import TaskSettings
from gendistill.evaluate.ranking import candidate_ids, rank
from gendistill.evaluate.run import model_fingerprint
from gendistill.files import (
    SUMS,
    checked_line,
    make_folder,
    read_checked_line,
    read_json,
    seal,
    write_atomically,
    write_jsonl,
)
from gendistill.inference.decoding import Sampling
from gendistill.inference.generation import Reply, generate
from gendistill.inference.stopping import end_ids
from gendistill.models.positions import most_positions
from gendistill.recipe.data import Synthesis
from gendistill.synthesize.checks import Duplicates
from gendistill.synthesize.judge import Answered, judge, letters
from gendistill.synthesize.overlap import OverlapIndex
from gendistill.synthesize.prompts import Prompt, all_prompts

RECORDS = "records.jsonl"


def synthesize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    synthesis: Synthesis,
    tasks: dict[str, TaskSettings],
    *,
    seed: int,
    folder: Path,
    teacher: str,
    console: Console,
    share: Share = WHOLE,
) -> dict[str, Any]:
    """Writes a set of records into `folder`, or resumes an earlier attempt there; returns its statistics.

    Prompts that are there twice, or share `synthesis.overlap` words with an item of any task, are left out beforehand.

    Args:
        model: the teacher, on the device and in the precision to generate in.
        tasks: evaluation sets that no record may overlap with; of each all items, not only those that are drawn.
        teacher: its name, for the records.
        share: this process's of the batches. All processes call it, with a teacher each; what is written does not
            depend on how many they are, and the first one writes it.

    Raises:
        UserError: a source does not fit, a prompt and its reply exceed the model's positions, nothing passed, or the
            folder holds replies of other prompts or another teacher.
    """
    prompts = all_prompts(synthesis, tokenizer, seed)
    overlap = index_of(tasks, synthesis.overlap, seed)
    chosen, dropped = _choose(prompts, overlap)
    _check_length(model, chosen, synthesis)
    make_folder(folder)
    # By what is really prompted: other records that are left out anyway change no reply.
    digest = _digest(model, tokenizer, chosen, synthesis, seed)
    on_rank_zero(lambda: _claim(folder, digest))
    if as_rank_zero_says(lambda: not (folder / "stats.json").exists()):
        answered, generated = generate_replies(model, tokenizer, chosen, synthesis, seed, folder, console, share)
        found = {"prompts": len(prompts), "left_out": dropped}
        about = {"teacher": teacher, "seed": seed, "temperature": synthesis.temperature, "top_p": synthesis.top_p}
        on_rank_zero(lambda: _store(folder, answered, synthesis, overlap, found, generated, about, tokenizer))
    on_rank_zero(lambda: (folder / SUMS).exists() or seal(folder))  # last: with it the set is complete
    return read_json(folder / "stats.json")


def _store(
    folder: Path,
    answered: list[Answered],
    synthesis: Synthesis,
    overlap: OverlapIndex,
    found: dict[str, Any],
    generated: dict[str, Any],
    about: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Judges the replies, and writes records, those rejected, and statistics."""
    (folder / SUMS).unlink(missing_ok=True)  # of what is now written anew
    counts = judge(answered, synthesis, overlap)
    kept = [a for a in answered if a.failed is None]
    stats = found | {"replies": len(answered), "kept": len(kept)}
    stats |= {"checks": counts, "letters": letters(answered), "overlap": dict(overlap.found)} | generated
    if not kept:  # a source without records could not be trained on
        raise UserError(f"{folder}: no reply passed the checks: {_rejections(counts)}. See replies.jsonl there")
    write_jsonl(folder / RECORDS, [record(a, about, tokenizer) for a in kept])
    rejected = [a for a in answered if a.failed is not None]
    write_jsonl(folder / "rejected.jsonl", [record(a, about, tokenizer) for a in rejected])
    write_atomically(folder / "stats.json", json.dumps(stats, indent=1) + "\n")


def index_of(tasks: dict[str, TaskSettings], words: int, seed: int) -> OverlapIndex:
    """All items of evaluation tasks that are read: each question alone, with its options, and with its answer."""
    index = OverlapIndex(words)
    for name, task in tasks.items():
        if task.is_made:
            continue
        for item in load_items(name, task.all_items(), seed):
            index.add(name, item.question)
            index.add(name, "\n".join([item.question, *item.choices, item.solution]))
    return index


def record(a: Answered, about: dict[str, Any], tokenizer) -> dict[str, Any]:
    """A reply as a record: to train on, and to see how it came about."""
    prompt = a.prompt
    if not prompt.is_chat:
        content = {"text": tokenizer.decode([*prompt.ids, *a.reply.ids]), "reference": prompt.reference}
    else:
        turns = []
        for user, assistant in prompt.shots:  # read, and not learnt
            turns += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant, "weight": 0}]
        turns += [{"role": "user", "content": prompt.user}, {"role": "assistant", "content": a.reply.text}]
        content = {"messages": turns, "prompt": prompt.user, "completion": a.reply.text, "reference": prompt.reference}
    origin = {"id": f"{prompt.id}/{a.sample}", "kind": prompt.kind, "source": prompt.source, "record": prompt.record}
    origin |= {"rotation": prompt.rotation, "sample": a.sample, "tokens": a.reply.tokens}
    return content | origin | about | a.notes | ({"rejected_by": a.failed} if a.failed else {})


def _choose(prompts: list[Prompt], overlap: OverlapIndex) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts without those that are there twice or stand in an evaluation; and how many those are."""
    duplicates, dropped = Duplicates(), {"duplicate": 0, "overlap": 0}
    groups: dict[str, str | None] = {}  # why a group of prompts is left out; rotations of a question are one group
    for prompt in prompts:
        if prompt.group not in groups:
            reason = "duplicate" if duplicates.add(prompt.asked) != "new" else None
            shown = [prompt.asked, *(user for user, _ in prompt.shots)]
            groups[prompt.group] = reason or ("overlap" if any(map(overlap.find, shown)) else None)
        if groups[prompt.group] is not None:
            dropped[groups[prompt.group]] += 1
    chosen = [prompt for prompt in prompts if groups[prompt.group] is None]
    if not chosen:
        raise UserError(f"none of {len(prompts)} prompts is left: {dropped}")
    return chosen, dropped


def generate_replies(
    model,
    tokenizer,
    prompts: list[Prompt],
    synthesis: Synthesis,
    seed: int,
    folder: Path,
    console: Console,
    share: Share,
) -> tuple[list[Answered], dict[str, Any]]:
    """Replies to all prompts, those of an earlier attempt among them; and tokens and seconds of this one.

    The first process has the earlier ones, and writes; the others have no file.
    """
    waiting = [(prompt, sample) for sample in range(synthesis.samples) for prompt in prompts]
    waiting.sort(key=lambda pair: len(pair[0].ids), reverse=True)  # what does not fit in memory fails at once
    size = synthesis.batch_size
    batches = [waiting[start : start + size] for start in range(0, len(waiting), size)]
    path = folder / "replies.jsonl"
    answered = as_rank_zero_says(lambda: _read_replies(path, batches))
    done = len(answered)  # a number of whole batches
    began, tokens = time.perf_counter(), 0
    with (
        open(path if share.number == 0 else os.devnull, "a", encoding="utf-8") as file,
        Progress("prompting the teacher", len(waiting), "replies", console, done=done) as progress,
    ):
        # Only the last batch may be smaller. Each process has one at a time, so that they are written in their order.
        for first in range(-(-done // size), len(batches), share.processes):
            own = batches[first : first + share.processes][share.number :][:1]
            written = [_generate_batch(model, tokenizer, batch, synthesis, seed) for batch in own]
            replies = [a for part in of_all_processes(written) for batch in part for a in batch]
            answered += replies
            file.writelines(_line(a) for a in replies)
            file.flush()  # a run that is killed loses one batch of each process
            # What was generated: an end-of-text token is not among a reply's tokens.
            tokens += sum(a.reply.tokens + (not a.reply.truncated) for a in replies)
            throughput = tokens / (time.perf_counter() - began)
            progress.advance(len(replies), f"{throughput:,.0f} tokens/s")
    seconds = time.perf_counter() - began
    return answered, {"tokens_this_time": tokens, "seconds_this_time": round(seconds, 3)}


def _generate_batch(
    model, tokenizer, batch: list[tuple[Prompt, int]], synthesis: Synthesis, seed: int
) -> list[Answered]:
    # A random stream of its own for every reply: it is the same whatever else is in the batch, resumed or not.
    keys = [f"{seed}/{prompt.id}/{sample}" for prompt, sample in batch]
    sampling = Sampling(synthesis.temperature, synthesis.top_p, keys) if synthesis.temperature else None
    ids = [prompt.ids for prompt, _ in batch]
    budget, stop = synthesis.max_new_tokens, synthesis.stop
    replies = generate(model, tokenizer, ids, budget, len(batch), sampling=sampling, stop=stop)
    answered = [Answered(prompt, sample, reply) for (prompt, sample), reply in zip(batch, replies, strict=True)]
    choices = [a for a in answered if a.prompt.has_options] if synthesis.margin is not None else []
    items = [a.prompt.item for a in choices]
    ranked = rank(model, items, [a.prompt.ids for a in choices], candidate_ids(tokenizer, items), len(batch))
    for a, ranking in zip(choices, ranked, strict=True):
        a.scores = ranking.scores
    return answered


def _line(a: Answered) -> str:
    reply = {"id": a.prompt.id, "sample": a.sample, "reply": a.reply.text, "ids": a.reply.ids}
    return checked_line(reply | {"truncated": a.reply.truncated, "scores": a.scores})


def _read_replies(path: Path, batches: list[list[tuple[Prompt, int]]]) -> list[Answered]:
    """The replies of the whole batches that an earlier attempt has finished; what is behind them is cut off."""
    # What stands behind a line that was cut off, or is damaged, is written again.
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    whole = list(takewhile(lambda stored: stored is not None, map(read_checked_line, lines)))
    answered: list[Answered] = []
    for batch in batches:
        if len(whole) < len(answered) + len(batch):
            break
        for prompt, sample in batch:
            stored = whole[len(answered)]
            reply = Reply(stored["reply"], len(stored["ids"]), stored["truncated"], tuple(stored["ids"]))
            answered.append(Answered(prompt, sample, reply, stored["scores"]))
    write_atomically(path, "".join(map(checked_line, whole[: len(answered)])))
    return answered


def _check_length(model, prompts: list[Prompt], synthesis: Synthesis) -> None:
    limit = most_positions(model.config.get_text_config())
    longest = max(len(prompt.ids) for prompt in prompts)
    if limit is not None and longest + synthesis.max_new_tokens > limit:
        raise UserError(
            f"the longest prompt has {longest} tokens and replies up to {synthesis.max_new_tokens}; the teacher has "
            f"{limit} positions. Lower max_new_tokens or leave that prompt out"
        )


def _digest(model, tokenizer, prompts: list[Prompt], synthesis: Synthesis, seed: int) -> dict[str, str]:
    """Hashes of what the replies depend on, by name."""
    # Ids rather than text: another tokenizer or chat template gives other replies too.
    prompted = hashlib.sha256(json.dumps([(prompt.id, prompt.ids) for prompt in prompts]).encode()).hexdigest()
    how = synthesis.model_dump_json(exclude={"prompts"})
    return {
        "prompts": prompted,
        "teacher": model_fingerprint(model),
        "settings": f"{how} seed {seed} ends {end_ids(model, tokenizer, synthesis.stop)}",
    }


def _claim(folder: Path, digest: dict[str, str]) -> None:
    path = folder / "settings.json"
    if not path.exists():
        write_atomically(path, json.dumps(digest, indent=1) + "\n")
    before = read_json(path)
    if changed := [name for name in digest if before.get(name) != digest[name]]:
        raise UserError(
            f"{folder}: holds replies made with other {', '.join(changed)}. Delete the folder to have them written anew"
        )


def _rejections(counts: dict[str, dict[str, int]]) -> str:
    return ", ".join(f"{count['rejected']} {name}" for name, count in counts.items() if count["rejected"])
