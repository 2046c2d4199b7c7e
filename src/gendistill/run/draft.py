"""A recipe in the making, for a model that has none: what is chosen of it, and its file.

Sizes are those of the recipes that ship; counts (prompts, items, tokens) come from the time there is and a measured
speed.
"""

import json
from dataclasses import dataclass, field
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


class Shape(NamedTuple):
    """Sizes on a device; `probe_steps` are those by which the price is measured."""

    sequence_length: int
    sequences_per_step: int
    conversion_tokens: int
    evaluation_length: int
    probe_steps: int


SHAPES = {"cpu": Shape(1024, 2, 2048, 1024, 3), "cuda": Shape(2048, 16, 16_384, 4096, 20)}
MICRO_BATCHES = {"cpu": (1,), "cuda": (8, 4, 2, 1)}  # the first that fits in memory


class Stage(NamedTuple):
    """A stage: its share of the training time, what of its settings is its own, and what is said of it."""

    share: float
    settings: str
    comment: str


STAGES = {
    "block_alignment": Stage(
        0.4,
        "objective: block_l2, train: [mixer], window_dropout: 0.5, learning_rate: 1.0e-3, weight_decay: 0.0",
        "each block, fed the teacher's input; half of the sequences do without the window",
    ),
    "logit_distillation": Stage(
        0.3,
        "objective: forward_kl, train: [mixer, mlp, norm], window_dropout: 0.25, learning_rate: 5.0e-5",
        "the teacher's next-token distributions, at every token",
    ),
    "instruction_distillation": Stage(
        0.3,
        "objective: forward_kl, loss_on: completion, train: [mixer, mlp, norm], learning_rate: 5.0e-5",
        "the same, at the tokens of the replies alone",
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
        # Of each stage the mixture: blocks and logits are matched on text where there is some, replies on chats.
        first = next(iter(self.sources), None)
        mixtures = {"block_alignment": first, "logit_distillation": "text", "instruction_distillation": "chats"}
        self.mixtures = {stage: name for stage, name in mixtures.items() if name in self.sources}
        self.budgets = {stage: self._most_steps(stage, self.shape.probe_steps) * self.step for stage in self.mixtures}

    @property
    def sequence_length(self) -> int:
        return min(self.shape.sequence_length, self.positions)

    @property
    def step(self) -> int:
        """Tokens of a step."""
        return self.sequence_length * self.shape.sequences_per_step

    @property
    def window(self) -> int:
        # A window that sees whole prompts would be no hybrid, whatever the model's size.
        return min(DEFAULT_WINDOW, self.positions // 2)

    @property
    def evaluation_length(self) -> int:
        return min(self.shape.evaluation_length, self.positions - ANSWER_ROOM)

    def _most_steps(self, stage: str, steps: int) -> int:
        """So many steps, or those that the data hold in all passes.

        Raises:
            UserError: they do not hold one.
        """
        mixture = self.mixtures[stage]
        # Data that run dry end a stage in an error, hours in.
        tokens = round(self.holds[mixture] * EPOCHS * USED)
        if tokens < self.step:
            raise UserError(
                f"--{mixture} {self.sources[mixture].path}: holds {self.holds[mixture]:,} tokens, and a step takes "
                f"{self.step:,}, for which {EPOCHS} passes over {round(self.step / EPOCHS / USED):,} are needed. Give "
                "more data, or none for a student that is not trained"
            )
        return min(steps, tokens // self.step)

    def fit_memory(self) -> None:
        """Takes the largest micro-batch that fits in memory.

        Raises:
            UserError: none does.
        """
        device, memory = self.compute.memory()
        if memory is None or not self.mixtures:
            return
        reasons: list[str] = []
        for micro_batch in MICRO_BATCHES[self.compute.device]:
            self.micro_batch = micro_batch
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
        shares = sum(STAGES[stage].share for stage in self.mixtures)
        recipe = self.recipe()
        for stage, probe in probes.items():
            # Start-up is in the price, and small beside hours.
            seconds = left * STAGES[stage].share / shares
            steps = int(seconds * probe.tokens_per_second(recipe.stages[stage]) / self.step)
            self.budgets[stage] = self._most_steps(stage, max(1, steps)) * self.step

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
        conversion = next(iter(self.sources), "text")
        # Measured on, not learnt: what the untrained student loses.
        mixtures = self.sources or {"text": Source(path="embedded:text")}
        data = "".join(f"  {name}: [{_flow(source)}]\n" for name, source in mixtures.items())
        stages = "".join(self._stage(stage) for stage in self.mixtures) or " {}  # nothing is trained"
        scored = f"  stages: [conversion, {[*self.mixtures][-1]}]\n" if self.mixtures else ""
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
conversion: {{data: {conversion}, tokens: {self.shape.conversion_tokens}, sequence_length: {min(512, self.positions)}}}

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

    def _stage(self, stage: str) -> str:
        # Two lines a stage: what it does, and how large it is.
        settings, data = STAGES[stage], self.mixtures[stage]
        sizes = f"sequence_length: {self.sequence_length}, sequences_per_step: {self.shape.sequences_per_step}"
        return f"""
  {stage}:  # {settings.comment}
    {{{settings.settings},
     data: {data}, tokens: {self.budgets[stage]}, {sizes}, micro_batch: {self.micro_batch}}}
"""


def _flow(source: Source) -> str:
    """A source as one line of YAML, without what is left to its defaults."""
    given = source.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(given, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True).strip()
