"""Micro-batches say of each token who predicts it and whether it counts, and come out the same every time."""

import numpy as np
import pytest
import torch

from gendistill.distill.batches import Loader


class Given:
    """A data set of rows written out by hand: lengths of documents, and whether the last one is padding."""

    def __init__(self, *layout, length=8):
        self.positions = np.zeros((len(layout), length), np.int32)
        self.mask = np.zeros((len(layout), length), np.uint8)
        for row, (lengths, padding) in enumerate(layout):
            assert sum(lengths) == length
            self.positions[row] = np.concatenate([np.arange(n) for n in lengths])
            self.mask[row] = self.positions[row] > 0
            if padding:
                self.mask[row, length - lengths[-1] :] = 0
        self.ids = np.arange(self.mask.size, dtype=np.int32).reshape(self.mask.shape) + 100  # a token says where it is

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, rows):
        return {"input_ids": self.ids[rows], "position_ids": self.positions[rows], "loss_mask": self.mask[rows]}


@pytest.fixture
def stage(make_stage):
    return make_stage(sequence_length=8, sequences_per_step=4, micro_batch=2, steps=1)


PACKED = Given(([3, 5], False), ([8], False), ([2, 2, 4], True), ([1, 7], True))
ALONE = Given(*[([8], False)] * 4)


def same(a, b):
    a, b = a.tensors(), b.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_targets_follow_their_predictors(stage):
    first, second = Loader(PACKED, stage).step(0).batches
    assert first.predictors.tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14]  # never a document's last token
    assert second.predictors.tolist() == [0, 2]
    for batch in (first, second):
        assert torch.equal(batch.targets, batch.input_ids.flatten()[batch.predictors + 1])
        assert batch.weights.tolist() == [1.0] * len(batch.predictors)


def test_boundaries_are_those_of_the_documents(stage):
    first, second = Loader(PACKED, stage).step(0).batches
    assert first.cu_seqlens.tolist() == [0, 3, 8, 16] and second.cu_seqlens.tolist() == [0, 2, 4, 8, 9, 16]
    assert torch.equal(first.documents.positions, torch.from_numpy(PACKED.positions[:2]).long())
    assert torch.equal(first.documents.starts, first.position_ids == 0)
    for batch in Loader(ALONE, stage).step(0).batches:
        assert batch.documents is None and batch.position_ids is None  # the plain path


def test_alignment_counts_tokens_of_documents_and_no_padding(stage, make_stage):
    valid_mask = torch.cat([batch.valid_mask for batch in Loader(PACKED, stage).step(0).batches])
    # A document of one token is neither learnt nor does it help to predict one.
    assert valid_mask.tolist() == [[1] * 8, [1] * 8, [1] * 4 + [0] * 4, [0] * 8]
    alignment = stage.model_copy(update={"objective": "block_l2"})
    assert Loader(PACKED, stage).step(0).loss_tokens == 13 + 2
    assert Loader(PACKED, alignment).step(0).loss_tokens == 8 + 8 + 4


def test_batches_of_fixed_shape_hold_the_same_and_entries_that_count_for_nothing(stage):
    batches = Loader(PACKED, stage, fixed_shape=True).step(0).batches
    assert [len(batch.predictors) for batch in batches] == [14, 2]  # multiples of an eighth of the tokens
    assert [len(batch.cu_seqlens) for batch in batches] == [6, 6]
    for batch, plain in zip(batches, Loader(PACKED, stage).step(0).batches, strict=True):
        real, boundaries = len(plain.predictors), len(plain.cu_seqlens)
        assert batch.weights.tolist() == [1.0] * real + [0.0] * (len(batch.weights) - real)
        assert torch.equal(batch.predictors[:real], plain.predictors)
        assert torch.equal(batch.targets[:real], plain.targets)
        assert batch.predictors.max() < 16 and len(batch.targets) == len(batch.predictors)
        assert torch.equal(batch.cu_seqlens[:boundaries], plain.cu_seqlens)
        assert (batch.cu_seqlens[boundaries:] == 16).all()  # documents without tokens
        assert batch.documents.fixed_shape


def test_fixed_shapes_of_unpacked_rows_stay_unpacked_and_mixed_ones_are_all_packed(stage):
    assert all(batch.documents is None for batch in Loader(ALONE, stage, fixed_shape=True).step(0).batches)
    some = Given(([8], False), ([8], False), ([4, 4], False), ([8], False))
    assert all(batch.documents is not None for batch in Loader(some, stage, fixed_shape=True).step(0).batches)


def test_processes_share_a_step_in_equal_parts(rows, make_stage):
    stage = make_stage(steps=3, micro_batch=3)
    data = rows(24)
    whole = Loader(data, stage).step(1)
    shares = [Loader(data, stage, rank=rank, processes=2).step(1) for rank in range(2)]
    assert {share.loss_tokens for share in shares} == {whole.loss_tokens} == {int(data.mask[8:16].sum())}
    ids = [torch.cat([batch.input_ids for batch in step.batches]) for step in (whole, *shares)]
    assert torch.equal(ids[0], data.ids[8:16])
    assert torch.equal(ids[1], ids[0][:4]) and torch.equal(ids[2], ids[0][4:])
    assert [len(batch.input_ids) for batch in whole.batches] == [3, 3, 2]
    assert [len(batch.input_ids) for batch in shares[0].batches] == [3, 1]


@pytest.mark.parametrize("fixed_shape", [False, True])
def test_the_thread_that_works_ahead_gives_the_same_steps_in_order(rows, make_stage, fixed_shape):
    stage = make_stage(steps=6, micro_batch=3)
    loader = Loader(rows(48), stage, fixed_shape=fixed_shape)
    for first in (0, 4, 6):
        steps = list(loader.steps(first))
        assert [step.index for step in steps] == list(range(first, 6))
        for step in steps:
            again = Loader(rows(48), stage, fixed_shape=fixed_shape).step(step.index)
            assert step.loss_tokens == again.loss_tokens and len(step.batches) == len(again.batches)
            assert all(same(a, b) for a, b in zip(step.batches, again.batches, strict=True))


def test_an_error_in_the_thread_reaches_the_loop(rows, make_stage):
    class Broken(rows):
        def __getitem__(self, rows):
            if rows.start >= 16:
                raise OSError("the disk is gone")
            return super().__getitem__(rows)

    steps = Loader(Broken(48), make_stage(steps=6)).steps(0)
    assert [next(steps).index, next(steps).index] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(steps)
