"""Evaluates one model on all tasks of a recipe, and leaves a record of every item behind."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from gendistill.analysis.scores import Scores, TaskScore
from gendistill.console import Console, Progress
from gendistill.data.chat import render_prompts
from gendistill.distributed import WHOLE, Share, as_rank_zero_says
from gendistill.errors import UserError
from gendistill.evaluate.items import load_counted
from gendistill.evaluate.kinds import grade
from gendistill.evaluate.kinds.base import TaskSettings
from gendistill.evaluate.kinds.item import Item
from gendistill.evaluate.partial import Partial
from gendistill.evaluate.ranking import candidate_ids, rank
from gendistill.evaluate.records import make_record, text_sha256
from gendistill.files import file_sha256, make_folder, read_jsonl, write_atomically, write_jsonl
from gendistill.inference.decoding import Sampling
from gendistill.inference.generation import generate
from gendistill.inference.stopping import end_ids
from gendistill.models.positions import most_positions
from gendistill.recipe.evaluation import Evaluation

FORMAT = 5  # of the records; raise it when their content or the extraction of answers changes
HASHED_AT_A_TIME = 4  # pieces of a model, so that little of one on a GPU is here at a time
PIECE = 2**26  # bytes: large tensors in pieces, so that none is waited for
LONGEST_CHECKED = 4  # items, by characters, whose prompts are rendered before there is a model


@dataclass(frozen=True)
class _Questions:
    """A task, ready to be put to a model.

    `prompted` are the items and behind them, where the task wants them, the other forms of each in turn; `prompts` are
    their ids. `candidates` are the ids of each item's candidates and of its choices' texts, whatever the task ranks by:
    diagnoses compare the ways. `malformed` records of the source were skipped.
    """

    name: str
    task: TaskSettings
    items: list[Item]
    prompted: list[Item]
    prompts: list[list[int]]
    candidates: list[list[list[int]]]
    malformed: int = 0

    @classmethod
    def read(
        cls, name: str, task: TaskSettings, seed: int, tokenizer: PreTrainedTokenizerBase, share: Share = WHOLE
    ) -> "_Questions":
        """All of a task; each process tokenises its share, and all must call it."""
        items, malformed = load_counted(name, task, seed, tokenizer)
        # Behind the items, not among them: item i has prompt i, and ranking needs the first of them only.
        other_forms = [form for item in items for form in task.other_forms(item)]
        prompted = [*items, *other_forms]
        rendered = render_prompts(tokenizer, (form.messages for form in share.of(prompted)))
        own = share.of(items)
        candidates = share.of_all(candidate_ids(tokenizer, own, texts=True, prompts=rendered[: len(own)]))
        prompts = share.of_all([prompt.ids for prompt in rendered])
        return cls(name, task, items, prompted, prompts, candidates, malformed)

    @property
    def answers(self) -> int:
        """How many rankings and replies there will be."""
        # One ranking for each item that has candidates, one reply to each prompt.
        return len(self.ranked) + len(self.prompted)

    @property
    def ranked(self) -> list[int]:
        """Indices of the items that are ranked."""
        # Programs and instructions have no candidates; they are evaluated by generation alone.
        return [index for index, item in enumerate(self.items) if item.candidates]


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Evaluation,
    *,
    seed: int,
    folder: Path,
    label: str,
    progress: bool = True,
    ranks: bool = True,
    share: Share = WHOLE,
) -> Scores | None:
    """Evaluates the model on every task by ranking and by generation.

    Writes `folder/label/TASK.jsonl`, one record per item, and beside it `TASK.meta.json`, written last, with a hash of
    all that the records depend on: settings, prompts, candidates, seed, model. A task with a fitting hash is not
    evaluated again, so a killed evaluation resumes where it was. The model is left in the modes it came in.

    Args:
        model: any Hugging Face causal model, on the device and in the precision to evaluate in.
        seed: draws items, few-shot examples and distractors.
        label: names the model in the scores and the folder.
        progress: prints how far it is.
        ranks: False leaves ranking out, where only what a model says is asked.
        share: this process's of the items. All processes call it, with a model each; records do not depend on how many
            they are, and the first one writes them.

    Returns:
        The scores, on the first process; the others get None.

    Raises:
        UserError: a task's source does not fit (see `load_items`), a prompt and its reply exceed the model's positions,
            the label cannot name a file, or programs cannot be isolated here.
    """
    _check_label(label)
    # Once, and while questions are read: it reads every weight.
    with ThreadPoolExecutor(1) as thread:
        hashed = thread.submit(_piece_digests, model, share)
        # All tasks are read and checked before the first is evaluated: a mistake in the last should not cost an hour.
        tasks = []
        for name, task in evaluation.tasks.items():
            task.check_machine()
            tasks.append(_Questions.read(name, task, seed, tokenizer, share))
            _check_length(model.config, tasks[-1].prompts, tasks[-1].candidates, name, task)
    fingerprint = _fingerprint(model, share.of_all(hashed.result()))
    folder = Path(folder) / label
    make_folder(folder)
    scores = {}
    is_first = share.number == 0
    console = Console(quiet=not (progress and is_first))
    with _evaluation_mode(model):
        for questions in tasks:
            digest = _digest(model, tokenizer, evaluation, questions, seed, fingerprint, ranks)
            records = _finished(folder, questions, digest)
            partial = Partial(folder / f"{questions.name}.partial.jsonl", digest, share)
            # One process may see the file that another is to see a moment later.
            if as_rank_zero_says(lambda records=records: records is None):
                with partial, _progress(label, questions, partial, console) as bar:
                    partial.on_answers = bar.advance
                    _answer(model, tokenizer, evaluation, questions, seed, partial, ranks, share)
                    partial.gather()
                if is_first:
                    records = _records(tokenizer, questions, partial)
                    _store(folder, questions, records, digest)
            if is_first:
                partial.remove()  # only now: killed before, nothing is generated again
                scores[questions.name] = TaskScore.from_records(records)
    return Scores(label, scores) if is_first else None


def check_questions(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, evaluation: Evaluation, seed: int
) -> None:
    """Refuses what `evaluate_model` would refuse of the tasks, before there is a model.

    Raises:
        UserError: see `evaluate_model`. Prompts are rendered of the longest items only.
    """
    for name, task in evaluation.tasks.items():
        task.check_machine()
        # Thrown away: with the recipe's seed the same items are drawn again when their time comes.
        items = load_counted(name, task, seed, tokenizer).items
        longest = sorted(items, key=_characters)[-LONGEST_CHECKED:]
        prompts = render_prompts(tokenizer, [item.messages for item in longest])
        ids = candidate_ids(tokenizer, longest, texts=True, prompts=prompts)
        _check_length(config, [prompt.ids for prompt in prompts], ids, name, task)


def _characters(item: Item) -> int:
    return len(item.question) + sum(len(text) for shot in item.shots for text in shot)


def _check_label(label: str) -> None:
    # No separators and no "..": a name must not lead out of the folder.
    if not re.fullmatch(r"[\w.-]+", label) or label.startswith("."):
        raise UserError(
            f"'{label}' names files, so it may hold letters, digits, '_', '-' and '.' only, and not start with '.'"
        )


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Evaluation,
    questions: _Questions,
    seed: int,
    partial: Partial,
    ranks: bool,
    share: Share,
) -> None:
    """Has this process's share of the items answered, by ranking and by generation, into `partial`."""
    if ranks:
        _rank(model, evaluation, questions, partial, share)
    _generate(model, tokenizer, evaluation, questions, seed, partial, share)


