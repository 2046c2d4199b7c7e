"""The bridge to lm-evaluation-harness (lm_eval): its tasks evaluated from a recipe, and our items as a task of its own.

The other direction, our students in its command line, is `harness_model`. lm_eval is imported only when it is needed;
the extra `harness` brings it.
"""

import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gendistill.errors import UserError
from gendistill.evaluate.kinds.item import Item
from gendistill.evaluate.ranking import candidate_ids
from gendistill.evaluate.run import model_fingerprint
from gendistill.files import make_folder, read_hashed_json, write_atomically, write_hashed_json
from gendistill.recipe.evaluation import Harness

RESULTS = "harness.json"
HARNESS_HEADER = ["lm_eval task", "items", "shots", "metric", "teacher", "student"]
BATCH_SIZE = 32  # where the recipe leaves it open; lm_eval's own search would try the model's longest sequence


def check_harness(settings: Harness) -> None:
    """Loads the tasks with their data.

    Raises:
        UserError: lm_eval is not installed; it knows no such task; a task's data cannot be read; or a task runs code
            that a model wrote, which is done in this project's sandbox only.
    """
    _lm_eval()
    manager = _task_manager(settings)
    # One by one, so that the error names the task.
    for name in settings.tasks:
        try:
            loaded = manager.load([name])["tasks"]
        except KeyError as error:
            raise UserError(
                f"evaluation.harness.tasks: lm_eval knows no task '{name}', and it is no .yaml file of one; "
                "'lm_eval ls tasks' lists what it knows"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"evaluation.harness.tasks: '{name}' cannot be loaded: {error}") from error
        # lm_eval would run such programs in this process, with all rights of its user.
        if unsafe := [each for each, task in loaded.items() if getattr(task, "UNSAFE_CODE", False)]:
            raise UserError(
                f"evaluation.harness.tasks: {', '.join(unsafe)} would run code that the model wrote without a "
                "sandbox; evaluate it as a task of kind 'code' under evaluation.tasks"
            )


def _lm_eval():
    # Here, not above: it takes seconds to import, and most runs have no task of it.
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(
            f"evaluation.harness needs lm-evaluation-harness, which is not installed ({error}): "
            "pip install 'gendistill[harness]'"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default it takes
    return lm_eval


def _task_manager(settings: Harness):
    """What finds tasks by name; reading the thousands that come with lm_eval takes half a minute, so it is cached."""
    # Tasks that are all files of the user's need none of lm_eval's own.
    return _cached_task_manager(not all(name.endswith(".yaml") for name in settings.tasks))


@cache
def _cached_task_manager(with_its_own_tasks: bool):
    return _lm_eval().tasks.TaskManager(include_defaults=with_its_own_tasks)


def run_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Harness,
    *,
    batch_size: int | None,
    folder: Path,
    label: str,
) -> dict[str, dict[str, Any]]:
    """Has lm_eval score the model on its tasks, unless that is done; its own prompts, without a chat template.

    Writes `folder/label/harness.json`: what the scores depend on, and under "results" what is returned.

    Returns:
        for each task, and each group of tasks: "version", "items", "shots" (None for a group) and "metrics", as lm_eval
        names them ("acc,none", "acc_stderr,none", ...).

    Raises:
        UserError: see `check_harness`.
    """
    path = Path(folder) / label / RESULTS
    lm_eval = _lm_eval()
    # All that the scores depend on: unless it is the same, they are computed again.
    inputs = {"lm_eval": lm_eval.__version__, "settings": settings.model_dump(), "model": model_fingerprint(model)}
    if (done := _done(path)) is not None and inputs.items() <= done.items():
        return done["results"]
    check_harness(settings)
    found = lm_eval.simple_evaluate(
        lm_eval.models.huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size or BATCH_SIZE),
        tasks=list(settings.tasks),
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        task_manager=_task_manager(settings),
        log_samples=False,  # every prompt and reply of every task, which nothing reads
    )
    results = {
        task: {
            "version": found["versions"].get(task),
            "items": found["n-samples"].get(task, {}).get("effective"),
            "shots": found["n-shot"].get(task),
            # Among the metrics stand "alias" and the like, which hold no numbers.
            "metrics": {
                name: value for name, value in scores.items() if "," in name and isinstance(value, int | float)
            },
        }
        for task, scores in found["results"].items()
    }
    # Inputs and results in one file, written whole: results never stand beside other inputs.
    make_folder(path.parent)
    write_hashed_json(path, inputs | {"results": results})
    return results


