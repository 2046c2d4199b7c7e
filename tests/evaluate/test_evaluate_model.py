import json

import pytest
import torch
from pydantic import ValidationError

from gendistill.analysis.scores import TaskScore
from gendistill.errors import UserError
from gendistill.evaluate import run
from gendistill.evaluate.run import evaluate_model
from gendistill.recipe.evaluation import Evaluation


@pytest.fixture
def settings(files):
    return {
        "choice": {"kind": "multiple_choice", "path": files["choice_test"], "max_new_tokens": 3},
        "short": {"kind": "short_answer", "path": files["short_test"], "items": 6, "max_new_tokens": 8},
        "number": {
            "kind": "last_number",
            "path": files["number_test"],
            "shots": 2,
            "shots_path": files["number_train"],
            "max_new_tokens": 10,
        },
    }


@pytest.fixture
def asked(monkeypatch):
    """Names of the tasks that were really put to the model."""
    names = []

    def spy(model, tokenizer, evaluation, questions, *rest, ask=run._answer):
        names.append(questions.name)
        return ask(model, tokenizer, evaluation, questions, *rest)

    monkeypatch.setattr(run, "_answer", spy)
    return names


def evaluate(model, tokenizer, settings, folder, batch_size=8, sampling=None, **changes):
    arguments = {"seed": 0, "folder": folder, "label": "student", "progress": False} | changes
    evaluation = Evaluation(tasks=settings, batch_size=batch_size, **(sampling or {}))
    return evaluate_model(model, tokenizer, evaluation, **arguments)


def records(folder, task):
    return [json.loads(line) for line in (folder / "student" / f"{task}.jsonl").read_text().splitlines()]


def test_records_do_not_move_with_the_batch_size(model, tokenizer, settings, tmp_path):
    scores = {size: evaluate(model, tokenizer, settings, tmp_path / str(size), size) for size in (1, 7, 1000)}
    assert scores[1] == scores[7] == scores[1000]
    for task in settings:
        for size in ("7", "1000"):
            for one, other in zip(records(tmp_path / "1", task), records(tmp_path / size, task), strict=True):
                for scores in ("scores", "text_scores") if task == "choice" else ("scores",):
                    assert one.pop(scores) == pytest.approx(other.pop(scores), abs=1e-4)
                assert one == other


def test_scores_count_the_records(model, tokenizer, settings, tmp_path):
    scores = evaluate(model, tokenizer, settings, tmp_path)
    assert {name: task.items for name, task in scores.tasks.items()} == {"choice": 11, "short": 6, "number": 11}
    for name, score in scores.tasks.items():
        assert score == TaskScore.from_records(records(tmp_path, name))
        for record in records(tmp_path, name):
            best = max(record["scores"])
            assert record["ranked"] == record["candidates"][record["scores"].index(best)]
            assert record["ranking_correct"] == (record["ranked"] == record["candidates"][record["gold"][0]])


def test_a_killed_evaluation_goes_on(model, tokenizer, settings, tmp_path, asked, monkeypatch):
    whole = evaluate(model, tokenizer, settings, tmp_path / "whole")
    asked.clear()

    class Killed(Exception):
        pass

    store = run._store

    def die_in_the_second(folder, questions, *rest):
        if questions.name == "short":
            raise Killed
        store(folder, questions, *rest)

    monkeypatch.setattr(run, "_store", die_in_the_second)
    with pytest.raises(Killed):
        evaluate(model, tokenizer, settings, tmp_path / "killed")
    monkeypatch.setattr(run, "_store", store)
    first = tmp_path / "killed" / "student" / "choice.jsonl"
    written = first.stat().st_mtime_ns
    asked.clear()
    assert evaluate(model, tokenizer, settings, tmp_path / "killed") == whole
    assert asked == ["short", "number"]
    assert first.stat().st_mtime_ns == written
    for task in settings:
        assert records(tmp_path / "killed", task) == records(tmp_path / "whole", task)


@pytest.mark.parametrize("sampling", [None, {"temperature": 1.0, "top_p": 0.9}])
def test_one_killed_in_the_middle_of_a_task_asks_only_what_is_left(
    model, tokenizer, settings, tmp_path, monkeypatch, sampling
):
    whole = evaluate(model, tokenizer, settings, tmp_path / "whole", 3, sampling)
    add, finished = run.Partial.add, []

    def die(partial, answers):
        add(partial, answers)
        finished.extend(answers)
        if len(finished) == 11 + 6:  # all rankings and two batches of replies
            with open(partial.path, "a") as file:
                file.write('{"what": "reply", "place": 10, "ans')
            raise KeyboardInterrupt

    monkeypatch.setattr(run.Partial, "add", die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, settings, tmp_path / "killed", 3, sampling)
    again = []
    monkeypatch.setattr(run.Partial, "add", lambda partial, answers: (again.extend(answers), add(partial, answers)))
    only = {"choice": settings["choice"]}
    assert evaluate(model, tokenizer, only, tmp_path / "killed", 4, sampling).tasks["choice"] == whole.tasks["choice"]
    assert len(again) == 11 - 6
    assert records(tmp_path / "killed", "choice") == records(tmp_path / "whole", "choice")
    assert not list((tmp_path / "killed").rglob("*.partial.jsonl"))


