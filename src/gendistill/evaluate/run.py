"""Evaluates one model on all tasks of a recipe, and leaves a record of every item behind."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gendistill.errors import UserError
from gendistill.evaluate.protocols import Advance, end_ids, generate, rank, render_prompts
from gendistill.evaluate.statistics import Scores, TaskScore
from gendistill.evaluate.tasks import Item, load_items
from gendistill.files import write_atomically
from gendistill.recipe import Evaluation, Task

FORMAT = 1  # of the records; raise it when their content or the reading of answers changes


@dataclass(frozen=True)
class _Questions:
    """A task, ready to be asked."""

    name: str
    task: Task
    items: list[Item]
    prompts: list[list[int]]


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Evaluation,
    *,
    seed: int,
    folder: Path,
    label: str,
    progress: bool = True,
) -> Scores:
    """Asks the model every task by ranking and by generation.

    Writes `folder/label/TASK.jsonl`, one record per item, and beside it `TASK.meta.json`, written last, with a hash of
    all that the records depend on: settings, prompts, candidates, seed, model. A task with a fitting hash is not
    asked again, so a killed evaluation goes on where it was. The model is left in the modes it came in.

    Args:
        model: any Hugging Face causal model, on the device and in the precision to evaluate in.
        seed: draws items, worked examples and distractors.
        label: names the model in the scores and the folder.
        progress: shows a progress bar on the terminal.

    Raises:
        UserError: a task's source does not fit (see `load_items`), a prompt and its reply exceed the model's positions,
            or a task's name or the label cannot name a file.
    """
    for name in (label, *evaluation.tasks):
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise UserError(
                f"'{name}' names files, so it may hold letters, digits, '_', '-' and '.' only, and not start with '.'"
            )
    # All tasks are read and checked before the first is asked: a mistake in the last should not cost an hour.
    asked = []
    for name, task in evaluation.tasks.items():
        items = load_items(name, task, seed)
        asked.append(_Questions(name, task, items, render_prompts(tokenizer, items)))
        _check_length(model, tokenizer, asked[-1])
    folder = Path(folder) / label
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = model_fingerprint(model)
    scores = {}
    with _evaluation_mode(model), _progress_bar(progress) as bar:
        for questions in asked:
            todo = bar.add_task(f"{label}: {questions.name}", total=2 * len(questions.items))
            digest = _digest(model, tokenizer, questions, seed, fingerprint)
            records = _finished(folder, questions, digest)
            if records is None:
                records = _ask(
                    model,
                    tokenizer,
                    questions,
                    evaluation.batch_size,
                    lambda count, todo=todo: bar.advance(todo, count),
                )
                _store(folder, questions, records, digest)
            bar.update(todo, completed=2 * len(questions.items))
            scores[questions.name] = TaskScore.from_records(records)
    return Scores(label, scores)


def _ask(model, tokenizer, questions: _Questions, batch_size: int, advance: Advance) -> list[dict[str, Any]]:
    items, prompts = questions.items, questions.prompts
    rankings = rank(model, tokenizer, items, prompts, batch_size, advance)
    replies = generate(model, tokenizer, prompts, questions.task.max_new_tokens, batch_size, advance)
    records = []
    for item, ranking, reply in zip(items, rankings, replies, strict=True):
        answer = item.parse(reply.text)
        records.append(
            {
                "id": item.id,
                "question": item.question,
                "choices": list(item.choices),
                "candidates": list(item.candidates),
                "gold": item.gold,
                "answers": list(item.answers),
                "scores": list(ranking.scores),
                "ranked": item.candidates[ranking.prediction],
                "ranking_correct": ranking.prediction == item.gold,
                "reply": reply.text,
                "reply_tokens": reply.tokens,
                "truncated": reply.truncated,
                "parsed": answer.parsed,
                "generation_correct": answer.correct,
            }
        )
    return records


def _check_length(model, tokenizer, questions: _Questions) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    candidate = max(
        len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in {text for item in questions.items for text in item.candidates}
    )
    reply = max(candidate, questions.task.max_new_tokens)
    needed = max(map(len, questions.prompts)) + reply
    if limit is not None and needed > limit:
        raise UserError(
            f"task '{questions.name}' needs {needed} tokens ({needed - reply} for the longest prompt, {reply} for the "
            f"reply); the model has {limit} positions. Lower its shots or max_new_tokens"
        )


def model_fingerprint(model: PreTrainedModel) -> str:
    """Hash of the configuration and of some 64 values spread over each tensor.

    Cheap for a model of any size, and one step of an optimiser changes it.
    """
    config = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)  # where the folder lies does not matter
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)].cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {sample.tolist()}".encode())
    return digest.hexdigest()


def _digest(model, tokenizer, questions: _Questions, seed: int, fingerprint: str) -> str:
    """Hash of all that the records depend on. The batch size is not in it: they do not depend on that."""
    content = {
        "format": FORMAT,
        "task": questions.task.model_dump(),
        "seed": seed,
        "ids": [item.id for item in questions.items],
        "gold": [(item.candidates, item.gold, item.answers) for item in questions.items],
        "prompts": questions.prompts,
        "ends": end_ids(model, tokenizer),
        "model": fingerprint,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.jsonl", folder / f"{name}.meta.json"


def _stamp(questions: _Questions, digest: str) -> dict[str, Any]:
    return {"sha256": digest, "items": len(questions.items)}


def _finished(folder: Path, questions: _Questions, digest: str) -> list[dict[str, Any]] | None:
    """Records of an earlier evaluation, if it is complete and was of the same questions to the same model."""
    path, meta = _paths(folder, questions.name)
    try:
        if json.loads(meta.read_text(encoding="utf-8")) != _stamp(questions, digest):
            return None
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError):
        return None
    return records if len(records) == len(questions.items) else None


def _store(folder: Path, questions: _Questions, records: Sequence[dict[str, Any]], digest: str) -> None:
    path, meta = _paths(folder, questions.name)
    # A hash must never stand beside records it does not belong to, whenever the process is killed.
    meta.unlink(missing_ok=True)
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    write_atomically(meta, json.dumps(_stamp(questions, digest)) + "\n")


@contextmanager
def _evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _progress_bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        transient=True,
        disable=not shown,
    )
