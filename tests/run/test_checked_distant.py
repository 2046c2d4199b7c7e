"""Conversations with distant answers that the run's own teacher is asked about first."""

import pytest
from rich.console import Console

from cli_tools import RECIPE, STAGE
from gendistill.data.distant import store
from gendistill.data.distant.make import WRONG
from gendistill.errors import UserError
from gendistill.recipe.loading import parse_recipe
from gendistill.run.distant import distant_records
from gendistill.run.run import Run


def test_a_teacher_that_answers_nothing_leaves_nothing(tmp_path, monkeypatch):
    """The embedded one knows its facts and sums, and has never been asked about a page."""
    monkeypatch.setattr(store, "BETWEEN_STATES", 4)
    monkeypatch.setattr(store, "FEW", 4)
    far = {"path": "embedded:text", "made": "distant", "distances": [128, 480], "checked": True}
    stages = {"far": STAGE | {"objective": "forward_kl", "train": ["mixer"], "data": "far", "sequence_length": 512}}
    data = {"text": [{"path": "embedded:text"}], "far": [far]}
    recipe = parse_recipe(RECIPE | {"data": data, "stages": stages}, origin="test")
    run = Run(recipe, tmp_path / "run", Console(quiet=True))
    with pytest.raises(UserError, match=rf"conversations [\d,]+ could not be used: .*[\d,]+ {WRONG}"):
        distant_records(run, recipe.data["far"][0], 0, sequence_length=512, tokens=20_000, measured=False)


def test_only_made_conversations_are_checked():
    with pytest.raises(UserError, match="'checked' is for 'made: distant'"):
        parse_recipe(RECIPE | {"data": {"text": [{"path": "embedded:text", "checked": True}]}}, origin="test")
