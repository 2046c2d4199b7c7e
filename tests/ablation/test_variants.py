"""The ablation file and its variants, before anything runs."""

from datetime import date

import pytest

from ablation_tools import BASE, LAST, write_ablation_file
from gendistill.ablation.file import read_ablation_file
from gendistill.ablation.sharing import Sharing, keys_of
from gendistill.ablation.variants import make_variants
from gendistill.errors import UserError
from gendistill.recipe.loading import parse_recipe

RATES = ("learning_rate", "weight_decay", "gradient_clip", "schedule.final")
PAIR = {"objective": {f"{LAST}.objective": ["reverse_kl"]}, "length": {f"{LAST}.tokens": [128, 256]}}


def variants(folder, overrides=(), **changes):
    return make_variants(read_ablation_file(write_ablation_file(folder, **changes)), overrides)


def test_one_axis_at_a_time_with_paired_seeds(tmp_path):
    made = variants(tmp_path, axes=PAIR, seeds=[3, 5], controls={"window": {"student.window": 32}, "teacher": None})
    rows = ["base", "objective-reverse_kl", "length-128", "length-256", "window", "teacher"]
    assert [each.variant.name for each in made] == [f"{row}-seed{seed}" for row in rows for seed in (3, 5)]
    assert [each.recipe.seed for each in made] == 6 * [3, 5]
    by_name = {each.variant.name: each for each in made}
    assert by_name["length-256-seed5"].recipe.stages["logit_distillation"].tokens == 256
    assert by_name["window-seed3"].recipe.student.mixer == "window" and not by_name["window-seed3"].recipe.stages
    assert by_name["teacher-seed5"].variant.folder == by_name["base-seed5"].variant.folder


def test_the_untrained_window_has_nothing_that_only_a_recurrence_has(tmp_path):
    bounded = {"student.window": 32, "student.log_decay_bound": -5}
    made = variants(tmp_path, axes=PAIR, settings=bounded, controls={"window": None})
    (window,) = (each.recipe.student for each in made if each.variant.control == "window")
    assert (window.mixer, window.window, window.log_decay_bound) == ("window", 32, None)


def test_crossed_axes_have_every_choice(tmp_path):
    made = variants(tmp_path, axes=PAIR, crossed=True, controls={})
    assert [each.variant.row for each in made] == [
        "base",
        "length=128",
        "length=256",
        "objective=reverse_kl",
        "objective+length=reverse_kl+128",
        "objective+length=reverse_kl+256",
    ]
    stage = made[-1].recipe.stages["logit_distillation"]
    assert (stage.objective, stage.tokens) == ("reverse_kl", 256)
    with pytest.raises(UserError, match="axes length and other are crossed, and both change"):
        variants(tmp_path, axes=PAIR | {"other": {f"{LAST}.tokens": [64]}}, crossed=True)


def test_names_of_folders_are_short_and_their_own(tmp_path):
    axes = {f"axis_{n}_with_a_long_name": {f"stages.block_alignment.{key}": [0.25]} for n, key in enumerate(RATES)}
    names = [each.variant.name for each in variants(tmp_path, axes=axes, crossed=True, controls={})]
    assert len(set(names)) == len(names) == 2 ** len(axes) and max(map(len, names)) < 100
    same = {"a": {"b-c": {f"{LAST}.tokens": 128}}, "a-b": {"c": {f"{LAST}.tokens": 256}}}
    with pytest.raises(UserError, match="two values come to the same name of a folder: a-b-c-seed0; give one another"):
        variants(tmp_path, axes=same, controls={})


def test_settings_of_all_variants(tmp_path):
    made = variants(tmp_path, ["held_out=0.1"], axes=PAIR, settings={f"{LAST}.weight_decay": 0.5})
    assert {each.recipe.held_out for each in made} == {0.1}
    stages = [each.recipe.stages["logit_distillation"] for each in made if each.recipe.stages]
    assert {stage.weight_decay for stage in stages} == {0.5}
    assert made[0].variant.overrides == {}


def test_a_teacher_is_trained_by_likelihood_on_the_replies(tmp_path):
    replies = BASE["stages"]["logit_distillation"] | dict(
        data="instructions", loss_on="completion", learning_rate={"mixer": 1e-3, "norm": 1e-4}
    )
    base = BASE | {"stages": BASE["stages"] | {"logit_distillation": replies}}
    made = variants(tmp_path, base=base, axes=PAIR, controls={"trained_teacher": None})
    recipe = made[-1].recipe
    assert recipe.student.keep_attention == list(range(8)) and list(recipe.stages) == ["logit_distillation"]
    stage = recipe.stages["logit_distillation"]
    assert (stage.objective, stage.train) == ("cross_entropy", ["attention", "norm"])
    assert stage.learning_rate == {"attention": 1e-3, "norm": 1e-4} and stage.tokens == replies["tokens"]


