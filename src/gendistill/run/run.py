"""A run: a recipe and its folder, checked, with the teacher at hand; the steps of a run work on it.

Each step is a file beside this one: convert, distill, evaluate, synthesize, probe, summarise.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gendistill import distributed
from gendistill.compute import Compute, start_compute
from gendistill.console import Console
from gendistill.data.dates import freeze_date
from gendistill.distill.sharding import check_divisible
from gendistill.distributed import as_rank_zero_says, on_rank_zero, report_errors_once
from gendistill.errors import UserError
from gendistill.models.loading import load_config, load_model, load_tokenizer
from gendistill.plan.price import Planner
from gendistill.plan.refusal import refusal
from gendistill.recipe.loading import Recipe
from gendistill.recipe.stage import Stage
from gendistill.run.checks import check_disk, check_recipe, check_roles, check_same, check_shapes, check_tasks
from gendistill.run.folder import RunFolder
from gendistill.run.teacher import check_teacher, check_tokenizer
from gendistill.run.times import Times


class Run:
    """A recipe and its folder, with the teacher loaded when first needed.

    Attributes:
        console: of the first process; the others' prints nothing.
        config: of the student; until its layers are placed, with as many evenly spread.
        times: of what the steps do.
    """

    @report_errors_once
    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        console: Console,
        trains: Sequence[str] | None = (),
        *,
        evaluates: bool = False,
        makes_results: bool = True,
    ):
        """Checks everything that can be checked before the first computation.

        Args:
            trains: the stages that are to be trained, those that are done among them; None for all.
            evaluates: the run is to be evaluated some day, so that its tasks are checked as well.
            makes_results: the folder is taken for this process alone, and its teacher recorded if none is yet.

        Raises:
            UserError: see `start_compute`, `check_recipe`, `check_tasks`, `check_memory`, `check_disk`, `RunFolder`; or
                there is no such stage.
        """
        self.recipe = recipe
        self.makes_results = makes_results
        # First, since it joins the processes: from here on they wait for each other.
        self.compute = start_compute(recipe)
        check_same(recipe)
        # GPUs of several kinds: the strategies of all processes must be one.
        self.memory = as_rank_zero_says(self.compute.memory)
        self.console = console if distributed.is_rank_zero() else Console(quiet=True)
        self.folder = RunFolder(output, recipe)
        self.times = Times(self.folder.times if makes_results else None)
        # Reads configurations and the first record of each source, no weights.
        self.config = check_recipe(recipe, self.folder.placement)
        # Of all stages, not only those to be trained now: the run will come to them.
        for name, stage in recipe.stages.items():
            check_divisible(name, stage, self.compute.processes)
        check_roles(recipe, self.planner)
        self.check_memory(list(recipe.stages) if trains is None else trains)
        if trains is None and recipe.stages:
            check_disk(self.folder.root, self.planner.whole_disk(recipe))
        if evaluates and distributed.is_rank_zero():
            # With a tokenizer of its own: the run's is told a day, which there is none of yet.
            check_tasks(recipe, self.config, load_tokenizer(recipe.teacher, self.config.vocab_size))
        # A folder appears only after all checks have passed: a mistake leaves nothing behind.
        distributed.barrier()  # no process looks at the folder while the first one makes it
        if makes_results or not self.folder.root.exists():
            on_rank_zero(self.folder.create)

    def read_placement(self) -> None:
        """The student's configuration with the layers that the run's placement chose, if there is one."""
        self.config = check_shapes(self.recipe, self.folder.placement)

    def check_memory(self, stages: Sequence[str]) -> None:
        """Raises UserError if a stage that is not done cannot fit on this device, or is not in the recipe."""
        if unknown := [name for name in stages if name not in self.recipe.stages]:
            known = ", ".join(self.recipe.stages) or "none"
            raise UserError(f"there is no stage {', '.join(unknown)}; the recipe's stages are {known}")
        device, memory = self.memory
        if memory is None:
            return
        left = [name for name in stages if not self.folder.has_student(name)]
        refused = (refusal(name, self.recipe.stages[name], self.planner, device, memory) for name in left)
        # All stages at once: mending one after the other would take a start each.
        if reasons := [reason for reason in refused if reason is not None]:
            raise UserError("\n".join(reasons))

    @cached_property
    def planner(self) -> Planner:
        return Planner(load_config(self.recipe.teacher), self.config, self.compute, self.memory[1])

    def compute_for(self, stage: Stage) -> Compute:
        """How a stage computes: with many processes, as whole replicas or sharded by FSDP."""
        return replace(self.compute, strategy=self.planner.strategy(stage))

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """Whole and frozen, in the precision of the arithmetic."""
        return self.load_teacher()

    def release_teacher(self) -> None:
        """Makes room; the next use loads it again."""
        self.__dict__.pop("teacher", None)  # where cached_property keeps it

    def load_teacher(self) -> PreTrainedModel:
        """A teacher that is the caller's own, to shard or change."""
        model = load_model(self.recipe.teacher, self.compute.dtype, self.compute.device)
        # Behind loading, which fetches what is on the hub; and once, by one process.
        if distributed.is_rank_zero():
            check_teacher(self.folder, self.recipe.teacher, records=self.makes_results)
        return model.requires_grad_(False)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's; its template is told the day of the run, by every step and after every restart."""
        tokenizer = load_tokenizer(self.recipe.teacher, self.config.vocab_size)
        if distributed.is_rank_zero():
            check_tokenizer(self.folder, tokenizer, records=self.makes_results)
        freeze_date(tokenizer, self.folder.day)
        return tokenizer
