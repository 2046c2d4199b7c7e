"""One stage of the distillation."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveInt,
    Tag,
    model_validator,
)

from gendistill.names import OBJECTIVES, ROLES, Matched, Pass
from gendistill.recipe.fields import KEEPS_RESULTS, MAPPING, ONE, Fraction, Positive, Settings, one_of, one_or_mapping

Role = one_of(ROLES, "role")
Term = one_of(OBJECTIVES, "objective")
Objectives = Annotated[
    Annotated[Term, Tag(ONE)] | Annotated[dict[Term, Positive], Field(min_length=1), Tag(MAPPING)],
    one_or_mapping,
]
LearningRates = Annotated[Annotated[Positive, Tag(ONE)] | Annotated[dict[Role, Positive], Tag(MAPPING)], one_or_mapping]


HELD_OUT_SEQUENCES = 16  # of records that no stage trains on, in a measurement of the loss
# All measurements together take one for so many that are trained on, at most: they run forward and backward as well.
TRAINED_FOR_ONE_MEASURED = 16


class Schedule(Settings):
    """Learning rate over a stage, as a share of the peak: linear warm-up, a plateau, then a fall to `final`.

    `shape: cosine` falls from the end of the warm-up; `shape: wsd` (warm-up, stable, decay) falls linearly over the
    last `decay` share of the steps.
    """

    shape: Literal["wsd", "cosine"] = Field(
        "wsd", description="wsd: a plateau, then a linear fall; cosine: a fall from the end of the warm-up on"
    )
    # Shares, not steps: a stage with another budget keeps its shape.
    warmup: Fraction = Field(0.1, description="share of the steps in which the rate rises linearly")
    decay: Fraction = Field(0.1, description="share of the steps, the last ones, in which wsd falls")
    final: Fraction = Field(0.02, description="share of the peak that is left at the last step")

    @model_validator(mode="after")
    def check(self):
        if self.shape == "wsd" and self.warmup + self.decay > 1:
            raise ValueError("warmup + decay may not exceed 1")
        return self


class OnPolicy(Settings):
    """A stage's data in which the student writes replies itself, with the weights that it has at that step.

    Of a mixture's packed sequences a share keeps its prompts and gets the student's replies to them; the others stay
    as they are. Compared is what teacher and student say next along those replies (on-policy distillation, Agarwal et
    al., arXiv 2306.13649); beginnings of replies suffice, so that their length may grow (arXiv 2602.15260).
    """

    on_policy: str = Field(description="name of a mixture of conversations in the recipe's data section")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="of the sequences, those whose replies the student writes"
    )
    new_tokens: tuple[PositiveInt, PositiveInt] = Field(
        (64, 256), description="most tokens of a reply, at the first step and at the last; evenly more in between"
    )
    temperature: Positive = Field(1.0, description="divides the logits that replies are sampled from")
    reply_kl_bound: Annotated[Positive, KEEPS_RESULTS] = Field(
        0.1, description="reply-KL on held-out prompts, in nats a token, above which the stage does not run"
    )

    @model_validator(mode="after")
    def check(self):
        if self.new_tokens[0] > self.new_tokens[1]:
            raise ValueError(
                f"new_tokens is [at the first step, at the last] and may not fall, not {list(self.new_tokens)}"
            )
        return self

    def most_new_tokens(self, step: int, steps: int) -> int:
        """Budget of a reply at 0-based `step` of `steps`."""
        first, last = self.new_tokens
        # A single step has no way to grow: it takes what the stage is to come to.
        return last if steps == 1 else round(first + (last - first) * step / (steps - 1))

    def is_written(self, row: int) -> bool:
        """Whether the student writes the replies of the mixture's packed sequence of this number: evenly spread."""
        # Wherever the sum of shares passes a whole number: in any part of the data as many, give or take one.
        return int((row + 1) * self.share) > int(row * self.share)


Data = Annotated[Annotated[str, Tag(ONE)] | Annotated[OnPolicy, Tag(MAPPING)], one_or_mapping]