def test_all_values_that_do_not_fit_are_listed(tmp_path):
    axes = dict(
        objective={f"{LAST}.objective": ["reverse_k", "forward_kl"]},
        stage={"stages.logits.tokens": [128]},
        layers={"student.keep_attention": [[2, 80]]},
        frozen={f"{LAST}.train": [["mixer_qkv"]]},
        seed={"seed": [4]},
        items={"evaluation.tasks.facts.items": [9]},
        unasked={"never": {"evaluation.stages": []}},
        fine={f"{LAST}.tokens": [128]},
    )
    with pytest.raises(UserError) as error:
        variants(tmp_path, axes=axes, controls={"trained_teacher": None})
    lines = str(error.value).splitlines()
    assert lines[0].startswith("9 value(s) do not fit ")
    for where, what in {
        "axes.objective.reverse_k": "did you mean 'reverse_kl'?",
        "axes.objective.forward_kl": "is what the base has already",
        "axes.stage.128": "there is no 'logits'",
        "axes.layers.2-80": "80",
        "axes.frozen.mixer_qkv": "unknown role 'mixer_qkv'",
        "axes.seed.4": "changes seed: ",
        "axes.items.9": "changes evaluation.tasks: results of other teachers, seeds or items are not comparable",
        "axes.unasked.never": "evaluation.stages is empty",
        "controls.trained_teacher": "the base has no stage with loss_on: completion",
    }.items():
        place = next(number for number, line in enumerate(lines) if line.startswith(f"  {where}: "))
        assert what in "\n".join(lines[place : place + 2]), where
    assert "axes.fine" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, "axis: Extra inputs"),
        ({"seeds": [1, 1]}, r"seeds \[1, 1\]: one stands twice"),
        ({"axes": {}}, "axes: "),
        ({"axes": {"a b": {"seed": [1]}}}, "names files"),
        ({"axes": {"base": PAIR["length"]}}, "base names rows of another sort"),
        ({"axes": {"a": {"b": [1, "1"]}}}, "two values are called 1; name them"),
        ({"axes": {"a": {"b": [date(2026, 1, 31)]}}}, "date is not JSON serializable.*quote what is a text"),
        ({"controls": {"best": None}}, "controls.best"),
        ({"controls": {"teacher": {"seed": 1}}}, "takes no settings"),
    ],
)
def test_what_is_no_ablation_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_ablation_file(write_ablation_file(tmp_path, **changes))


def recipe(**stages):
    return parse_recipe(BASE | {"stages": stages, "evaluation": {"tasks": BASE["evaluation"]["tasks"]}}, "recipe")


def test_a_key_is_of_what_a_stage_depends_on():
    block, logit = (BASE["stages"][name] for name in ("block_alignment", "logit_distillation"))
    keys = keys_of(recipe(one=block, two=logit))
    assert list(keys) == ["evaluation of the teacher", "conversion", "one", "two"]
    # A later stage, and what changes speed alone, leave it as it is; the stages before it, and their order, do not.
    other = keys_of(recipe(one=block | {"micro_batch": 1}, two=logit | {"tokens": 128}))
    assert [name for name in keys if other[name] != keys[name]] == ["two"]
    changed = keys_of(recipe(one=block | {"tokens": 128}, two=logit))
    assert [name for name in keys if changed[name] != keys[name]] == ["one", "two"]
    assert keys_of(recipe(two=logit, one=block))["one"] != keys["two"] != keys_of(recipe(two=logit, one=block))["two"]
    # Of data, the mixtures that are used; of the tasks nothing but the teacher's own evaluation.
    whole = parse_recipe(BASE, "recipe")
    others = parse_recipe(BASE | {"data": BASE["data"] | {"instructions": BASE["data"]["text"]}}, "recipe")
    assert keys_of(others) == keys_of(whole) and keys_of(whole)["conversion"] == keys["conversion"]
    seed = keys_of(parse_recipe(BASE | {"seed": 1}, "recipe"))
    assert not set(seed.values()) & set(keys_of(whole).values())


def test_who_comes_first_makes_what_others_need(tmp_path):
    made = variants(tmp_path, axes=PAIR, seeds=[0, 1], controls={})
    sharing = Sharing(made, {})
    names = [each.variant.name for each in made]
    waits = {name: sharing.waits_for(name, names) for name in names}
    assert [name for name in names if waits[name] is None] == ["base-seed0", "base-seed1"]  # seeds share nothing
    assert waits["length-128-seed1"] == "base-seed1"
    # Where the base has failed, the next one does it.
    left = names[2:]
    assert sharing.waits_for(names[2], left) is None
    assert sharing.waits_for(names[4], left) == "objective-reverse_kl-seed0"
    assert {each.run_once_in for each in sharing.shared(failed=names[:1])} == {
        "variants/objective-reverse_kl-seed0",
        "variants/base-seed1",
    }
