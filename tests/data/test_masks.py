"""A mask that is off by one trains with a falling loss; the check refuses it before it does."""

import json
import shutil

import numpy as np
import pytest
import torch

from gendistill.data.dataset import PackedDataset, prepare
from gendistill.data.masks import check_masks
from gendistill.embedded import teacher_folder
from gendistill.errors import UserError
from gendistill.files import seal
from gendistill.models.loading import load_model, load_tokenizer
from gendistill.recipe.data import Source

CHAT = Source(path="embedded:chat", messages="messages")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("embedded", 2048)


@pytest.fixture(scope="module")
def sound(tokenizer, tmp_path_factory):
    """Rows of replies, by which of their tokens are loss targets."""
    settings = dict(sequence_length=128, tokens=128 * 40, seed=0, cache=tmp_path_factory.mktemp("cache"))
    return {loss_on: prepare([CHAT], tokenizer, loss_on=loss_on, **settings) for loss_on in ("completion", "all")}


@pytest.fixture
def changed(tmp_path):
    """A copy of a data set with another loss mask, or other statistics."""

    def make(dataset, change=None, **stats) -> PackedDataset:
        folder = tmp_path / "changed"
        shutil.copytree(dataset.folder, folder)
        if change is not None:
            np.save(folder / "loss_mask.npy", change(dataset[:]["loss_mask"].copy(), dataset[:]))
        described = json.loads((folder / "stats.json").read_text())
        described["stats"] |= stats
        (folder / "stats.json").write_text(json.dumps(described))
        seal(folder)
        return PackedDataset(folder)

    return make


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_sound_masks_pass(sound, tokenizer, loss_on):
    check_masks(sound[loss_on], tokenizer)


@torch.no_grad()
def mean_loss(dataset, rows=8) -> float:
    """As a plain training loop takes it: cross-entropy of the masked tokens, predicted by the token before."""
    model = load_model(str(teacher_folder()), torch.float32, "cpu")
    batch = {name: torch.from_numpy(column).long() for name, column in dataset[:rows].items()}
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    mask = batch["loss_mask"][:, 1:]
    return ((losses * mask).sum() / mask.sum()).item()


def earlier(mask, _):
    return np.pad(mask[:, 1:], ((0, 0), (0, 1)))


def test_a_mask_off_by_one_looks_healthy_by_its_loss_and_is_refused(sound, tokenizer, changed):
    shifted = changed(sound["completion"], earlier)
    assert shifted[:]["loss_mask"].sum() == pytest.approx(sound["completion"].stats["loss_tokens"], rel=0.01)
    # Nothing to see in the loss: it is even as low as that of the right mask, since the template is easy to predict.
    assert mean_loss(shifted) < 2 * mean_loss(sound["completion"]) + 0.1
    with pytest.raises(UserError, match=r"replies do not end with the token that ends a turn.*first at row 0, token"):
        check_masks(shifted, tokenizer)


def test_a_mask_one_late_is_refused(sound, tokenizer, changed):
    late = changed(sound["completion"], lambda mask, _: np.pad(mask[:, :-1], ((0, 0), (1, 0))))
    with pytest.raises(UserError, match="first token of a document is a loss target"):
        check_masks(late, tokenizer)


@pytest.mark.parametrize(
    ("loss_on", "change", "message"),
    [
        ("completion", lambda mask, rows: 0 * mask, "no token of the first 40 packed sequences is a loss target"),
        ("completion", lambda mask, rows: (rows["position_ids"] > 0).astype(np.uint8), "every token counts"),
        ("all", lambda mask, rows: mask * (rows["position_ids"] != 5), "left out of a loss on all.*row 0, token 5"),
    ],
    ids=["empty", "full", "hole"],
)
def test_other_wrong_masks_are_refused(sound, tokenizer, changed, loss_on, change, message):
    with pytest.raises(UserError, match=message + ".*(show-batch)"):
        check_masks(changed(sound[loss_on], change), tokenizer)


def test_another_tokenizer_is_refused(sound, tokenizer, changed):
    with pytest.raises(UserError, match="made with another tokenizer"):
        check_masks(changed(sound["all"], tokenizer="other"), tokenizer)
