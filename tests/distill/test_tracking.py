"""A stage whose loss went the wrong way says so by itself."""

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
        ("cross_entropy", [5.0], None),
    ],
)
def test_complaints(make_stage, objective, losses, says):
    stage = make_stage(objective=objective, train=["mixer"])
    found = complaint(stage, losses)
    assert (found is None) == (says is None) and (says or "") in (found or "")
