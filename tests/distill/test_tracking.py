"""A stage whose loss went the wrong way says so by itself."""

import re

import pytest

from gendistill.distill.tracking import complaint


@pytest.mark.parametrize(
    ("objective", "losses", "says"),
    [
        ("forward_kl", [2.0, 1.5, 1.2, 1.0], None),
        ("forward_kl", [1.0, 1.1, 1.3, 1.4], "above where it began"),
        ("forward_kl", [1.0, float("nan")], "above where it began"),
        ("forward_kl", [3.0] * 30 + [0.1] + [3.5] * 10, "above where it began"),  # not by one lucky step
        ("mixer_l2", [5.0, 4.0, 3.0, 2.0], "above that of an output of zeros"),
        ("mixer_l2", [5.0, 4.0, 0.9, 0.8], None),
        ({"block_l2": 2.0}, [5.0, 4.0, 1.9, 1.8], None),
        ({"block_l2": 1.0, "block_cosine": 0.5}, [5.0, 4.0, 1.7, 1.6], r"output of zeros \(1\.5\)"),
        ({"forward_kl": 1.0, "hidden_l2": 1.0}, [5.0, 4.0, 3.7, 3.6], None),  # of zeros no KL is known
        ("cross_entropy", [5.0], None),
    ],
)
def test_complaints(make_stage, objective, losses, says):
    stage = make_stage(objective=objective, train=["mixer"])
    found = complaint(stage, [{"loss": loss} for loss in losses])
    assert found is None if says is None else re.search(says, found)


@pytest.mark.parametrize(
    ("objective", "before", "after", "says"),
    [
        ("forward_kl", 2.0, 1.9, None),
        ("forward_kl", 2.0, 2.1, r"loss on records held out ended above where it began \(2 -> 2\.1\): .*more data"),
        ("forward_kl", 2.0, float("nan"), "loss on records held out ended above"),
        ("mixer_l2", 3.0, 1.2, "loss on records held out ended at 1.2, above that of an output of zeros"),
    ],
)
def test_records_held_out_have_their_say_where_training_looks_well(make_stage, objective, before, after, says):
    metrics = [{"loss": loss, "held_out_loss": None} for loss in (0.9, 0.7, 0.5, 0.3)]
    metrics[0]["held_out_loss_before"], metrics[-1]["held_out_loss"] = before, after
    found = complaint(make_stage(objective=objective, train=["mixer"]), metrics)
    assert found is None if says is None else re.search(says, found)
