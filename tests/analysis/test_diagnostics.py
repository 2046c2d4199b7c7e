"""Figures and diagnoses of models whose fault is known: on records, then on models that have it."""

import json
import random

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cli_tools import RECIPE
from gendistill.analysis.diagnostics import MIN_ITEMS, Diagnostics, diagnose
from gendistill.evaluate.run import evaluate_model
from gendistill.files import seal
from gendistill.recipe.loading import parse_recipe
from gendistill.report.summary import _diagnoses
from gendistill.run.folder import RunFolder
from gendistill.run.summarise import summarise
from record_maker import choice_record, free_record, turned

LOOP = "The colour of the thing is the colour that it has. " * 12


def names(records) -> list[str]:
    return [diagnosis.name for diagnosis in diagnose(records).diagnoses]


def sound(items=40, wrong=5) -> list[dict]:
    """Right but for a few, at every letter as often."""
    return [
        choice_record(n, gold=n % 4, reply=letter, parsed=letter, ranked=place)
        for n in range(items)
        for place in [(n + (n < wrong)) % 4]
        for letter in ["ABCD"[place]]
    ]


def test_a_sound_model_has_no_diagnosis():
    assert names(sound()) == []


def test_figures_by_hand():
    records = [
        choice_record(0, gold=0, reply="A", parsed="A", reply_tokens=1),
        choice_record(1, gold=1, reply="A", parsed="A", ranked=2, reply_tokens=1, scores=[-3.0, -2.0, -1.5, -9.0]),
        choice_record(
            2, gold=2, reply="It is C", parsed=None, flexible_parsed="C", flexible_correct=True, reply_tokens=3
        ),
        choice_record(3, gold=3, reply=LOOP, parsed=None, reply_tokens=100, truncated=True),
    ]
    found = diagnose(records)
    assert (found.items, found.ranking, found.generation, found.flexible) == (4, 0.75, 0.25, 0.5)
    assert (found.unparsed, found.flexible_unparsed, found.truncated, found.repetitive) == (0.5, 0.25, 0.25, 0.25)
    assert found.tokens == (2.0, 100.0)
    assert found.letters == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0}
    assert found.gold_letters == dict.fromkeys("ABCD", 0.25)
    assert found.margin == pytest.approx((3 * 2.0 + 0.5) / 4)
    assert found.skill == pytest.approx((2 / 3, 0.0))
    assert found.rotations is None
    assert found.ranking_by == dict.fromkeys(("letter", "text", "text_per_token", "text_per_byte"), 0.75)
    assert found.diagnoses == ()  # too few items
    json.dumps(found.to_dict())


def test_several_right_letters_share_an_item():
    records = [choice_record(n) | {"gold": [1, 3]} for n in range(2)]
    assert diagnose(records).gold_letters == {"A": 0, "B": 0.5, "C": 0, "D": 0.5}


def test_rotations_by_hand():
    records = [
        choice_record(0, rotations=turned("A", "D", "C", "B")),  # follows the right option
        choice_record(1, rotations=turned("B", "A", "D", "C")),  # follows a wrong one
        choice_record(2, rotations=turned("A", "A", "A", "A")),
        choice_record(3, rotations=turned(None, None, None, None)),
        choice_record(4, rotations=turned("A", "D", "C", None)),
    ]
    found = diagnose(records).rotations
    assert found.accuracy == pytest.approx((4 + 0 + 1 + 0 + 3) / 20)
    assert (found.all_right, found.same_letter, found.same_choice) == (0.2, 0.2, 0.4)


def test_always_a():
    records = [choice_record(n, gold=n % 4, reply="A") for n in range(40)]
    assert names(records) == ["always answers A", "ranks well but does not generate it"]
    sentence = diagnose(records).diagnoses[0].sentence
    assert sentence == "100% of the replies that give a letter give A, which is right in 25% of the items."
    # All right answers are A: then a model that answers A knows.
    assert names([choice_record(n, gold=0, reply="A") for n in range(40)]) == []
    # It gives A where it gives a letter at all, and mostly it does not.
    rarely = [choice_record(n, gold=n % 4, ranked=0, parsed="A" if n < 10 else None) for n in range(40)]
    assert "always answers A" not in names(rarely)


