"""Settings of stages and tasks: what they come to, and one line for each mistake: what was given and what to do."""

from copy import deepcopy

import pytest

from cli_tools import RECIPE
from gendistill.errors import UserError
from gendistill.evaluate.kinds.base import TaskSettings
from gendistill.names import OBJECTIVES, ROLES
from gendistill.recipe.evaluation import task_names
from gendistill.recipe.fields import result_settings, settings_key
from gendistill.recipe.loading import parse_recipe

STAGE = "logit_distillation"
MIXER = {"mixer": 1e-3}
ALL_RATES = {"mixer": 1e-3, "mlp": 1e-4, "norm": 1e-5}  # of what the stage trains


def stage(**changes):
    """The stage with settings changed, or left out where None."""
    recipe = deepcopy(RECIPE)
    settings = recipe["stages"][STAGE] | changes
    recipe["stages"][STAGE] = {name: value for name, value in settings.items() if value is not None}
    return parse_recipe(recipe, "recipe.yaml").stages[STAGE]


def test_an_objective_is_one_term_or_several_with_weights():
    assert stage().terms == {"forward_kl": 1.0}
    mixture = {"forward_kl": 1.0, "cross_entropy": 0.01, "hidden_cosine": 2.0}
    assert list(stage(objective=mixture).terms.items()) == list(mixture.items())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_its_pass_and_its_models(objective):
    chosen = stage(objective=objective, train=["mixer"], learning_rate=MIXER)
    place = objective.split("_")[0]
    assert chosen.compares == (place if place in ("mixer", "block") else "end_to_end")
    assert chosen.needs_teacher == (objective != "cross_entropy")


def test_a_mixture_with_cross_entropy_needs_the_teacher():
    assert stage(objective={"cross_entropy": 1.0, "forward_kl": 0.1}).needs_teacher


def test_learning_rates_go_to_all_roles_or_role_by_role():
    assert {stage(learning_rate=2e-4).peak_learning_rate(role) for role in ROLES} == {2e-4}
    chosen = stage(learning_rate=ALL_RATES | {"mixer_gate": 3e-3})
    rates = {role: chosen.peak_learning_rate(role) for role in ("mixer_qk", "mixer_gate", "mlp", "norm")}
    assert rates == {"mixer_qk": 1e-3, "mixer_gate": 3e-3, "mlp": 1e-4, "norm": 1e-5}
    assert stage(train=["mixer_conv"], learning_rate=MIXER).peak_learning_rate("mixer_conv") == 1e-3
    four = {f"mixer_{part}": 1e-3 for part in ("qk", "value", "conv", "gate")}
    assert stage(train=["mixer"], learning_rate=four).peak_learning_rate("mixer_conv") == 1e-3


def test_tokens_are_rounded_up_to_whole_steps():
    assert [stage(tokens=tokens).steps for tokens in (1, 128, 129, 256)] == [1, 1, 2, 2]


