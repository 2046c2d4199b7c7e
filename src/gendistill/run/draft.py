"""A recipe in the making, for a model that has none: what is chosen of it, and its file.

Sizes are those of the recipes that ship; counts (prompts, items, tokens) come from the time there is and a measured
speed.
"""

import json
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import yaml

from gendistill.compute import Compute
from gendistill.errors import UserError
from gendistill.files import EMBEDDED
from gendistill.models.families import DEFAULT_SINKS, DEFAULT_WINDOW
from gendistill.models.loading import load_config
from gendistill.plan.price import Planner
from gendistill.plan.refusal import refusal
from gendistill.recipe.data import Source
from gendistill.recipe.loading import Recipe, parse_recipe
from gendistill.run.checks import check_shapes
from gendistill.run.duration import evaluated_models, evaluation_tokens, placement_tokens, run_seconds
from gendistill.run.probe import Probe

# Recall prompts and their tokens, by which layers are chosen; the first that fits the time. Where none does, layers
# stand evenly spread.
PLACEMENTS = ((12, 4096), (8, 2048), (4, 1024), (2, 768))
ANSWER_ROOM = 64  # positions that a prompt leaves for its answer
SHARE = 0.3  # of the time, that the choice of layers may take, and the evaluation as much
ITEMS = (10, 100)  # of a task, at least and at most
EPOCHS = 4  # passes over the user's data
USED = 0.75  # of what those hold: some is held out, and packing wastes some
FAR = "far_distillation"
# Shares of a row's tokens in it: pages whose answers lie beyond the window, and chats that keep the rest as it is.
WEIGHTS = {"text": 2, "chats": 1}
FARTHEST = 0.9  # of a row, between an answer and what it is about


class Shape(NamedTuple):
    """Sizes on a device, in tokens.

    Attributes:
        step: of any stage.
        rows: lengths of a sequence of far_distillation; the first that fits in memory is taken.
        probe_steps: steps by which the price is measured.
    """

    step: int
    alignment: int
    rows: tuple[int, ...]
    conversion: int
    evaluation: int
    probe_steps: int


SHAPES = {
    "cpu": Shape(2048, 1024, (2048,), 2048, 1024, 3),
    "cuda": Shape(16_384, 4096, (16_384, 8192, 4096), 16_384, 4096, 20),
}
MICRO_BATCHES = {"cpu": (1,), "cuda": (4, 2, 1)}  # the first that fits in memory


class Stage(NamedTuple):
    """A stage: its share of the training time, what of its settings is its own, and what is said of it."""

    share: float
    settings: str
    comment: str


# The recurrence alone learns, in both: what windows see is the teacher's own attention, and stays as it is. With
# projections, MLPs and norms trained, short tasks fall below those of the untrained window (results/proof).
STAGES = {
    "qk_alignment": Stage(
        0.3,
        "objective: mixer_l2, train: [mixer_conv, mixer_gate], window_dropout: 0.5, learning_rate: 3.0e-3, "
        "weight_decay: 0.0",
        "each recurrence, fed the teacher's input; half of the sequences do without the window",
    ),
    FAR: Stage(
        0.7,
        "objective: forward_kl, loss_on: completion, train: [mixer_conv, mixer_gate], window_dropout: 0.3, "
        "learning_rate: 2.0e-3",
        "the teacher's next-token distributions at the replies, whose ground no window sees",
    ),
}


