"""summary.md and loss.svg of a small run whose records are made by hand: word for word, for every mixer and objective.

The whole text is tests/report/golden/summary.md. Where it is to change, the test's failure says where summary.md lies.
"""

import json
import re
from pathlib import Path

import pytest

from cli_tools import RECIPE, STAGE
from gendistill.analysis.scores import Scores, TaskScore
from gendistill.names import MIXERS, OBJECTIVES
from gendistill.recipe.loading import parse_recipe
from gendistill.recipe.stage import Stage
from gendistill.report.summary import Results, loss_label, plot_losses, write_summary
from record_maker import choice_record, free_record, turned

GOLDEN = (Path(__file__).parent / "golden/summary.md").read_text()
HYBRID = "2 layers keep softmax attention, 6 hold Kimi Delta Attention."
LAYERS = range(8)
REPORT = dict(teacher_loss=0.5, student_loss=3.25, uniform_loss=7.625)


def choice(items: int, right: int, ranked: int) -> list[dict]:
    """Of `items` so many answered and ranked right; all others are answered and ranked A."""
    made = []
    for number in range(items):
        gold = number % 4
        letter = "ABCD"[gold if number < right else 0]
        # Right under every rotation, or A whatever stands there.
        rotations = turned(*("ABCD"[(gold - by) % 4] for by in range(4)), gold=gold)
        if number >= right:
            rotations = turned(*"AAAA", gold=gold)
        place = gold if number < ranked else 0
        made.append(choice_record(number, gold, reply=letter, parsed=letter, ranked=place, rotations=rotations))
    return made


MODELS = {
    "teacher": {"choice": choice(24, right=24, ranked=24), "programs": [free_record(n, True) for n in range(10)]},
    "0-conversion": {"choice": choice(24, right=4, ranked=20), "programs": [free_record(n, False) for n in range(10)]},
    "1-logit_distillation": {
        "choice": choice(24, right=12, ranked=16),
        "programs": [free_record(n, n < 5, reply="Here | there.\n" * (20 if n < 2 else 1)) for n in range(10)],
    },
}


@pytest.fixture
def summary(tmp_path):
    def write(mixer="kda", keep_attention=(2, 5), mixer_in_layer=None) -> str:
        student = dict(keep_attention=list(keep_attention), mixer=mixer, mixer_in_layer=mixer_in_layer or {})
        tasks = dict(
            choice=dict(kind="multiple_choice", path="embedded:choice", max_new_tokens=4, rotations=True),
            programs=dict(kind="code", path="programs.jsonl", max_new_tokens=64),
        )
        stages = {"logit_distillation": RECIPE["stages"]["logit_distillation"]}
        settings = RECIPE | dict(student=student, stages=stages, evaluation=dict(tasks=tasks))
        teacher, *students = (
            Scores(label, {task: TaskScore.from_records(items) for task, items in tasks.items()})
            for label, tasks in MODELS.items()
        )
        replaced = [layer for layer in LAYERS if layer not in keep_attention]
        results = Results(
            root=tmp_path,
            recipe=parse_recipe(settings, "test"),
            conversion_report=REPORT | {"layers": [{"layer": layer} for layer in replaced]},
            teacher=teacher,
            students={scores.label: scores for scores in students},
            records=MODELS,
            metrics={"logit_distillation": [dict(tokens=128 * step, loss=1 / step) for step in range(1, 5)]},
            evaluation=tmp_path / "evaluation",
        )
        return write_summary(results).read_text()

    return write


def test_the_whole_summary_word_for_word(summary, tmp_path):
    assert summary() == GOLDEN, f"{tmp_path}/summary.md differs from tests/report/golden/summary.md"
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores) == ["teacher", "paired", "significance", "rank_flips", "diagnostics"]
    row = scores["significance"]["1-logit_distillation"]["choice"]
    assert list(row) == ["items", "ranking", "generation", "gap"]
    assert list(row["generation"]) == ["retention", "corrected_retention", "p", "minimum_detectable_effect"]
    assert scores["diagnostics"]["programs"]["1-logit_distillation"]["repetitive"] == 0.2