def test_a_letter_that_sticks_is_seen_where_no_letter_leads():
    """Which letter it is depends on the question alone, whatever stands there."""
    records = [
        choice_record(n, n % 4, parsed="ABCD"[n // 10], ranked=0, rotations=turned(*["ABCD"[n // 10]] * 4))
        for n in range(40)
    ]
    assert names(records) == ["sticks to a letter"]


def test_prose():
    records = sound(wrong=0)
    for record in records[:30]:
        record |= dict(reply="That would be the one of grass.", parsed=None, generation_correct=False)
    assert names(records) == ["answers in prose", "ranks well but does not generate it"]
    assert "75% of the replies end by themselves" in diagnose(records).diagnoses[0].sentence
    assert "flexible extraction leaves 0% unparsed" in diagnose(records).diagnoses[0].sentence


def test_silence_is_no_prose():
    records = [choice_record(n, n % 4, reply="", parsed=None, ranked=0) for n in range(20)]
    assert names(records) == ["generates nothing"]


def test_never_stops_and_loops():
    endless = [free_record(n, n % 2 == 0, truncated=True, reply_tokens=64) for n in range(20)]
    assert names(endless) == ["never stops"]
    assert "(median 64 tokens)" in diagnose(endless).diagnoses[0].sentence
    assert names([record | {"reply": LOOP} for record in endless]) == ["never stops", "repeats itself"]
    assert names([*endless[:2], *(free_record(n, True, reply=LOOP if n < 4 else "x") for n in range(20))]) == [
        "repeats itself"
    ]


def test_a_ranking_at_chance_is_no_skill():
    """Ranking is right by guessing in a quarter of the items, which replies without options cannot be."""
    random.seed(0)
    records = [
        free_record(n, False, candidates=list("wxyz"), gold=[0], scores=[-1.0, -2.0, -3.0, -4.0], ranked="w")
        for n in range(200)
    ]
    guessing = [record | {"ranking_correct": random.random() < 0.25} for record in records]
    knowing = [record | {"ranking_correct": random.random() < 0.6} for record in records]
    assert names(guessing) == [] and names(knowing) == ["ranks well but does not generate it"]


def test_a_gap_within_chance_is_not_named():
    few = [choice_record(n, n % 4, parsed="ABCD"[n % 4 if n > 3 else 3 - n]) for n in range(12)]
    assert diagnose(few).skill[0] - diagnose(few).skill[1] > 0.2
    assert names(few) == []


def test_too_few_items_are_not_diagnosed():
    records = [choice_record(n, gold=n % 4, reply="A", ranked=0) for n in range(MIN_ITEMS)]
    assert names(records) == ["always answers A"] and names(records[1:]) == []


def test_a_task_that_is_not_ranked():
    found = diagnose([free_record(n, n < 5) for n in range(20)])
    assert isinstance(found, Diagnostics) and found.letters == found.gold_letters == {}
    assert found.ranking is found.skill is found.margin is None


def scripted(tokenizer, script: str, then: str | None = None):
    """A Qwen3 that generates `script` after every prompt, and then `then` over and over; without it, it ends its turn.

    Its layers add nothing, so that the next token depends on the last one alone: no character of either may return.
    """
    size = len(tokenizer)
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).eval()
    generated = tokenizer("\n" + script + (then or ""))["input_ids"]  # prompts end in a line break
    assert len(set(generated)) == len(generated)
    following = [*generated[1:], tokenizer.eos_token_id if then is None else generated[-len(then)]]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for before, after in zip(generated, following, strict=True):
            model.lm_head.weight[after, before] = 1
    return model


@pytest.mark.parametrize(
    ("script", "then", "named"),
    [
        ("A", None, ["always answers A"]),
        ("Somewhat big.", None, ["answers in prose"]),
        ("", "Words, ", ["never stops", "repeats itself"]),
    ],
)
def test_the_report_names_what_is_wrong(tokenizer, files, tmp_path, script, then, named):
    tasks = {"choice": dict(kind="multiple_choice", path=files["choice_test"], max_new_tokens=120, rotations=True)}
    recipe = parse_recipe(RECIPE | {"evaluation": {"tasks": tasks}}, "test")
    run = RunFolder(tmp_path / "run", recipe)
    run.student("conversion").mkdir(parents=True)
    conversion_report = dict(layers=[], teacher_loss=1.0, student_loss=2.0, uniform_loss=3.0)
    (run.student("conversion") / "conversion_report.json").write_text(json.dumps(conversion_report))
    seal(run.student("conversion"))
    scores = {
        label: evaluate_model(
            each, tokenizer, recipe.evaluation, seed=0, folder=run.evaluation, label=label, progress=False
        )
        for label, each in (
            ("teacher", scripted(tokenizer, "B")),
            ("0-conversion", scripted(tokenizer, script, then)),
        )
    }
    summary = summarise(run, scores.pop("teacher"), scores).read_text()
    diagnoses = summary.split("## Diagnoses")[1].split("\n## ")[0]
    lines = [line for line in diagnoses.splitlines() if line.startswith("- **choice, 0-conversion: ")]
    assert [line.split(": ")[1].split(".**")[0] for line in lines] == named
    assert "| choice | 0-conversion |" in diagnoses and "| choice | teacher |" in diagnoses
    stored = json.loads((run.root / "scores.json").read_text())["diagnostics"]["choice"]["0-conversion"]
    assert [diagnosis["name"] for diagnosis in stored["diagnoses"]] == named
    if script == "A":
        assert (stored["rotations"]["same_letter"], stored["rotations"]["all_right"]) == (1, 0)


def test_too_few_items_are_said():
    few, enough = sound(items=MIN_ITEMS - 1), sound(items=MIN_ITEMS)
    text = "\n".join(_diagnoses({"few": {"student": diagnose(few)}, "enough": {"student": diagnose(enough)}}))
    assert f"few, student: too few items to diagnose ({MIN_ITEMS - 1}; at least {MIN_ITEMS})" in text
    assert "Nothing stands out" not in text and "enough, student: too few" not in text
    assert "Nothing stands out" in "\n".join(_diagnoses({"enough": {"student": diagnose(enough)}}))
