"""gendistill synthesize, and a stage that trains on what the teacher wrote."""

import json

import pytest
import yaml

from cli_tools import RECIPE
from gendistill.cli import distill, synthesize
from gendistill.errors import UserError

ANSWERS = dict(
    prompts=[
        dict(kind="last_number", path="embedded:arithmetic", records=16),
        dict(kind="multiple_choice", path="embedded:choice", records=6),
    ],
    max_new_tokens=48,
    batch_size=16,
)
FACTS = dict(kind="short_answer", path="embedded:facts", items=4, max_new_tokens=8)


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose stage reads the teacher's answers; the sets they come from are not in its evaluation."""

    def write(**changes):
        stage = RECIPE["stages"]["instruction_distillation"] | dict(sequence_length=128, tokens=2 * 128 * 4)
        settings = RECIPE | dict(
            data=dict(
                text=RECIPE["data"]["text"], instructions=[dict(synthesis="answers", messages="messages", epochs=9)]
            ),
            synthesis=dict(answers=ANSWERS),
            stages=dict(instruction_distillation=stage),
            evaluation=dict(tasks=dict(facts=FACTS)),
        )
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        return path

    return write


def test_the_teacher_writes_and_the_student_learns_it(recipe, tmp_path, capsys):
    path, run = recipe(), tmp_path / "run"
    synthesize.command(path, None, run)
    written = capsys.readouterr().out
    assert "replies kept" in written and "wrong_answer" in written and "letters: A" in written
    records = run / "synthesis/answers/records.jsonl"
    assert all(json.loads(line)["correct"] for line in records.read_text().splitlines())
    before = records.stat().st_mtime_ns
    synthesize.command(path, None, run, "answers")
    assert records.stat().st_mtime_ns == before  # what is done is not done again
    whole = records.read_bytes()
    records.write_bytes(whole.replace(b"1", b"2", 1))  # stages would train on it, with no sign of it
    with pytest.raises(UserError, match=r"records\.jsonl changed since written\. Delete that folder"):
        synthesize.command(path, None, run)
    records.write_bytes(whole)

    from gendistill.cli import convert

    convert.command(path, None, run)
    distill.command(path, None, run)
    assert (run / "1-instruction_distillation/student/model.safetensors").is_file()
    made = [
        json.loads(file.read_text())["stats"]
        for file in (run / "data").glob("*/stats.json")
        if '"completion"' in file.read_text()
    ]
    assert len(made) == 2  # to train on, and held out
    assert all(stats["sources"][0]["source"] == str(records) for stats in made)
    assert max(stats["loss_tokens"] for stats in made) > 0


def test_mistakes(recipe, tmp_path):
    with pytest.raises(UserError, match="there is no synthesis 'other'; the recipe's sets: answers"):
        synthesize.command(recipe(), None, tmp_path / "run", "other")
    with pytest.raises(UserError, match="data asks for synthesis 'answers'; the synthesis section has: nothing"):
        synthesize.command(recipe(synthesis={}), None, tmp_path / "run")
    text = dict(text=RECIPE["data"]["text"], instructions=RECIPE["data"]["instructions"])
    with pytest.raises(UserError, match="has no synthesis section"):
        synthesize.command(recipe(synthesis={}, data=text), None, tmp_path / "other")
    twice = dict(answers=ANSWERS | dict(samples=2))
    with pytest.raises(UserError, match="samples > 1 needs a temperature above 0"):
        synthesize.command(recipe(synthesis=twice), None, tmp_path / "run")
    misspelt = dict(answers=ANSWERS | dict(temprature=1))
    with pytest.raises(UserError, match="temprature: unknown setting; did you mean 'temperature'"):
        synthesize.command(recipe(synthesis=misspelt), None, tmp_path / "run")