def test_a_damaged_answer_is_asked_again_with_its_batch(model, tokenizer, settings, tmp_path, monkeypatch):
    """Alone in a batch it would round otherwise; and an answer file that a kill left beside whole records goes."""
    only = {"choice": settings["choice"]}
    evaluate(model, tokenizer, only, tmp_path / "whole", 3)
    evaluate(model, tokenizer, only, tmp_path / "damaged", 3)
    left = tmp_path / "damaged/student/choice.partial.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(run, "_store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        (tmp_path / "damaged/student/choice.meta.json").unlink()
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tokenizer, only, tmp_path / "damaged", 3)
    data = bytearray(left.read_bytes())
    lines = data.split(b"\n")
    data[len(lines[0]) + 1 + len(lines[1]) + 60] ^= 1  # in the second batch of rankings
    left.write_bytes(data)
    again = []
    add = run.Partial.add
    monkeypatch.setattr(run.Partial, "add", lambda partial, answers: (again.extend(answers), add(partial, answers)))
    evaluate(model, tokenizer, only, tmp_path / "damaged", 3)
    assert len(again) == 3 and not left.exists()
    written = [(tmp_path / run_ / "student/choice.jsonl").read_bytes() for run_ in ("whole", "damaged")]
    assert written[0] == written[1]
    left.write_text("left by a kill")
    evaluate(model, tokenizer, only, tmp_path / "damaged", 3)
    assert not left.exists()


def test_other_questions_do_not_take_up_what_was_left_of_a_killed_one(model, tokenizer, settings, tmp_path):
    left = tmp_path / "student" / "choice.partial.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text('{"sha256": "of something else"}\n{"what": "reply", "place": 0, "answer": {"text": "planted"}}\n')
    evaluate(model, tokenizer, {"choice": settings["choice"]}, tmp_path)
    assert "planted" not in (tmp_path / "student" / "choice.jsonl").read_text()


def test_all_rotations_are_asked_and_counted_in_the_original_order(model, tokenizer, settings, tmp_path):
    plain = evaluate(model, tokenizer, settings, tmp_path / "plain")
    choice = settings["choice"] | {"rotations": True}
    rotated = evaluate(model, tokenizer, {"choice": choice}, tmp_path / "rotated")
    assert rotated.tasks["choice"] == plain.tasks["choice"]
    for record in records(tmp_path / "rotated", "choice"):
        rotations = record["rotations"]
        assert len(rotations) == len(record["choices"])
        assert rotations[0]["reply"] == record["reply"] and rotations[0]["correct"] == record["generation_correct"]
        for by, rotation in enumerate(rotations):
            assert rotation["correct"] == (rotation["choice"] in record["gold"])
            if rotation["parsed"] is not None:
                moved = record["choices"][by:] + record["choices"][:by]
                assert moved["ABCDE".index(rotation["parsed"])] == record["choices"][rotation["choice"]]


def test_options_are_ranked_by_letter_and_by_text(model, tokenizer, settings, tmp_path):
    for form in ("letter", "text", "text_per_token", "text_per_byte"):
        scores = evaluate(model, tokenizer, {"choice": settings["choice"] | {"rank_by": form}}, tmp_path / form)
        for record in records(tmp_path / form, "choice"):
            sums, texts = record["text_scores"], record["choices"]
            by_form = {
                "letter": record["scores"],
                "text": sums,
                "text_per_token": [s / len(tokenizer(t)["input_ids"]) for s, t in zip(sums, texts, strict=True)],
                "text_per_byte": [s / len(t.encode()) for s, t in zip(sums, texts, strict=True)],
            }
            best = by_form[form].index(max(by_form[form]))
            assert record["ranked"] == record["candidates"][best]
            assert record["ranking_by"][form] == record["ranking_correct"] == (best in record["gold"])
        assert scores.tasks["choice"].ranking_correct == sum(
            r["ranking_correct"] for r in records(tmp_path / form, "choice")
        )


