"""The table of task kinds: a new one is a class and a line of the table, and is then known everywhere; others raise."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Literal

import pytest
from pydantic import Field

from cli_tools import RECIPE
from gendistill.analysis.scores import TaskScore
from gendistill.errors import UserError
from gendistill.evaluate.kinds import KINDS, grade
from gendistill.evaluate.kinds.base import FewShotTask
from gendistill.evaluate.kinds.item import Answer, Draws, Item
from gendistill.evaluate.kinds.shared.fields import Fields
from gendistill.evaluate.run import evaluate_model
from gendistill.recipe.evaluation import make_task
from gendistill.recipe.loading import parse_recipe


# All that a new kind takes: this class, in a file of its own, ...
class WithLetter(FewShotTask):
    """The reply must begin with a letter; flexibly, hold it anywhere."""

    scores_per_token = True

    kind: Literal["with_letter"] = "with_letter"
    letter: str = Field("letter", description="field with the letter")

    def read(self, fields: Fields, draws: Draws) -> Item:
        letter = fields.text([self.letter], "a letter")
        return Item(
            id=fields.index,
            kind=self.kind,
            question=self.user_text(fields),
            answers=(letter,),
            solution=letter * 3,
            subject=self.subject_of(fields),
        )

    def with_candidates(self, item: Item, others: Mapping[str, str], draws: Draws) -> Item:
        (right,) = item.answers
        return replace(
            item, candidates=(f"{right} is it", *(other for other in others.values() if other != right)), gold=(0,)
        )

    @classmethod
    def strict(cls, item: Item, reply: str, truncated: bool) -> Answer:
        return Answer(reply[:1] or None, reply[:1] in item.answers)

    @classmethod
    def flexible(cls, item: Item, reply: str, truncated: bool) -> Answer:
        return Answer(reply or None, item.answers[0] in reply)


# ... and this line of the table.
LINE = ("with_letter", WithLetter)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(KINDS, *LINE)


def recipe_with(**task):
    recipe = deepcopy(RECIPE)
    recipe["evaluation"] = {"tasks": {"asked": task}, "batch_size": 4}
    return parse_recipe(recipe, "recipe.yaml")


def test_adding_a_kind_is_a_class_and_a_line(registered, model, tokenizer, write_records, tmp_path):
    records = [{"question": f"Begin with {letter}.", "sign": letter} for letter in "aeioutnsr?"]
    examples = write_records("train.jsonl", [{"question": "Begin with x.", "sign": "x"}])
    settings = {"path": write_records("test.jsonl", records), "letter": "sign", "max_new_tokens": 12}
    evaluation = recipe_with(kind="with_letter", shots=1, shots_path=examples, **settings).evaluation
    assert type(evaluation).model_validate_json(evaluation.model_dump_json()) == evaluation

    scores = evaluate_model(model, tokenizer, evaluation, seed=0, folder=tmp_path, label="student", progress=False)
    written = [json.loads(line) for line in (tmp_path / "student/asked.jsonl").read_text().splitlines()]
    assert len(written) == 10 and scores.tasks["asked"] == TaskScore.from_records(written)
    assert len({record["reply"] for record in written}) > 1
    for record, source in zip(written, records, strict=True):
        assert record["prompt"].count("Begin with") == 2 and "xxx" in record["prompt"]  # the few-shot example
        assert record["candidates"][0] == f"{source['sign']} is it" and len(record["candidates"]) == 10
        best = record["scores"].index(max(record["scores"]))
        assert record["ranking_correct"] == (best == 0)
        assert record["generation_correct"] == record["reply"].startswith(source["sign"])
        assert record["flexible_correct"] == (source["sign"] in record["reply"])
    (grades,) = grade([Item(0, "with_letter", "?", answers=("e",))], ["the end"])
    assert (grades.strict.correct, grades.flexible.correct) == (False, True)


def test_settings_of_a_new_kind_are_told_from_those_of_others(registered):
    with pytest.raises(UserError, match="evaluation.tasks.asked: kind last_number has no letter; that is for with_le"):
        recipe_with(kind="last_number", path="x", letter="y")
    with pytest.raises(UserError, match="kind with_letter has no choices; that is for multiple_choice, short_answer"):
        recipe_with(kind="with_letter", path="x", choices="y")
    with pytest.raises(UserError, match=r"asked.leter: unknown setting; did you mean 'letter'\?"):
        recipe_with(kind="with_letter", path="x", leter="y")


@pytest.mark.parametrize("kind", ["with_letter", "", 3, None, ["needle"]])
def test_an_unknown_kind_lists_those_that_are_known(kind):
    with pytest.raises(UserError) as caught:
        recipe_with(kind=kind, path="x")
    known = ", ".join(f"'{name}'" for name in KINDS)
    assert str(caught.value).endswith(f"evaluation.tasks.asked.kind: unknown kind; known: {known} (given: {kind!r})")


def test_each_kind_goes_by_its_name_in_the_table():
    assert {name: kind.model_fields["kind"].default for name, kind in KINDS.items()} == {name: name for name in KINDS}
    for name, kind in KINDS.items():
        assert type(make_task(kind=name, **({"length": 99} if kind.is_made else {"path": "x"}))) is kind
        assert kind.__doc__ and kind.__module__ == f"gendistill.evaluate.kinds.{name}"