def _done(path: Path) -> dict[str, Any] | None:
    """What an earlier call wrote; None where nothing is, or it is damaged: scoring again mends that."""
    try:
        return read_hashed_json(path)
    except UserError:
        return None


def harness_cells(folder: Path, student: str) -> list[list[str]]:
    """Cells under HARNESS_HEADER: a row per task and metric that `run_harness` wrote for "teacher" and a student."""
    teacher_results, student_results = (
        read_hashed_json(Path(folder) / label / RESULTS)["results"] for label in ("teacher", student)
    )
    cells = []
    for task, found in teacher_results.items():
        # A group of tasks has no number of shots of its own.
        about = [task, *("" if found[key] is None else str(found[key]) for key in ("items", "shots"))]
        for name in found["metrics"]:
            # "acc,none": the metric, and the filter that replies went through before it.
            metric, _, reply_filter = name.partition(",")
            if metric.endswith("_stderr"):
                continue  # shown beside its metric
            shown = metric if reply_filter == "none" else f"{metric}, {reply_filter}"
            teacher_score = _score(found["metrics"], name)
            student_score = _score(student_results[task]["metrics"], name)
            cells.append([*about, shown, teacher_score, student_score])
    return cells


def _score(metrics: dict[str, float], name: str) -> str:
    # "acc,none" has its standard error under "acc_stderr,none"; not all metrics have one.
    error = metrics.get(name.replace(",", "_stderr,", 1))
    return f"{metrics[name]:.3f}" if error is None else f"{metrics[name]:.3f} ± {error:.3f}"


def write_harness_task(
    name: str,
    items: Sequence[Item],
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    texts: bool = False,
) -> Path:
    """Our items as a task of lm_eval, over a local file: the same prompts and candidates, template and all.

    lm_eval shows the prompt as it stands, so it must be given no chat template. It moves white space at a prompt's end
    to each candidate, whose log-likelihoods all grow by that of the white space; the order is the same.

    Args:
        prompts: ids per item, from `render_prompts`.
        texts: the candidates are the options' texts instead of their letters.

    Returns:
        the task's file, `folder/NAME.yaml`, for `lm_eval --tasks`; `folder/NAME.jsonl` lies beside it.

    Raises:
        UserError: an item cannot be ranked, or its prompt or a candidate is another one when read back from text.
    """
    folder = Path(folder).resolve()  # lm_eval may be started from elsewhere
    lines = []  # of NAME.jsonl
    for item, prompt, replies in zip(items, prompts, candidate_ids(tokenizer, items, texts), strict=True):
        # Item by item, so that the error names the one that does not fit.
        where, replies = f"task '{name}', item {item.id}", replies[len(item.candidates) :] if texts else replies
        if not replies:
            raise UserError(f"{where}: nothing to rank; lm_eval can be given ranked items only")
        text = _read_back(tokenizer, prompt, f"{where}: its prompt")
        # What stands behind the prompt: the candidate, and blanks that the template puts before a reply.
        whole = [_read_back(tokenizer, prompt + ids, f"{where}: a candidate behind its prompt") for ids in replies]
        candidates = [each.removeprefix(text) for each in whole]
        lines.append({"id": item.id, "prompt": text, "candidates": candidates, "gold": list(item.gold)})
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "candidates",
        "doc_to_target": "gold",
        "target_delimiter": "",  # its default, a blank, would change every candidate's tokens
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    make_folder(folder)
    write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    path = folder / f"{name}.yaml"
    write_atomically(path, yaml.safe_dump(task, sort_keys=False))
    return path


def _read_back(tokenizer: PreTrainedTokenizerBase, ids: list[int], what: str) -> str:
    """The text of ids; lm_eval tokenises text, and only if that gives our ids do both sides score the same."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if tokenizer.encode(text, add_special_tokens=False) != ids:
        raise UserError(
            f"{what} is tokenised otherwise when read back from text, as lm_eval reads it. It may quote a control token"
        )
    return text
