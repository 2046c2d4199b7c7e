"""Refuses data whose loss mask is empty, full or shifted: training on it looks healthy and teaches something else."""

from typing import Any, get_args

import numpy as np

from gendistill.data.dataset import PackedDataset
from gendistill.data.encoding import LossOn
from gendistill.data.fingerprints import tokenizer_hash
from gendistill.errors import UserError

TOKENS = 2**20  # looked at, in the first packed sequences to be consumed


def check_masks(dataset: PackedDataset, tokenizer) -> None:
    """Checks the packed sequences a stage is about to train on, whatever made them.

    Raises:
        UserError: they were made with another tokenizer; the first token of a document is a loss target; on "all" a
            token is left out that belongs to no turn of weight 0; on "completion" no token is a loss target, or every
            one, or most runs of targets do not end with a token that ends a turn, which is how a mask shifted by one
            looks.
    """
    if dataset.stats["tokenizer"] != tokenizer_hash(tokenizer):
        raise UserError(f"{dataset.folder}: made with another tokenizer than this teacher's; prepare the data again")
    rows = dataset[
        : max(1, TOKENS // dataset.sequence_length)
    ]  # shuffled over the whole set, so the first stand for all
    problem = _find_problem(rows, dataset.stats)
    if problem:
        raise UserError(
            f"{dataset.folder}: the loss mask is wrong: {problem}. Look at it with gendistill show-batch; then delete "
            "the folder and prepare the data again"
        )


def _find_problem(rows: dict[str, np.ndarray], stats: dict[str, Any]) -> str | None:
    targets = rows["loss_mask"] > 0  # [rows, sequence_length], as all arrays here
    starts = rows["position_ids"] == 0
    if not targets.any():
        return f"no token of the first {len(targets)} packed sequences is a loss target"
    if problem := _first(targets & starts, "the first token of a document is a loss target, and nothing predicts it"):
        return problem
    context = ~targets & ~starts & ~_padding(targets, starts)
    ends = np.isin(rows["input_ids"], stats["ends"])
    if stats["loss_on"] == "all":
        return _find_left_out(starts, context, ends)
    if stats["loss_on"] == "completion":
        return _find_misplaced(targets, starts, context, ends)
    raise ValueError(f"unknown loss_on '{stats['loss_on']}'; known: {', '.join(get_args(LossOn))}")


def _padding(targets: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The last run of positions in a row, where no token of it is a loss target."""
    run = starts.cumsum(1)  # number of each token's run in its row
    last = run == run[:, -1:]
    return last & ~(targets & last).any(1, keepdims=True)


def _find_left_out(starts: np.ndarray, context: np.ndarray, ends: np.ndarray) -> str | None:
    """On "all" only turns of weight 0 are left out: a text, and the token that ends a turn, or where they are cut."""
    followed, follows = np.pad(context[:, 1:], ((0, 0), (0, 1))), np.pad(context[:, :-1], ((0, 0), (1, 0)))
    cut = np.pad(starts[:, 1:], ((0, 0), (0, 1)), constant_values=True)  # the document ends here
    # An end token alone is no turn: a model that never learns it does not stop.
    turn_ends = ends & follows
    wrong = context & ~followed & ~turn_ends & ~(cut & ~ends)
    return _first(wrong, "a token inside a document is left out of a loss on all tokens")


def _find_misplaced(targets: np.ndarray, starts: np.ndarray, context: np.ndarray, ends: np.ndarray) -> str | None:
    """On "completion" some tokens are context, and a reply ends with its end-of-turn token or where it is cut."""
    if not context.any():
        return "every token counts as a completion, prompts too"
    followed = np.pad(targets[:, 1:], ((0, 0), (0, 1)))  # whether the next token is a target
    # The document ends here without a token that ends a turn: it was longer than a row.
    cut = np.pad(starts[:, 1:], ((0, 0), (0, 1)), constant_values=True) & ~ends
    last = targets & ~followed  # token of each reply
    wrong = last & ~ends & ~cut
    if 2 * wrong.sum() <= last.sum():  # a template's own markers may leave parts of some replies out
        return None
    return _first(
        wrong,
        f"{wrong.sum()} of {last.sum()} replies do not end with the token that ends a turn (the mask is shifted, or "
        "the template closes turns otherwise)",
    )


def _first(wrong: np.ndarray, problem: str) -> str | None:
    """The problem with the index of the first token that shows it, if there is one."""
    if not wrong.any():
        return None
    row, token = np.argwhere(wrong)[0]
    return f"{problem}; first at row {row}, token {token}"
