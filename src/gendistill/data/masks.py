"""Refuses rows whose loss mask is empty, full or shifted: training on them looks healthy and teaches something else."""

import numpy as np

from gendistill.data.dataset import PackedDataset, tokenizer_hash
from gendistill.errors import UserError

ROWS = 512  # looked at, the first to be consumed


def check_masks(dataset: PackedDataset, tokenizer) -> None:
    """Checks the rows a stage is about to train on, whatever made them.

    Raises:
        UserError: the rows were made with another tokenizer; the first token of a document is a loss target; on "all" a
            token is left out; on "completion" no token is learnt, or every one, or most learnt runs do not end with a
            token that ends a turn, which is how a mask shifted by one looks.
    """
    if dataset.stats["tokenizer"] != tokenizer_hash(tokenizer):
        raise UserError(f"{dataset.folder}: made with another tokenizer than this teacher's; prepare the data again")
    rows = dataset[:ROWS]
    learnt, starts = rows["loss_mask"] > 0, rows["position_ids"] == 0
    problem = _first(learnt & starts, "the first token of a document is a loss target, and nothing predicts it")
    if not learnt.any():
        problem = f"no token of the first {len(learnt)} rows is learnt"
    context = ~learnt & ~starts & ~_filler(learnt, starts)
    if problem is None and dataset.stats["loss_on"] == "all":
        problem = _first(context, "a token inside a document is left out of a loss on all tokens")
    elif problem is None:
        problem = _misplaced(learnt, starts, context, np.isin(rows["input_ids"], dataset.stats["ends"]))
    if problem:
        raise UserError(
            f"{dataset.folder}: the loss mask is wrong: {problem}. Look at it with gendistill show-batch; then delete "
            "the folder and prepare the data again"
        )


def _filler(learnt: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The last run of positions in a row, where nothing of it is learnt."""
    run = starts.cumsum(1)
    last = run == run[:, -1:]
    return last & ~(learnt & last).any(1, keepdims=True)


def _misplaced(learnt: np.ndarray, starts: np.ndarray, context: np.ndarray, ends: np.ndarray) -> str | None:
    """On "completion" some tokens are context, and a reply ends with its end-of-turn token or where it is cut."""
    if not context.any():
        return "every token counts as a completion, prompts too"
    followed = np.pad(learnt[:, 1:], ((0, 0), (0, 1)))
    cut = np.pad(starts[:, 1:], ((0, 0), (0, 1)), constant_values=True) & ~ends
    last = learnt & ~followed  # token of each reply
    wrong = last & ~ends & ~cut
    if 2 * wrong.sum() <= last.sum():  # a template's own markers may leave parts of some replies out
        return None
    return _first(
        wrong,
        f"{wrong.sum()} of {last.sum()} replies do not end with the token that ends a turn (the mask is shifted, or "
        "the template closes turns otherwise)",
    )


def _first(wrong: np.ndarray, problem: str) -> str | None:
    """The problem with the place where it is first met, if there is one."""
    if not wrong.any():
        return None
    row, token = np.argwhere(wrong)[0]
    return f"{problem}; first at row {row}, token {token}"