@dataclass
class Draft:
    """What is chosen so far.

    Attributes:
        first_line: of the file.
        sources: what the person gives, by mixture: `text`, `chats`; none for a student that is not trained.
        holds: tokens that each of them gives in a pass, as far as they were counted.
        budgets: tokens of each stage.
    """

    name: str
    teacher: str
    first_line: str
    compute: Compute
    positions: int
    layers: int
    seconds: float
    sources: dict[str, Source]
    holds: dict[str, int]
    micro_batch: int = 1
    placement: tuple[int, int] | None = PLACEMENTS[-1]  # None: evenly spread
    items: int = ITEMS[0]
    budgets: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        self.shape = SHAPES[self.compute.device]  # a device that is not in the table is a bug
        self.row = self.shape.rows[0]
        stages = STAGES if self.sources else {}
        self.budgets = {stage: self._most_steps(stage, self.shape.probe_steps) * self.step(stage) for stage in stages}

    def sequence_length(self, stage: str) -> int:
        lengths = {"qk_alignment": self.shape.alignment, FAR: self.row}
        return min(lengths[stage], self.positions)

    def sequences(self, stage: str) -> int:
        """In a step."""
        return self.shape.step // self.sequence_length(stage)

    def step(self, stage: str) -> int:
        """Tokens of a step."""
        return self.sequence_length(stage) * self.sequences(stage)

    @property
    def first(self) -> str:
        """The source of conversion and alignment: text where there is some."""
        return next(iter(self.sources), "text")

    def shares(self, stage: str) -> dict[str, float]:
        """Of the stage's tokens, by source."""
        names = list(self.sources) if stage == FAR else [self.first]
        whole = sum(WEIGHTS[name] for name in names)
        return {name: WEIGHTS[name] / whole for name in names}

    @property
    def window(self) -> int:
        # A window that sees whole prompts would be no hybrid, whatever the model's size.
        return min(DEFAULT_WINDOW, self.positions // 2)

    @property
    def evaluation_length(self) -> int:
        return min(self.shape.evaluation, self.positions - ANSWER_ROOM)

    def _most_steps(self, stage: str, steps: int) -> int:
        """So many steps, or those that the data hold in all passes.

        Raises:
            UserError: they do not hold one.
        """
        # Data that run dry end a stage in an error, hours in.
        for name, share in self.shares(stage).items():
            takes = round(self.step(stage) * share)
            held = round(self.holds[name] * EPOCHS * USED)
            if held < takes:
                raise UserError(
                    f"--{name} {self.sources[name].path}: holds {self.holds[name]:,} tokens, and a step takes "
                    f"{takes:,}, for which {EPOCHS} passes over {round(takes / EPOCHS / USED):,} are needed. Give more "
                    "data, or none for a student that is not trained"
                )
            steps = min(steps, held // takes)
        return steps

    def fit_memory(self) -> None:
        """Takes the longest rows, and for these the largest micro-batch, that fit in memory.

        Raises:
            UserError: none do.
        """
        device, memory = self.compute.memory()
        if memory is None or not self.sources:
            return
        reasons: list[str] = []
        for row, micro_batch in product(self.shape.rows, MICRO_BATCHES[self.compute.device]):
            self.row, self.micro_batch = row, micro_batch
            recipe = self.recipe()
            # By shapes alone: nothing is loaded.
            planner = Planner(load_config(self.teacher), check_shapes(recipe), self.compute)
            found = [refusal(name, stage, planner, device, memory) for name, stage in recipe.stages.items()]
            reasons = [reason for reason in found if reason is not None]
            if not reasons:
                return
        raise UserError("\n".join(reasons))

    def choose_counts(self, per_token: float) -> None:
        """Prompts of the placement and items of the tasks, by the seconds that a token takes in prefill."""
        most = self.seconds * SHARE
        for prompts, length in PLACEMENTS:
            # Beyond the window, else every set of layers would score alike; within the model's positions.
            self.placement = (prompts, min(length, self.positions - ANSWER_ROOM))
            if placement_tokens(self.recipe().student.keep_attention, self.layers) * per_token <= most:
                break
        else:
            self.placement = None
        # Fewer items than the least would say nothing, so that they may take more than their share.
        recipe = self.recipe()
        one = evaluated_models(recipe) * evaluation_tokens(recipe) / self.items * per_token
        self.items = max(ITEMS[0], min(ITEMS[1], int(most / one)))

    def choose_budgets(self, per_token: float, probes: dict[str, Probe]) -> None:
        """Tokens of each stage, by the tokens a second that a probe of it has measured."""
        without = self.parts(per_token, {})  # all but training, which no probe stands for here
        left = max(0.0, self.seconds - sum(without.values()))
        recipe = self.recipe()
        for stage, probe in probes.items():
            # Start-up is in the price, and small beside hours.
            seconds = left * STAGES[stage].share
            steps = int(seconds * probe.tokens_per_second(recipe.stages[stage]) / self.step(stage))
            self.budgets[stage] = self._most_steps(stage, max(1, steps)) * self.step(stage)

    def parts(self, per_token: float, probes: dict[str, Probe]) -> dict[str, float]:
        """Seconds of each part of the run."""
        return run_seconds(self.recipe(), self.layers, per_token, probes)

    def recipe(self) -> Recipe:
        # From the file and no other way, so that what is priced is what is written.
        return parse_recipe(yaml.safe_load(self.text()), self.first_line)

    def text(self) -> str:
        """The file."""
        keep = max(1, self.layers // 4)
        if self.placement is None:
            chosen = "evenly spread; `method: beam` measures which are best, and takes more hours"
            method = f"method: uniform, layers: {keep}"
        else:
            chosen = "chosen by measuring the teacher on recall prompts beyond the window"
            prompts, length = self.placement
            method = f"method: beam, layers: {keep}, prompts: {prompts}, length: {length}, window: {self.window}"
        # Nothing trains without data; then windows alone, of which nothing is new, lose least.
        mixer = "kda        # Kimi Delta Attention, beside the window" if self.sources else "window"
        bound = (
            "  log_decay_bound: -5.0  # of a token's forget gate; the fast kernels need one\n" if self.sources else ""
        )
        # Where nobody gives any: measured on, not learnt; what the untrained student loses.
        source = self.sources.get(self.first, Source(path="embedded:text"))
        data = f"  {self.first}: [{_flow(source)}]\n" + self._far()
        stages = "".join(self._stage(stage) for stage in self.budgets) or " {}  # nothing is trained"
        scored = f"  stages: [conversion, {FAR}]\n" if self.budgets else ""
        return f"""{self.first_line}
# Change what you like; src/gendistill/recipe/ and `gendistill init --schema` say what there is.
name: {self.name}
teacher: {json.dumps(self.teacher, ensure_ascii=False)}
device: {self.compute.device}

student:
  # {keep} of {self.layers} layers, {chosen}.
  keep_attention: {{{method}}}
  mixer: {mixer}
  window: {self.window}        # tokens that the other layers see, with the first ones
  sinks: {DEFAULT_SINKS}
{bound}
conversion: {{data: {self.first}, tokens: {self.shape.conversion}, sequence_length: {min(512, self.positions)}}}

data:
{data}
stages:{stages}
evaluation:
{scored}  tasks:{self._tasks()}
"""

    def _tasks(self) -> str:
        if self.teacher == EMBEDDED:  # which has learnt a few things, recall over long texts not among them
            kinds = {"facts": "short_answer", "choice": "multiple_choice", "arithmetic": "last_number"}
            rows = {name: f'kind: {kind}, path: "embedded:{name}", items: {self.items}' for name, kind in kinds.items()}
            comment, budget = "", 64
        else:
            made = f"length: {self.evaluation_length}, items: {self.items}"
            rows = {"needle": f"kind: needle, {made}", "recall": f"kind: recall, pairs: 16, {made}"}
            comment, budget = "  # beyond the window. `gsm8k: {task: gsm8k, items: 200}` and others need the hub", 32
        lines = [f"    {name}: {{{row}, max_new_tokens: {budget}}}" for name, row in rows.items()]
        return "\n".join([comment, *lines])

    def _far(self) -> str:
        """The mixture of far_distillation, a line a source."""
        if not self.sources:
            return ""
        # The text as pages with questions, whose answers are farther back than the window sees.
        distances = (self.window, round(FARTHEST * self.sequence_length(FAR)))
        as_rows = {"text": {"made": "distant", "distances": distances}, "chats": {}}
        lines = [
            f"    - {_flow(source.model_copy(update=as_rows[name] | {'weight': WEIGHTS[name]}))}\n"
            for name, source in self.sources.items()
        ]
        return "".join(["  far:\n", *lines])

    def _stage(self, stage: str) -> str:
        # Two lines a stage: what it does, and how large it is.
        settings = STAGES[stage]
        data = "far" if stage == FAR else self.first
        sequences = self.sequences(stage)
        sizes = f"sequence_length: {self.sequence_length(stage)}, sequences_per_step: {sequences}"
        return f"""
  {stage}:  # {settings.comment}
    {{{settings.settings},
     data: {data}, tokens: {self.budgets[stage]}, {sizes}, micro_batch: {min(self.micro_batch, sequences)}}}
"""


def _flow(source: Source) -> str:
    """A source as one line of YAML, without what is left to its defaults."""
    given = source.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(given, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True).strip()