@pytest.mark.parametrize(
    ("mixer", "label"),
    [
        ("kda", "Kimi Delta Attention"),
        ("gated_deltanet", "Gated DeltaNet"),
        ("gla", "Gated Linear Attention"),
        ("mamba2", "Mamba-2"),
        ("lightning", "Lightning Attention"),
    ],
)
def test_every_mixer_is_called_by_its_name(summary, mixer, label):
    hybrid = f"2 layers keep softmax attention, 6 hold {label}."
    assert summary(mixer) == GOLDEN.replace(HYBRID, hybrid)
    pure = f"No layer keeps softmax attention, 8 hold {label}."
    expected = GOLDEN.replace(HYBRID, pure).replace("embedded -> hybrid", "embedded -> pure student")
    assert summary(mixer, keep_attention=()) == expected
    one = f"1 layer keeps softmax attention, 7 hold {label}."
    assert summary(mixer, keep_attention=[0]) == GOLDEN.replace(HYBRID, one)


def test_no_mixer_is_missing_above():
    assert set(MIXERS) == {"kda", "gated_deltanet", "gla", "mamba2", "lightning", "window"}


def test_mixed_placements_count_each_mixer(summary):
    assert HYBRID in GOLDEN
    mixed = "2 layers keep softmax attention, 2 hold Mamba-2, 3 hold Gated Linear Attention, 1 holds Gated DeltaNet."
    exceptions = {0: "mamba2", 1: "mamba2", 6: "gated_deltanet"}
    assert summary("gla", mixer_in_layer=exceptions) == GOLDEN.replace(HYBRID, mixed)
    pure = "No layer keeps softmax attention, 7 hold Lightning Attention, 1 holds Kimi Delta Attention."
    written = summary("lightning", keep_attention=(), mixer_in_layer={7: "kda"})
    assert pure in written and "hybrid" not in written


LABELS = {
    "mixer_l2": "relative squared error",
    "mixer_cosine": "1 - cosine",
    "block_l2": "relative squared error",
    "block_cosine": "1 - cosine",
    "hidden_l2": "relative squared error",
    "hidden_cosine": "1 - cosine",
    "forward_kl": "KL(teacher || student), nats per token",
    "reverse_kl": "KL(student || teacher), nats per token",
    "jensen_shannon": "Jensen-Shannon divergence, nats per token",
    "cross_entropy": "cross entropy, nats per token",
}
MIXTURES = [
    (
        dict(objective={"forward_kl": 1, "cross_entropy": 0.01}),
        "1 × KL(teacher || student), nats per token\n+ 0.01 × cross entropy, nats per token",
    ),
    (dict(objective={"mixer_l2": 0.5}), "0.5 × relative squared error"),
    (dict(objective={"block_l2": 1, "block_cosine": 2}), "1 × relative squared error\n+ 2 × (1 - cosine)"),
    (dict(objective="reverse_kl", temperature=2), "KL(student || teacher), nats per token\nat temperature 2"),
    (dict(objective={"jensen_shannon": 1}), "Jensen-Shannon divergence, nats per token"),
]


def stage(**changes) -> Stage:
    return Stage(**STAGE | dict(train=["mixer"]) | changes)


def test_every_objective_is_called_by_its_name_and_unit(tmp_path):
    assert set(LABELS) == set(OBJECTIVES)
    stages = {f"by_{name}": stage(objective=name) for name in LABELS}
    assert {name.removeprefix("by_"): loss_label(each) for name, each in stages.items()} == LABELS
    labels = [line for name, label in LABELS.items() for line in (f"by_{name}", label)]
    assert drawn(tmp_path / "loss.svg", stages) == sorted(labels)


@pytest.mark.parametrize(("settings", "label"), MIXTURES)
def test_a_mixture_says_its_weights(tmp_path, settings, label):
    assert loss_label(stage(**settings)) == label
    assert drawn(tmp_path / "loss.svg", {"mixture": stage(**settings)}) == sorted(["mixture", *label.split("\n")])


def test_equal_losses_are_drawn_to_equal_files(tmp_path):
    rows = [{"tokens": step, "loss": 1 / step} for step in (1, 2, 3)]
    for name in ("one.svg", "other.svg"):
        plot_losses(tmp_path / name, {"first": stage(objective="forward_kl")}, {"first": rows})
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


def test_no_stage_no_plot(tmp_path):
    assert not plot_losses(tmp_path / "loss.svg", {"first": stage(objective="forward_kl")}, {"first": []})
    assert not (tmp_path / "loss.svg").exists()


def drawn(path: Path, stages: dict[str, Stage]) -> list[str]:
    """Titles and labels of the plot, sorted; beside the shapes of its letters an SVG says what they are."""
    metrics = {name: [dict(tokens=128 * step, loss=1 / step) for step in (1, 2, 4)] for name in stages}
    assert plot_losses(path, stages, metrics)
    texts = re.findall(r"<!-- (.+?) -->", path.read_text())
    return sorted(text for text in texts if text != "tokens" and re.match("[^$]*[a-z]{2}", text))