class Stage(Settings):
    """One stage of the distillation: an objective, what trains, on which data, for how long."""

    objective: Objectives = Field(
        description="what is minimised; several with their weights as {forward_kl: 1, cross_entropy: 0.01}"
    )
    temperature: Positive = Field(1.0, description="divides the logits of the divergences, which grow by its square")
    loss_on: Literal["all", "completion"] = Field(
        "all", description="which tokens are learnt: every one, or those of replies"
    )
    train: list[Role] = Field(description=f"roles whose parameters train: {', '.join(ROLES)}")
    data: Data = Field(
        description="name of a mixture in the recipe's data section; or {on_policy: NAME} for replies of the student"
    )
    tokens: PositiveInt = Field(description="token budget of the stage, rounded up to whole steps")
    sequence_length: Annotated[int, Field(ge=2)] = Field(description="tokens of a packed sequence")
    sequences_per_step: PositiveInt = Field(description="packed sequences in a step of the optimizer, of all processes")
    micro_batch: Annotated[PositiveInt, KEEPS_RESULTS] = Field(
        description="sequences in memory at once; changes nothing but memory and speed"
    )
    learning_rate: LearningRates = Field(description="peak; for all roles or role by role")
    schedule: Schedule = Field(Schedule(), description="of the learning rate over the stage")
    window_dropout: Fraction = Field(
        0.0, description="share of sequences in which the recurrence has to do without the window beside it"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="of AdamW; matrices only")
    # By the norm of all roles together, so that one that explodes holds the others back, too.
    gradient_clip: Positive = Field(1.0, description="largest norm of a step's gradient")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit keeps its state in 8 bits, by torchao; master weights stay float32"
    )
    gradient_checkpointing: Annotated[bool, KEEPS_RESULTS] = Field(
        False, description="layers run again in the backward pass: less memory, more time"
    )
    checkpoint_every: Annotated[PositiveInt, KEEPS_RESULTS] = Field(100, description="steps between checkpoints")
    held_out_every: Annotated[PositiveInt, KEEPS_RESULTS] = Field(
        100, description="steps between two measurements of the loss on records held out; first and last are always"
    )
    expected_loss: Annotated[tuple[float, float] | None, KEEPS_RESULTS] = Field(
        None, description="a step whose loss lies outside this range stops the run"
    )

    @property
    def terms(self) -> dict[str, float]:
        """The objective's terms and their weights; each is a row of `OBJECTIVES`."""
        return self.objective if isinstance(self.objective, dict) else {self.objective: 1.0}

    def terms_that_match(self, what: Matched) -> dict[str, float]:
        """Those of the terms that compare this, with their weights."""
        return {name: weight for name, weight in self.terms.items() if OBJECTIVES[name].matches == what}

    @property
    def compares(self) -> Pass:
        """The pass over the data that the objective needs."""
        return OBJECTIVES[next(iter(self.terms))].runs  # all terms need the same: `check` sees to it

    @property
    def needs_teacher(self) -> bool:
        return any(OBJECTIVES[name].needs_teacher for name in self.terms)

    @property
    def mixture(self) -> str:
        """Name of the mixture that the stage's sequences come from."""
        return self.data if self.on_policy is None else self.on_policy.on_policy

    @property
    def on_policy(self) -> OnPolicy | None:
        """How the student writes replies; None where it writes none."""
        return self.data if isinstance(self.data, OnPolicy) else None

    @property
    def steps(self) -> int:
        return -(-self.tokens // (self.sequence_length * self.sequences_per_step))

    @property
    def whole_tokens(self) -> int:
        """The budget rounded up to whole steps."""
        return self.steps * self.sequences_per_step * self.sequence_length

    @property
    def held_out_sequences(self) -> int:
        """Packed sequences of records held out that the loss is measured on, if there are as many."""
        trained = self.steps * self.sequences_per_step
        most = trained // (TRAINED_FOR_ONE_MEASURED * self.held_out_measurements)
        return min(HELD_OUT_SEQUENCES, max(1, most))

    @property
    def held_out_measurements(self) -> int:
        """How often the loss is measured on them: at the beginning, every so many steps, and at the end."""
        return 1 + -(-self.steps // self.held_out_every)

    def measures_held_out_after(self, step: int) -> bool:
        return step % self.held_out_every == 0 or step == self.steps

    def peak_learning_rate(self, role: Role) -> float:
        """The peak learning rate of a role that trains; `mixer` stands for all four mixer roles."""
        if not isinstance(self.learning_rate, dict):
            return self.learning_rate
        return self.learning_rate.get(role) or self.learning_rate["mixer"]

    @model_validator(mode="after")
    def check(self):
        if not self.train:
            raise ValueError(f"train names no role, so nothing would train; name some of {', '.join(ROLES)}")
        self._check_objective()
        if self.on_policy is not None:
            self._check_on_policy(self.on_policy)
        if self.micro_batch > self.sequences_per_step:
            raise ValueError(f"micro_batch {self.micro_batch} exceeds sequences_per_step {self.sequences_per_step}")
        if isinstance(self.learning_rate, dict):
            self._check_learning_rates(self.learning_rate)
        if self.expected_loss is not None and not self.expected_loss[0] < self.expected_loss[1]:
            raise ValueError(f"expected_loss is [lowest, highest], not {list(self.expected_loss)}")
        return self

    def _check_objective(self) -> None:
        """That its terms fit each other, and the rest of the stage fits them."""
        rows = [OBJECTIVES[name] for name in self.terms]
        if len({row.runs for row in rows}) > 1:
            raise ValueError(
                f"objective mixes {', '.join(self.terms)}: mixer_*, block_* and end-to-end terms need different "
                "passes; make them stages of their own"
            )
        if self.temperature != 1 and not any(row.divergence for row in rows):
            divergences = ", ".join(name for name, row in OBJECTIVES.items() if row.divergence)
            raise ValueError(f"temperature changes {divergences} only, and the objective has none of them")
        if self.compares != "end_to_end":
            if self.loss_on != "all":
                raise ValueError(f"objective {self.objective} compares layers, so loss_on must be 'all'")
            if outside := [role for role in self.train if not role.startswith("mixer")]:
                raise ValueError(f"objective {self.objective} trains mixers only, not {', '.join(outside)}")
        if "head" in self.train and all(row.matches == "hidden_states" for row in rows):
            raise ValueError("objective compares hidden states, which the head has no part in; take head out of train")

    def _check_on_policy(self, settings: OnPolicy) -> None:
        """That teacher and student can be compared on replies that the student writes."""
        divergences = [name for name, row in OBJECTIVES.items() if row.divergence]
        if others := [name for name in self.terms if name not in divergences]:
            # Its own words as targets would teach a student to be surer of whatever it says.
            raise ValueError(
                f"on_policy compares teacher and student on the student's own replies, so the objective is one of "
                f"{', '.join(divergences)}, not {', '.join(others)}"
            )
        if self.loss_on != "completion":
            raise ValueError(f"on_policy needs loss_on: completion, which says where replies are, not {self.loss_on}")
        if settings.new_tokens[1] >= self.sequence_length:
            raise ValueError(
                f"new_tokens {settings.new_tokens[1]} leaves no room for a prompt in sequence_length "
                f"{self.sequence_length}; a sequence holds both"
            )

    def _check_learning_rates(self, rates: dict[Role, float]) -> None:
        def covers(role: Role, roles) -> bool:
            return role in roles or (role.startswith("mixer_") and "mixer" in roles)

        mixer_roles = [role for role in ROLES if role.startswith("mixer_")]
        trained = {part for role in self.train for part in (mixer_roles if role == "mixer" else [role])}
        if missing := sorted(role for role in trained if not covers(role, rates)):
            raise ValueError(f"learning_rate says nothing of {', '.join(missing)}, which train; give each role a rate")
        if idle := sorted(
            role for role in rates if role not in trained and not (role == "mixer" and trained & set(mixer_roles))
        ):
            raise ValueError(f"learning_rate names {', '.join(idle)}, not under train; add them there or take them out")