def _records(tokenizer: PreTrainedTokenizerBase, questions: _Questions, partial: Partial) -> list[dict[str, Any]]:
    """Records of all items, whose answers are all there."""
    ranked = questions.ranked
    rankings = {ranked[place]: ranking for place, ranking in partial.rankings.items()}
    replies = [partial.replies[number] for number in range(len(questions.prompted))]
    # All replies at once: programs are run as many at a time as there are cores.
    grades = grade(questions.prompted, [reply.text for reply in replies], [reply.truncated for reply in replies])
    answers = list(zip(replies, grades, strict=True))
    # Behind the items' own answers stand those to their other forms, item by item.
    other_forms = iter(answers[len(questions.items) :])
    records = []
    prompts = tokenizer.batch_decode(questions.prompts[: len(questions.items)])
    for index, (item, prompt) in enumerate(zip(questions.items, prompts, strict=True)):
        forms = [answers[index], *islice(other_forms, len(questions.task.other_forms(item)))]
        records.append(make_record(questions.task, item, prompt, rankings.get(index), forms))
    return records


def _rank(model, evaluation: Evaluation, questions: _Questions, partial: Partial, share: Share) -> None:
    """Rankings of the items that have candidates."""
    ranked = questions.ranked
    rank(
        model,
        [questions.items[index] for index in ranked],
        [questions.prompts[index] for index in ranked],
        [questions.candidates[index] for index in ranked],
        evaluation.batch_size,
        partial.add,
        known=partial.rankings,
        share=share,
    )


def _generate(
    model, tokenizer, evaluation: Evaluation, questions: _Questions, seed: int, partial: Partial, share: Share
) -> None:
    """Replies to the prompts."""
    sampling = None
    if evaluation.temperature:
        # A key for each reply, so that it is the same in any batch, and in a run that is killed and resumed.
        keys = [f"{seed}/{questions.name}/{number}" for number in range(len(questions.prompted))]
        sampling = Sampling(evaluation.temperature, evaluation.top_p, keys)
    generate(
        model,
        tokenizer,
        questions.prompts,
        questions.task.max_new_tokens,
        evaluation.batch_size,
        partial.add,
        sampling=sampling,
        known=partial.replies,
        stop=_stop_texts(evaluation, questions.task),
        share=share,
    )


