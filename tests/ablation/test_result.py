"""ablation.json, which the queue writes and reports read."""

import json

import pytest

from gendistill.ablation.result import FILE, Ablation, Variant, read_ablation, write_ablation
from gendistill.errors import UserError

BASE = dict(name="base-seed0", axis=None, value="base", seed=0, overrides={}, folder="variants/base-seed0")
OTHER = BASE | dict(name="loss-l1-seed0", axis="loss", value="l1", folder="variants/loss-l1-seed0")
WHOLE = dict(name="six", base="demo.yaml", seeds=[0], axes={"loss": ["l1"]}, variants=[BASE, OTHER])


def test_what_is_written_is_read(tmp_path):
    shared = [dict(stage="conversion", variants=["base-seed0", "loss-l1-seed0"], run_once_in="variants/base-seed0")]
    ablation = Ablation(**WHOLE, shared=shared)
    write_ablation(tmp_path, ablation)
    assert read_ablation(tmp_path) == ablation
    assert [variant.row for variant in ablation.variants] == ["base", "loss=l1"]
    stored = json.loads((tmp_path / FILE).read_text())
    assert stored["format"] == 1
    assert stored["variants"][1] == OTHER | dict.fromkeys(("reason", "control", "tokens", "seconds")) | {
        "state": "waiting"
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format: "),
        ({"variants": [BASE, BASE]}, "base-seed0 stand twice"),
        ({"variants": [BASE | {"folder": "../elsewhere"}]}, "below the ablation's folder"),
        ({"variants": [BASE | {"state": "lost"}]}, "variants.0.state: "),
        ({"axes": {}}, "axes loss; known"),
        ({"shared": [dict(stage="conversion", variants=["a", "b"], run_once_in="a")]}, "no variants"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    (tmp_path / FILE).write_text(json.dumps(WHOLE | changes))
    with pytest.raises(UserError, match="damaged or of another version") as error:
        read_ablation(tmp_path)
    assert message in str(error.value)


def test_half_a_file_and_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="no ablation's folder"):
        read_ablation(tmp_path)
    (tmp_path / FILE).write_text('{"format": 1')
    with pytest.raises(UserError, match="is damaged"):
        read_ablation(tmp_path)


def test_names_are_names_of_folders():
    with pytest.raises(ValueError, match="names files"):
        Variant(**BASE | {"name": "../base"})
