"""The steps of a run: convert, distil stage by stage, evaluate. Each takes up what the one before left."""

import gc
import json
import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from gendistill import distributed
from gendistill.analysis.scores import Scores
from gendistill.compute import arithmetic_of, device_memory, peak_flops
from gendistill.data.dataset import PackedDataset, prepare
from gendistill.data.masks import check_masks
from gendistill.data.sources import read_documents
from gendistill.distill.batches import rows_as_tensors
from gendistill.distill.engine import Pace, StepMetrics
from gendistill.distill.objectives import unmeasured_conversion_report
from gendistill.distill.roles import set_trainable
from gendistill.distill.sharding import check_divisible, shard
from gendistill.distill.stage import train_stage
from gendistill.distributed import errors_said_once, on_rank_zero
from gendistill.errors import UserError
from gendistill.evaluate.harness import check_harness, run_harness
from gendistill.evaluate.items import load_items
from gendistill.evaluate.run import evaluate_model
from gendistill.files import folder_in_one_piece, write_atomically
from gendistill.models.calibration import calibrate
from gendistill.models.conversion import convert, mean_loss, measure_conversion, weights_sha256
from gendistill.models.families import student_config
from gendistill.models.loading import load_config, load_model, load_tokenizer
from gendistill.models.proof import prove_kept_attention
from gendistill.names import INITIALISATIONS
from gendistill.ops import set_backend
from gendistill.plan.price import Planner
from gendistill.plan.refusal import refusal
from gendistill.recipe.data import Source
from gendistill.recipe.loading import Recipe
from gendistill.recipe.stage import Stage
from gendistill.run.folder import FREE, RunFolder
from gendistill.run.probe import Probe, short_stage, timing
from gendistill.synthesize.run import RECORDS, synthesize

CONVERSION_REPORT = "conversion_report.json"