def test_what_changes_the_answers_asks_again(model, other_model, tokenizer, settings, tmp_path, asked):
    def asked_again(**changes):
        asked.clear()
        arguments = {"model": model, "tokenizer": tokenizer, "settings": settings, "folder": tmp_path} | changes
        evaluate(**arguments)
        return asked

    assert asked_again() == ["choice", "short", "number"]
    assert asked_again(batch_size=3) == []
    assert asked_again(settings=settings | {"choice": settings["choice"] | {"max_new_tokens": 4}}) == ["choice"]
    assert asked_again() == ["choice"]
    assert asked_again(seed=1) == ["choice", "short", "number"]
    assert asked_again(model=other_model, seed=1) == ["choice", "short", "number"]
    (tmp_path / "student" / "short.jsonl").write_text('{"id": 0}\n')
    assert asked_again(model=other_model, seed=1) == ["short"]
    (tmp_path / "student" / "short.meta.json").write_text("[]")
    assert asked_again(model=other_model, seed=1) == ["short"]


def test_every_weight_counts(model, tokenizer, settings, tmp_path, asked):
    """Not a sample of them: one number in the middle of the largest tensor is another model."""
    evaluate(model, tokenizer, settings, tmp_path)
    asked.clear()
    with torch.no_grad():
        model.model.embed_tokens.weight[130, 17] += 1e-3
    evaluate(model, tokenizer, settings, tmp_path)
    assert asked == ["choice", "short", "number"]


def test_records_that_were_changed_are_asked_again(model, tokenizer, settings, tmp_path, asked):
    evaluate(model, tokenizer, settings, tmp_path)
    asked.clear()
    path = tmp_path / "student/short.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"generation_correct": false', b'"generation_correct": true ', 1))
    assert path.read_bytes() != whole
    evaluate(model, tokenizer, settings, tmp_path)
    assert asked == ["short"] and path.read_bytes() == whole


def test_one_step_of_training_is_noticed(model, tokenizer, settings, tmp_path, asked):
    evaluate(model, tokenizer, settings, tmp_path)
    norm = model.model.layers[0].input_layernorm.weight
    with torch.no_grad():
        norm += 1e-4
    asked.clear()
    evaluate(model, tokenizer, settings, tmp_path)
    assert asked == ["choice", "short", "number"]


def test_modes_are_restored(model, tokenizer, settings, tmp_path):
    model.train()
    model.model.norm.eval()
    evaluate(model, tokenizer, settings, tmp_path, progress=True)
    assert model.training and model.model.layers.training and not model.model.norm.training
    # Training still works: nothing that the evaluation made inside inference mode is left in the model.
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()


def test_modes_are_restored_after_a_failure(model, tokenizer, settings, tmp_path, monkeypatch):
    model.train()
    monkeypatch.setattr(run, "_answer", lambda *rest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(model, tokenizer, settings, tmp_path)
    assert model.training


def test_too_long_a_prompt_is_refused_before_anything_is_asked(model, tokenizer, settings, tmp_path, asked):
    model.config.max_position_embeddings = 150
    with pytest.raises(UserError, match=r"task 'number' needs \d+ tokens .* has 150 positions"):
        evaluate(model, tokenizer, settings, tmp_path)
    assert asked == []


@pytest.mark.parametrize("name", ["a/b", "..", ""])
def test_names_that_cannot_be_files(model, tokenizer, settings, tmp_path, name):
    with pytest.raises(ValueError, match="names files"):
        evaluate(model, tokenizer, {name: settings["choice"]}, tmp_path)
    with pytest.raises(UserError, match="names files"):
        evaluate(model, tokenizer, settings, tmp_path, label=name)


def test_stop_strings_of_a_task_and_of_all_cut_replies(model, tokenizer, settings, tmp_path, asked):
    short = settings["short"]
    evaluate(model, tokenizer, {"short": short}, tmp_path)
    whole = [record["reply"] for record in records(tmp_path, "short")]
    stop = next(reply for reply in whole if reply)[0]
    expected = [reply.split(stop)[0].strip() for reply in whole]
    for task, everywhere in ((short | {"stop": stop}, {}), (short, {"stop": [stop]})):
        evaluate(model, tokenizer, {"short": task}, tmp_path, sampling=everywhere)
        assert [record["reply"] for record in records(tmp_path, "short")] == expected
    assert asked == ["short"] * 3  # other stop strings, other replies
    with pytest.raises(ValidationError):
        Evaluation(tasks={"short": short | {"stop": [""]}})


def test_skipped_records_are_counted_beside_the_others(model, tokenizer, tmp_path, write_records):
    rows = [{"question": f"Who is {n}?", "answer": f"king {n}"} for n in range(6)]
    rows.insert(2, {"question": "Which line?", "answer": "---"})
    task = {"kind": "short_answer", "path": write_records("kings.jsonl", rows), "max_new_tokens": 2}
    evaluate(model, tokenizer, {"kings": task}, tmp_path)
    meta = json.loads((tmp_path / "student/kings.meta.json").read_text())
    assert (meta["items"], meta["malformed"]) == (6, 1)