def _stop_texts(evaluation: Evaluation, task: TaskSettings) -> list[str]:
    return [*evaluation.stop, *task.stop]


def _check_length(
    config: PreTrainedConfig,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    name: str,
    task: TaskSettings,
) -> None:
    limit = most_positions(config.get_text_config())
    candidate = max((len(ids) for own in candidates for ids in own), default=0)
    # The longest candidate may be longer than any reply: an option's text, say.
    reply = max(candidate, task.max_new_tokens)
    needed = max(map(len, prompts)) + reply
    if limit is not None and needed > limit:
        raise UserError(
            f"task '{name}' needs {needed} tokens ({needed - reply} for the longest prompt, {reply} for the "
            f"reply); the model has {limit} positions. Lower its shots or max_new_tokens"
        )


def model_fingerprint(model: PreTrainedModel) -> str:
    """Hash of the configuration and of every weight: one that changed may be the one that matters."""
    return _fingerprint(model, _piece_digests(model, WHOLE))


def _fingerprint(model: PreTrainedModel, pieces: Sequence[bytes]) -> str:
    """`model_fingerprint` of the hashes of all pieces."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    # Everything else counts, defaults too: they change with transformers, and scores with them.
    config.pop("_name_or_path", None)  # where the folder lies does not matter
    tensors = [(name, tuple(x.shape), str(x.dtype)) for name, x in model.state_dict().items()]
    digest = hashlib.sha256(json.dumps([config, tensors], sort_keys=True).encode())
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _piece_digests(model: PreTrainedModel, share: Share) -> list[bytes]:
    """Hashes of this process's share of the pieces of all weights, whose copies the processes have.

    A core takes about a second for each GB, so some threads share them too.
    """
    # As bytes, whatever the type; of a tensor that is contiguous, as weights are, a piece is a view.
    weights = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in model.state_dict().values())
    pieces = [piece for weight in weights for piece in weight.split(PIECE)]
    with ThreadPoolExecutor(HASHED_AT_A_TIME) as threads:
        return list(threads.map(_piece_digest, share.of(pieces)))


def _piece_digest(piece: torch.Tensor) -> bytes:
    return hashlib.sha256(piece.cpu().numpy()).digest()


def _digest(
    model, tokenizer, evaluation: Evaluation, questions: _Questions, seed: int, fingerprint: str, ranks: bool
) -> str:
    """Hash of all that the records depend on. The batch size is not in it: they do not depend on that."""
    content = {
        "format": FORMAT,
        "task": questions.task.model_dump(),
        "seed": seed,
        "ranks": ranks,
        # Few-shot examples and questions are in the prompts.
        "ids": [item.id for item in questions.items],
        "gold": [(item.candidates, item.gold, item.answers, item.checks) for item in questions.items],
        "sampling": [evaluation.temperature, evaluation.top_p],
        "prompts": questions.prompts,
        "ends": end_ids(model, tokenizer, _stop_texts(evaluation, questions.task)),
        "stop": evaluation.stop,
        "model": fingerprint,
    }
    return text_sha256(json.dumps(content))


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.jsonl", folder / f"{name}.meta.json"


def _stamp(questions: _Questions, digest: str, records: Path) -> dict[str, Any]:
    return {
        "sha256": digest,
        "items": len(questions.items),
        "malformed": questions.malformed,
        "records": file_sha256(records),
    }


def _finished(folder: Path, questions: _Questions, digest: str) -> list[dict[str, Any]] | None:
    """Records of an earlier evaluation, if it is complete and was of the same questions to the same model."""
    path, meta = _paths(folder, questions.name)
    # Whatever is wrong with the files, evaluating again mends it.
    try:
        if json.loads(meta.read_text(encoding="utf-8")) != _stamp(questions, digest, path):
            return None
        return read_jsonl(path)
    except (OSError, ValueError):
        return None


def _store(folder: Path, questions: _Questions, records: Sequence[dict[str, Any]], digest: str) -> None:
    path, meta = _paths(folder, questions.name)
    # A hash must never stand beside records it does not belong to, whenever the process is killed.
    meta.unlink(missing_ok=True)
    write_jsonl(path, records)
    write_atomically(meta, json.dumps(_stamp(questions, digest, path)) + "\n")


@contextmanager
def _evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    # Module by module: a part that was frozen in evaluation mode must not come back in training mode.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _progress(label: str, questions: _Questions, partial: Partial, console: Console) -> Progress:
    answered = len(partial.rankings) + len(partial.replies)
    return Progress(f"{label}, {questions.name}", questions.answers, "answers", console, done=answered)
