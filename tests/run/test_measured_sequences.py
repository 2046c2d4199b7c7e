"""What measuring a stage's loss costs beside training it."""

import pytest
from rich.console import Console

from cli_tools import RECIPE, STAGE
from gendistill.recipe.loading import parse_recipe
from gendistill.run.prepare import prepare_distant, prepare_held_out
from gendistill.run.probe import measured_sequences
from gendistill.run.run import Run

FAR = [{"path": "embedded:text", "made": "distant", "distances": [128, 480]}, {"path": "embedded:text"}]


@pytest.mark.parametrize(("student", "ways"), [({"mixer": "kda"}, 1), ({"mixer": "kda", "window": 16}, 2)])
def test_distant_answers_are_measured_with_the_windows_on_and_off(tmp_path, student, ways):
    stage = STAGE | {"objective": "forward_kl", "train": ["mixer"], "data": "far", "sequence_length": 512}
    stage |= {"tokens": 40 * 512, "sequences_per_step": 1, "micro_batch": 1, "held_out_every": 1000}
    changed = {"data": {"text": FAR[1:], "far": FAR}, "stages": {"far": stage}, "held_out": 0.2}
    recipe = parse_recipe(RECIPE | changed | {"student": RECIPE["student"] | student}, origin="test")
    run = Run(recipe, tmp_path / "run", Console(quiet=True))
    stage = run.recipe.stages["far"]
    records, distant = prepare_held_out(run, stage), prepare_distant(run, stage)
    assert len(records) == len(distant) == 1
    assert measured_sequences(run, stage) == 1 + ways