MISTAKES = {
    "unknown role": (
        dict(train=["mixer", "mixers"]),
        [".train.1", "unknown role 'mixers'", "did you mean 'mixer'?", "mixer_gate", "head"],
    ),
    "nothing trains": (dict(train=[]), ["train names no role", "name some of mixer, mixer_qk", "head"]),
    "train missing": (dict(train=None), [".train: missing", "no default", "give it a value"]),
    "learning rate missing": (dict(learning_rate=None), [".learning_rate: missing", "give it a value"]),
    "learning rate of roles missing": (
        dict(learning_rate=MIXER),
        ["learning_rate says nothing of mlp, norm, which train", "give each role a rate"],
    ),
    "learning rates of mixers missing": (
        dict(train=["mixer"], learning_rate={"mixer_qk": 1e-3}),
        ["says nothing of mixer_conv, mixer_gate, mixer_value, which train"],
    ),
    "learning rate of a role that does not train": (
        dict(learning_rate=ALL_RATES | {"head": 1e-3}),
        ["learning_rate names head, not under train", "add them there or take them out"],
    ),
    "learning rate of an unknown role": (
        dict(learning_rate=ALL_RATES | {"mixers": 1e-3}),
        [".learning_rate.mixers", "unknown role 'mixers'", "did you mean 'mixer'?"],
    ),
    "learning rate of zero": (dict(learning_rate=0), [".learning_rate: ", "greater than 0", "given: 0"]),
    "learning rate of a role below zero": (
        dict(learning_rate=ALL_RATES | {"norm": -1}),
        [".learning_rate.norm: ", "greater than 0", "given: -1"],
    ),
    "learning rate in words": (dict(learning_rate="fast"), [".learning_rate: ", "valid number", "given: 'fast'"]),
    "unknown objective": (
        dict(objective="kl"),
        [".objective: unknown objective 'kl'; Known: mixer_l2, ", "forward_kl"],
    ),
    "unknown term": (
        dict(objective={"forward_kl": 1, "ce": 1}),
        [".objective.ce: unknown objective 'ce'; Known: mixer_l2", ", cross_entropy,"],
    ),
    "misspelt objective": (
        dict(objective="forward_lk"),
        ["unknown objective 'forward_lk'; did you mean 'forward_kl'?"],
    ),
    "no term": (dict(objective={}), [".objective: ", "at least 1 item", "given: {}"]),
    "term of weight zero": (dict(objective={"forward_kl": 0}), [".objective.forward_kl: ", "greater than 0"]),
    "mixers and blocks": (
        dict(objective={"block_l2": 1, "mixer_l2": 1}, train=["mixer"]),
        ["objective mixes block_l2, mixer_l2", "different passes", "make them stages of their own"],
    ),
    "blocks and words": (
        dict(objective={"forward_kl": 1, "block_cosine": 1}, train=["mixer"]),
        ["objective mixes forward_kl, block_cosine", "make them stages of their own"],
    ),
    "temperature without a divergence": (
        dict(objective={"cross_entropy": 1, "hidden_l2": 1}, temperature=2),
        ["temperature changes forward_kl, reverse_kl, jensen_shannon only"],
    ),
    "temperature of zero": (dict(temperature=0), [".temperature: ", "greater than 0", "given: 0"]),
    "alignment of MLPs": (dict(objective="block_l2"), ["block_l2 trains mixers only, not mlp, norm"]),
    "head by hidden states": (
        dict(objective={"hidden_l2": 1, "hidden_cosine": 1}, train=["mixer", "head"]),
        ["hidden states", "take head out of train"],
    ),
    "alignment on completions": (
        dict(objective="mixer_l2", train=["mixer"], loss_on="completion"),
        ["mixer_l2 compares layers, so loss_on must be 'all'"],
    ),
    "micro-batch beyond a step": (dict(micro_batch=3), ["micro_batch 3 exceeds sequences_per_step 2"]),
    "unknown optimizer": (dict(optimizer="sgd"), [".optimizer: ", "'adamw' or 'adamw_8bit'", "given: 'sgd'"]),
    "expected loss upside down": (dict(expected_loss=[3, 1]), ["expected_loss is [lowest, highest], not [3.0, 1.0]"]),
    "half an expected loss": (dict(expected_loss=[3]), [".expected_loss.1: missing"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_clear_line(mistake):
    changes, needles = MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        stage(**changes)
    first, *lines = str(caught.value).splitlines()
    assert first == "recipe.yaml: 1 setting(s) to mend" and len(lines) == 1, caught.value
    assert lines[0].startswith(f"  stages.{STAGE}")
    for needle in needles:
        assert needle in lines[0], lines[0]
    assert "literal[" not in lines[0] and "(one)" not in lines[0] and "(mapping)" not in lines[0]


def test_settings_survive_writing_and_reading():
    chosen = stage(objective={"forward_kl": 1.0, "hidden_l2": 0.1}, learning_rate=ALL_RATES, expected_loss=[0, 9])
    assert type(chosen).model_validate(chosen.model_dump(mode="json")) == chosen


def task(**settings) -> TaskSettings:
    recipe = deepcopy(RECIPE)
    recipe["evaluation"] = {"tasks": {"asked": settings}}
    return parse_recipe(recipe, "recipe.yaml").evaluation.tasks["asked"]


def test_a_task_starts_from_a_file_and_the_recipe_wins():
    chosen = task(task="arc_easy", shots=0, max_new_tokens=8)
    assert (chosen.hub, chosen.subset) == ("allenai/ai2_arc", ("ARC-Easy",))
    assert (chosen.shots, chosen.max_new_tokens) == (0, 8)
    local = task(task="mmlu_redux", path="x.jsonl", shots_path="y.jsonl")
    assert (local.path, local.hub, local.subset, local.shots_hub, local.shots) == ("x.jsonl", None, (), None, 5)
    assert local.corrections.keep == ["ok", "expert"]
    mixed = task(task="mmlu_redux", shots_path="y.jsonl")
    assert (mixed.hub, mixed.shots_path, mixed.shots_hub) == ("edinburgh-dawg/mmlu-redux-2.0", "y.jsonl", None)


@pytest.mark.parametrize(
    ("content", "needles"),
    [
        ("kind: multiple_choice\nchoises: options", ["unknown setting 'choises'; did you mean 'choices'?", "own.yaml"]),
        ("kind: multiple_choice\ntask: arc_easy", ["unknown setting 'task'"]),
        ("- kind", ["a task is a mapping of settings, this is a list"]),
        ("path: x.jsonl", [".asked.kind: missing"]),
        ("kind: guess\npath: x.jsonl", [".asked.kind: ", "'last_word'", "given: 'guess'"]),
        ("kind: last_number", ["exactly one of 'path' and 'hub'"]),
    ],
)
def test_mistakes_in_a_task_file(tmp_path, content, needles):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        task(task=str(path))
    first, *lines = str(caught.value).splitlines()
    assert first == "recipe.yaml: 1 setting(s) to mend" and len(lines) == 1, caught.value
    assert lines[0].startswith("  evaluation.tasks.asked")
    for needle in needles:
        assert needle in lines[0], lines[0]


def test_a_task_file_that_is_no_yaml(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("kind: [")
    with pytest.raises(UserError, match=r"task .*own.yaml: not valid YAML"):
        task(task=str(path))


TASK_MISTAKES = {
    "unknown task": (dict(task="arc_esy"), ["no task file 'arc_esy'; did you mean 'arc_easy'?", "ending in .yaml"]),
    "task like no other": (dict(task="zzz"), ["no task file 'zzz'; known here: ", *task_names()]),
    "file that is not there": (dict(task="nowhere/own.yaml"), ["no task file 'nowhere/own.yaml'"]),
    "unknown setting": (dict(task="gsm8k", shot=1), [".asked.shot: unknown setting; did you mean 'shots'?"]),
    "unknown correction": (
        dict(task="mmlu_redux", corrections=dict(verdict="a", keep=[], replace=[], answer="b", answers="b")),
        [".asked.corrections.answers: unknown setting; did you mean 'answer'?"],
    ),
    "options of a number": (
        dict(kind="last_number", path="x", options=["a", "b"]),
        ["kind last_number has no options; that is for multiple_choice"],
    ),
    "tests of a choice": (dict(task="boolq", tests="x"), ["kind multiple_choice has no tests; that is for code"]),
    "rotations of a text": (dict(task="nq_open", rotations=True), ["has no rotations; that is for multiple_choice"]),
    "source of a needle": (
        dict(kind="needle", length=100, path="x"),
        ["kind needle has no path; that is for multiple"],
    ),
    "shots of a list": (dict(kind="recall", length=100, shots=1), ["kind recall has no shots"]),
    "needle without length": (dict(kind="needle"), ["kind needle needs length"]),
    "length of a choice": (
        dict(task="boolq", length=9),
        ["no length; that is for needle, needle_sum, fact, recall"],
    ),
    "options and another count": (dict(task="boolq", choice_count=3), ["choice_count 3 contradicts the 2 options"]),
    "two sources of examples": (dict(task="gsm8k", shots_path="x", shots_hub="y"), ["'shots_path' or 'shots_hub'"]),
}


@pytest.mark.parametrize("mistake", TASK_MISTAKES)
def test_each_mistake_in_a_task_is_one_clear_line(mistake):
    settings, needles = TASK_MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        task(**settings)
    first, *lines = str(caught.value).splitlines()
    assert first == "recipe.yaml: 1 setting(s) to mend" and len(lines) == 1, caught.value
    for needle in needles:
        assert needle in lines[0], lines[0]


def key(top=(), of_stage=(), of_evaluation=()):
    """The key of the recipe with settings changed."""
    recipe = deepcopy(RECIPE) | dict(top)
    recipe["stages"][STAGE] |= dict(of_stage)
    recipe["evaluation"] |= dict(of_evaluation)
    return settings_key(parse_recipe(recipe, "recipe.yaml"))


def test_marked_settings_are_those_that_change_no_result():
    unmarked = [dict(top={"seed": 1}), dict(of_stage={"tokens": 1}), dict(of_evaluation={"top_p": 0.5})]
    assert len({key(), *(key(**change) for change in unmarked)}) == 4
    safety = dict(checkpoint_every=7, expected_loss=[0, 9])
    assert key() == key(
        top={"device": "auto", "compile": True},
        of_stage=dict(micro_batch=1, gradient_checkpointing=True) | safety,
        of_evaluation={"batch_size": 3},
    )


def test_a_mark_holds_for_its_own_section_only():
    """A teacher's batches are part of what it writes, an evaluation's batches are not part of its scores."""
    recipe = deepcopy(RECIPE)
    prompts = [dict(kind="continuation", path="embedded:text")]
    recipe["synthesis"] = {"written": dict(prompts=prompts, batch_size=8)}
    left = result_settings(parse_recipe(recipe, "recipe.yaml"))
    assert left["synthesis"]["written"]["batch_size"] == 8
    assert "batch_size" not in left["evaluation"]
    assert (
        "micro_batch" not in left["stages"][STAGE]
        and left["stages"][STAGE]["tokens"] == RECIPE["stages"][STAGE]["tokens"]
    )


@pytest.mark.parametrize(
    ("place", "meant"),
    [
        (["sed"], "seed"),
        (["student", "mixr"], "mixer"),
        (["stages", STAGE, "schedule", "warmpu"], "warmup"),
        (["data", "text", 0, "pth"], "path"),
        (["synthesis", "written", "prompts", 0, "promt"], "prompt"),
        (["evaluation", "harness", "num_fewshots"], "num_fewshot"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest_of_its_section(place, meant):
    recipe = deepcopy(RECIPE)
    recipe["synthesis"] = {"written": dict(prompts=[dict(kind="continuation", path="embedded:text")])}
    recipe["evaluation"]["harness"] = dict(tasks=["arc_easy"])
    recipe["stages"][STAGE]["schedule"] = {}
    section = recipe
    for part in place[:-1]:
        section = section[part]
    section[place[-1]] = "x"
    with pytest.raises(UserError, match=f"unknown setting; did you mean '{meant}'"):
        parse_recipe(recipe, "recipe.yaml")