class Run:
    """A recipe and its folder, with the teacher loaded when first needed."""

    @errors_said_once
    def __init__(self, recipe: Recipe, output: Path, console: Console, trains: Sequence[str] | None = ()):
        """Checks everything that can be checked before the first computation.

        Args:
            trains: the stages that are to be trained, those that are done among them; None for all.

        Raises:
            UserError: see `check_recipe`, `check_memory`, `RunFolder`; or there is no such stage, or CUDA or a back end
                is asked for and not there.
        """
        self.recipe = recipe
        self.device = _device(recipe.device)
        distributed.start(self.device)
        self.console = console if distributed.is_rank_zero() else Console(quiet=True)
        set_backend(recipe.backend)
        self.arithmetic = arithmetic_of(recipe, self.device)
        self.dtype = self.arithmetic.dtype
        self.config = check_recipe(recipe)
        for name, stage in recipe.stages.items():
            check_divisible(name, stage)
        self.folder = RunFolder(output, recipe)
        self.check_memory(list(recipe.stages) if trains is None else trains)
        distributed.barrier()  # nobody looks at the folder while the first process makes it
        on_rank_zero(self.folder.create)

    @cached_property
    def planner(self) -> Planner:
        return Planner(load_config(self.recipe.teacher), self.config, self.arithmetic)

    def check_memory(self, stages: Sequence[str]) -> None:
        """Raises UserError if a stage that is not done cannot fit on this device, or is not in the recipe.

        With many processes the models are sharded, and nothing is refused.
        """
        if unknown := [name for name in stages if name not in self.recipe.stages]:
            known = ", ".join(self.recipe.stages)
            raise UserError(f"there is no stage {', '.join(unknown)}; the recipe's stages are {known}")
        device, memory = device_memory(self.device)
        if memory is None or distributed.processes() > 1:
            return
        left = [name for name in stages if not self.folder.has_student(name)]
        refused = (refusal(name, self.recipe.stages[name], self.planner, device, memory) for name in left)
        if reasons := [reason for reason in refused if reason is not None]:
            raise UserError("\n".join(reasons))

    @cached_property
    def teacher(self):
        return load_model(self.recipe.teacher, self.dtype, self.device).requires_grad_(False)

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.recipe.teacher, self.config.vocab_size)

    @errors_said_once
    def synthesize(self, name: str) -> dict:
        """Has the teacher write a set of records, unless that is done; returns its statistics.

        Raises:
            UserError: see `synthesize.run.synthesize`; or there is no such set.
        """
        if name not in self.recipe.synthesis:
            known = ", ".join(self.recipe.synthesis) or "none"
            raise UserError(f"there is no synthesis '{name}'; the recipe's sets: {known}")
        folder = self.folder.synthesis(name)
        if not (folder / "stats.json").exists():
            on_rank_zero(
                lambda: synthesize(
                    self.teacher.eval(),
                    self.tokenizer,
                    self.recipe.synthesis[name],
                    self.recipe.evaluation.tasks,
                    seed=self.recipe.seed,
                    folder=folder,
                    teacher=self.recipe.teacher,
                    console=self.console,
                )
            )
        return json.loads((folder / "stats.json").read_text())

    def sources(self, mixture: str) -> list[Source]:
        """A mixture's sources; what the teacher is to write is written first, and becomes a file."""
        found = []
        for source in self.recipe.data[mixture]:
            if source.synthesis is not None:
                self.synthesize(source.synthesis)
                path = self.folder.synthesis(source.synthesis) / RECORDS
                source = source.model_copy(update={"synthesis": None, "path": str(path)})
            found.append(source)
        return found

    def prepare(self, mixture: str, sequence_length: int, tokens: int, loss_on: str = "all") -> PackedDataset:
        sources = self.sources(mixture)

        def make() -> PackedDataset:
            return prepare(
                sources,
                self.tokenizer,
                sequence_length=sequence_length,
                tokens=tokens,
                loss_on=loss_on,
                seed=self.recipe.seed,
                cache=self.folder.data,
            )

        prepared = on_rank_zero(make)
        return make() if prepared is None else prepared

    def prepare_stage(self, stage: Stage) -> PackedDataset:
        """The rows that a stage consumes."""
        return self.prepare(stage.data, stage.sequence_length, stage.whole_tokens, stage.loss_on)

    def convert(self) -> dict:
        """Converts and certifies, unless that is done; returns the conversion report."""
        if not self.folder.has_student("conversion"):
            settings = self.recipe.conversion
            dataset = self.prepare(settings.data, settings.sequence_length, settings.tokens)
            on_rank_zero(lambda: self._convert(dataset))
        return json.loads((self.folder.student("conversion") / CONVERSION_REPORT).read_text())

    def _convert(self, dataset: PackedDataset) -> None:
        chosen = self.recipe.conversion.initialisation
        rows = rows_as_tensors(dataset, 4, self.device)
        prove_kept_attention(self.teacher, self.config, rows)
        losses = {}
        # The chosen one last: its student is the one that is saved.
        for name in sorted(INITIALISATIONS, key=lambda name: name == chosen):
            student, accounting = convert(self.teacher, self.config, self.recipe.seed)
            calibrate(self.teacher, student.to(self.device), rows, name)
            losses[name] = mean_loss(student, rows)
        with folder_in_one_piece(self.folder.student("conversion")) as partial:
            student.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            measured = measure_conversion(
                self.teacher,
                student,
                accounting,
                rows,
                name=self.recipe.teacher,
                seed=self.recipe.seed,
                losses_by_initialisation=losses,
            )
            conversion_report = measured.to_dict() | {"weights_sha256": weights_sha256(partial)}
            write_atomically(partial / CONVERSION_REPORT, json.dumps(conversion_report, indent=1))
            measured.check()

    @errors_said_once
    def distil(self, name: str) -> None:
        """Runs one stage, unless it is done.

        Raises:
            UserError: the stage before has not been run, or its weights are not the converted ones.
        """
        if self.folder.has_student(name):
            return
        stage, before = self.recipe.stages[name], self.folder.before(name)
        source = self.folder.student(before)
        if not source.is_dir():
            raise UserError(
                f"stage {name} starts from the student of '{before}', which is not there yet: run that first"
            )
        conversion_report = json.loads((source / CONVERSION_REPORT).read_text())
        weights = weights_sha256(source)
        if weights != conversion_report["weights_sha256"]:
            raise UserError(
                f"{source}: the weights are not those its conversion report was written for. Delete it and run again."
            )
        dataset = self.prepare_stage(stage)
        check_masks(dataset, self.tokenizer)

        history = self._train(name, stage, source, dataset, conversion_report | {"weights_sha256": weights})
        self.console.print(
            f"{name}: loss {history[0].loss:.4f} -> {history[-1].loss:.4f} over {history[-1].tokens:,} tokens"
        )

    def _train(
        self, name: str, stage: Stage, source: Path, dataset: PackedDataset, conversion_report: dict
    ) -> list[StepMetrics]:
        """Trains the student in `source` and saves it as the student of the stage."""
        # Loaded in float32 for the masters; `train_stage` rounds the model to the precision of the arithmetic.
        student = load_model(str(source), torch.float32, self.device).train()
        self.console.print(_ledger_table(name, stage, set_trainable(student, stage.train)))
        history, optimizer = train_stage(
            stage,
            self._teacher_for(stage),
            student,
            dataset,
            conversion_report=conversion_report,
            vocabulary=len(self.tokenizer),
            dtype=self.dtype,
            device=self.device,
            fast=self._fast(),
            folder=self.folder.point(name),
            fingerprint=_fingerprint(stage, dataset.key, conversion_report["weights_sha256"], str(self.dtype)),
            title=name,
            console=self.console,
            pace=self._pace(stage),
        )
        weights = optimizer.weights()
        trained = {weight: weights[weight] for weight in optimizer.masters}
        on_rank_zero(lambda: self._save(name, student, source, trained, conversion_report))
        return history

    def _teacher_for(self, stage: Stage):
        """The teacher; with many processes one of its own, sharded, and none where the objective needs none."""
        if not stage.needs_teacher:
            return None
        if distributed.processes() == 1:
            return self.teacher
        self.__dict__.pop("teacher", None)  # whole, for evaluation; there is no room for both
        teacher = load_model(self.recipe.teacher, self.dtype, self.device).requires_grad_(False)
        shard(teacher, compares="end_to_end", dtype=self.dtype, device=self.device)
        return teacher

    def _fast(self) -> bool:
        """Whether to compile: one process only, since nothing here was tried with FSDP."""
        return self.arithmetic.compiled and distributed.processes() == 1

    def _pace(self, stage: Stage) -> Pace:
        peak = peak_flops(torch.cuda.get_device_name()) if self.device == "cuda" else None
        return Pace(self.planner.price(stage).flops_per_token, peak and peak * distributed.processes())

    def probe(self, name: str) -> Probe:
        """Runs the first steps of a stage on an untrained student, with the run's data and teacher, and takes the time.

        Steps are written to the run's folder, and nothing else comes of them: give the run a folder of its own.
        """
        stage = short_stage(self.recipe.stages[name])
        dataset = self.prepare_stage(stage)
        if self.device == "cuda":
            gc.collect()  # the stage before leaves cycles of models and graphs
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        student, _ = convert(self.teacher, self.config, self.recipe.seed)
        student = student.to(self.device, torch.float32).train()
        set_trainable(student, stage.train)
        began = time.perf_counter()
        history, _ = train_stage(
            stage,
            self._teacher_for(stage),
            student,
            dataset,
            conversion_report=unmeasured_conversion_report(self.config),
            vocabulary=len(self.tokenizer),
            dtype=self.dtype,
            device=self.device,
            fast=self._fast(),
            folder=self.folder.point(name),
            fingerprint={},
            title=f"probe of {name}",
            console=self.console,
        )
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else None
        return timing([step.seconds for step in history], seconds, stage.sequences_per_step, peak)

    def _save(
        self, name: str, student, source: Path, trained: dict[str, torch.Tensor], conversion_report: dict
    ) -> None:
        """What is frozen comes from the folder the stage started from, to the bit: in memory it may be rounded."""
        frozen = {weight: x for file in source.glob("*.safetensors") for weight, x in load_file(file).items()}
        with folder_in_one_piece(self.folder.student(name)) as partial:
            student.save_pretrained(partial, state_dict=frozen | trained)
            self.tokenizer.save_pretrained(partial)
            write_atomically(
                partial / CONVERSION_REPORT,
                json.dumps(conversion_report | {"weights_sha256": weights_sha256(partial)}, indent=1),
            )
        shutil.rmtree(self.folder.point(name) / "checkpoints", ignore_errors=True)

    @errors_said_once
    def check_tasks(self) -> None:
        """Reads every evaluation task, so that a mistake in one shows before hours of training."""
        for name, task in self.recipe.evaluation.tasks.items():
            load_items(name, task, self.recipe.seed, self.tokenizer)
        if self.recipe.evaluation.harness is not None:
            check_harness(self.recipe.evaluation.harness)

    def evaluate_teacher(self) -> Scores | None:
        """Scores the teacher; on the first process, the others wait and get None."""
        return on_rank_zero(lambda: self._evaluate(self.teacher, "teacher"))

    @errors_said_once
    def evaluate_student(self, point: str) -> Scores | None:
        """Scores the student of a point of the run; on the first process, the others wait and get None.

        Raises:
            UserError: that point has not been reached.
        """
        folder = self.folder.student(point)
        if not folder.is_dir():
            raise UserError(f"there is no student of '{point}' yet: run that first")
        return on_rank_zero(
            lambda: self._evaluate(load_model(str(folder), self.dtype, self.device), self.folder.label(point))
        )

    def _evaluate(self, model, label: str) -> Scores:
        evaluation, folder = self.recipe.evaluation, self.folder.evaluation
        scores = evaluate_model(model, self.tokenizer, evaluation, seed=self.recipe.seed, folder=folder, label=label)
        if evaluation.harness is not None:
            run_harness(
                model, self.tokenizer, evaluation.harness, batch_size=evaluation.batch_size, folder=folder, label=label
            )
        return scores


def check_recipe(recipe: Recipe):
    """Checks a recipe against its teacher and its files; returns the student's configuration.

    Raises:
        UserError: see `check_shapes`; or a missing file.
    """
    config = check_shapes(recipe)
    used = {recipe.conversion.data} | {stage.data for stage in recipe.stages.values()}
    for mixture in used:
        for source in recipe.data[mixture]:
            if source.synthesis is None:
                next(read_documents(source, recipe.seed))
    return config


def check_shapes(recipe: Recipe):
    """Checks a recipe against its teacher's configuration; returns the student's.

    Raises:
        UserError: unsupported family, layer out of range, sequence longer than the model allows.
    """
    teacher = load_config(recipe.teacher)
    student = recipe.student
    config = student_config(teacher, **student.model_dump())
    lengths = {"conversion": recipe.conversion.sequence_length}
    lengths |= {f"stages.{name}": stage.sequence_length for name, stage in recipe.stages.items()}
    limit = config.max_position_embeddings
    for name, length in lengths.items():
        if length > limit:
            raise UserError(f"{name}.sequence_length is {length}; the teacher's positions end at {limit}")
    return config


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but torch sees no CUDA device. Use device: cpu or auto.")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def _fingerprint(stage: Stage, data_key: str, weights: str, dtype: str) -> dict[str, str]:
    """What decides a stage's trajectory, by name; how it is cut into micro-batches or checkpoints is not part of it."""
    settings = stage.model_dump(mode="json", exclude=FREE)
    settings |= {"data": data_key, "initial weights": weights, "dtype": dtype}
    return {key: json.dumps(value, sort_keys=True) for key, value in settings.items()}


def _ledger_table(title: str, stage: Stage, ledger: dict[str, tuple[int, bool]]) -> Table:
    table = Table(title=f"{title}: what trains", title_justify="left")
    for column in ("role", "parameters", "", "peak learning rate"):
        table.add_column(column, justify="right" if column in ("parameters", "peak learning rate") else "left")
    for role, (parameters, trains) in ledger.items():
        rate = f"{stage.peak_learning_rate(role):g}" if trains else ""
        table.add_row(role, f"{parameters:,}", "[green]trains[/green]" if trains else "[dim]frozen[/dim]", rate)
    total = sum(parameters for parameters, trains in ledger.values() if trains)
    table.add_section()
    table.add_row("trains", f"{total:,}")
    return table
