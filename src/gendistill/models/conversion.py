"""Teacher -> student: every tensor is copied, initialised or dropped, and a report says what came out."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from gendistill.errors import UserError
from gendistill.models.configuration import GendistillConfig
from gendistill.models.families import teacher_name
from gendistill.models.hooks import side_by_side
from gendistill.models.mixers.layer import LinearAttention
from gendistill.models.modeling import GendistillForCausalLM, describe

# Of the attention that a mixer replaces: what a recurrence does not take over, for it L2-normalises queries and keys.
DROPPED_WITH_ATTENTION = ("q_norm.weight", "k_norm.weight")

STANDARD_ERRORS = 4  # that a loss must lie above a uniform guess to be called worse; neighbouring tokens are alike


@dataclass(frozen=True)
class ParameterAccounting:
    """Every tensor of teacher and student, by student name (dropped ones by teacher name)."""

    copied: list[str]
    repeated: list[str]  # grouped keys and values, copied once for every query head of their group
    new: list[str]
    dropped: list[str]


def convert(
    teacher: PreTrainedModel, config: GendistillConfig, seed: int
) -> tuple[GendistillForCausalLM, ParameterAccounting]:
    """Builds the student on the CPU in the teacher's dtype; new tensors get their initialisation from `seed`.

    Raises:
        UserError: a tensor has no counterpart, or one of another shape.
    """
    config = as_tied_as(teacher, config)
    with no_init_weights():  # everything is overwritten below
        student = GendistillForCausalLM._from_config(config, dtype=teacher.dtype)
    student.tie_weights()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in student.modules():
            if isinstance(module, LinearAttention):
                module.initialise()
    originals, accounting = counterparts(teacher, student)
    weights = dict(student.named_parameters())
    with torch.no_grad():
        for name, original in originals.items():
            weights[name].copy_(original)
    student.generation_config = teacher.generation_config
    return student.eval(), accounting


def as_tied_as(teacher: PreTrainedModel, config: GendistillConfig) -> GendistillConfig:
    """The configuration with the head tied as it is in the teacher's memory.

    A checkpoint whose configuration ties it may hold a head of its own; transformers then believes the checkpoint.
    """
    tied = teacher.get_output_embeddings().weight is teacher.get_input_embeddings().weight
    if tied == config.tie_word_embeddings:
        return config
    return GendistillConfig.from_dict(config.to_dict() | {"tie_word_embeddings": tied})


def counterparts(
    teacher: PreTrainedModel, student: GendistillForCausalLM
) -> tuple[dict[str, torch.Tensor], ParameterAccounting]:
    """The teacher's tensors by the names of the student's that take their values, and what becomes of every tensor.

    Raises:
        UserError: a tensor has no counterpart, or one of another shape.
    """
    who = f"conversion of a teacher of model type '{teacher.config.model_type}'"
    config, source = student.config, dict(teacher.named_parameters())
    originals: dict[str, torch.Tensor] = {}
    repeated, new = [], []
    for name, parameter in student.named_parameters():
        row, original = describe(name), source.pop(teacher_name(name), None)
        if row.is_new and original is None:
            new.append(name)
            continue
        if original is None:
            raise UserError(f"{who}: the student's {name} has no counterpart in the teacher")
        if config.expand_kv and row.of_key_heads:
            original = _repeat_heads(original, config)
            repeated.append(name)
        if original.shape != parameter.shape:
            raise UserError(
                f"{who}: {name} is {tuple(parameter.shape)} in the student, {tuple(original.shape)} in the teacher"
            )
        originals[name] = original
    # What is left in `source` may only belong to attention that a mixer has replaced.
    replaced = tuple(f"model.layers.{i}.self_attn." for i in config.layers_of_type("linear_attention"))
    if lost := [n for n in source if not (n.startswith(replaced) and n.endswith(DROPPED_WITH_ATTENTION))]:
        raise UserError(f"{who}: the student has no place for the teacher's {', '.join(sorted(lost))}")
    copied = [name for name in originals if name not in repeated]
    return originals, ParameterAccounting(copied, repeated, new, sorted(source))


def _repeat_heads(projection: torch.Tensor, config: GendistillConfig) -> torch.Tensor:
    """[kv_heads * head_dim, ...] -> [heads * head_dim, ...]: each head once for every query head of its group."""
    groups = config.num_attention_heads // config.num_key_value_heads
    return projection.unflatten(0, (-1, config.head_dim)).repeat_interleave(groups, dim=0).flatten(0, 1)


@dataclass(frozen=True)
class LayerReport:
    """One replaced layer, both run on the teacher's own input."""

    layer: int
    cosine: float  # mean over tokens between mixer output and attention output
    attention_mean_square: float  # mean square of an element of the teacher's attention output
    update_mean_square: float  # mean square of an element of what the teacher's block adds to its input
    hidden_mean_square: float  # mean square of an element of the teacher's hidden state after the block


@dataclass(frozen=True)
class ConversionReport:
    """What the untrained student is, measured on `tokens` loss tokens of plain text; losses in nats a token."""

    teacher: str
    seed: int
    tokens: int
    teacher_loss: float
    student_loss: float
    student_loss_error: float  # standard error of that mean
    uniform_loss: float
    layers: list[LayerReport]
    parameters: int
    parameter_accounting: ParameterAccounting
    losses_by_initialisation: dict[str, float] = field(default_factory=dict)  # of all that were tried
    weights_sha256: str = ""

    def to_dict(self) -> dict:
        return asdict(self)

    def problem(self, max_loss: float | None = None) -> str | None:
        """Why this student is none to train: a mixer points away from its teacher, or the loss is too large.

        Args:
            max_loss: what the loss must be below, nats a token; None: a uniform guess's.
        """
        # `not >` and `not <`, so that NaN is one too.
        if bad := [f"{report.layer} (cosine {report.cosine:.3f})" for report in self.layers if not report.cosine > 0]:
            return f"the mixer output of layer(s) {', '.join(bad)} does not point the teacher's way"
        bound, what = self.uniform_loss, "a uniform guess's"
        if max_loss is not None:
            bound, what = max_loss, "conversion.max_loss"
        # What so few tokens cannot tell from the bound is no reason to refuse it.
        if not self.student_loss - STANDARD_ERRORS * self.student_loss_error < bound:
            return (
                f"the untrained student's loss {self.student_loss:.3f} on {self.tokens:,} tokens is not below {what}, "
                f"{bound:.3f}"
            )
        return None


def check_conversions(
    reports: Mapping[str, ConversionReport], chosen: str, max_loss: float | None = None
) -> str | None:
    """Whether the student of the chosen initialisation is one to train.

    Args:
        reports: of students that differ in their initialisation only, by its name.
        max_loss: see `ConversionReport.problem`.

    Returns:
        A warning, if it is not and another initialisation's is; else None.

    Raises:
        UserError: no initialisation gives one.
    """
    problems = {name: report.problem(max_loss) for name, report in reports.items()}
    if problems[chosen] is None:
        return None
    sound = [name for name, problem in problems.items() if problem is None]
    losses = {name: report.student_loss for name, report in reports.items()}
    # NaN would be neither better nor worse than another loss.
    best = min(sound or reports, key=lambda name: losses[name] if math.isfinite(losses[name]) else math.inf)
    if not sound:
        raise UserError(
            f"conversion: no initialisation gives a student to train ({', '.join(reports)}). The best is "
            f"conversion.initialisation: {best}, with a loss of {losses[best]:.3f}; there {problems[best]}. Keep "
            "softmax attention in more layers or in others (student.keep_attention), convert with another seed, or, if "
            "alignment is to mend it, as it can a student without attention, allow a larger loss (conversion.max_loss)."
        )
    return (
        f"with initialisation '{chosen}' {problems[chosen]}; with '{best}' the loss is {losses[best]:.3f}. Set "
        f"conversion.initialisation: {best}"
    )


@torch.inference_mode()
def measure_conversion(
    teacher: PreTrainedModel,
    student: GendistillForCausalLM,
    accounting: ParameterAccounting,
    batches: list[dict[str, torch.Tensor]],
    *,
    name: str,
    seed: int,
    teacher_loss: float,
) -> ConversionReport:
    """Measures the untrained student beside its teacher.

    Args:
        batches: input_ids, position_ids and loss_mask, each [B, T], on the models' device.
        name: the teacher's name as in the recipe.
        teacher_loss: its mean loss on these batches.
    """
    sums: dict[int, torch.Tensor] = {}  # the four measures of a LayerReport, tokens
    for pair in side_by_side(teacher, student, batches, student.config.layers_of_type("linear_attention")):
        target, record = pair.teacher.attention_output.float(), pair.teacher
        cosine = F.cosine_similarity(pair.mixer_output.float(), target, dim=-1)  # [B, T]
        attention = target.square().mean(-1)  # [B, T], as the next two
        update = (record.block_output - record.block_input).float().square().mean(-1)
        hidden = record.block_output.float().square().mean(-1)
        measured = torch.stack([cosine, attention, update, hidden, torch.ones_like(cosine)])  # [5, B, T]
        # In float64 over batches: a mean over millions of tokens would lose the last of them in float32.
        sums[pair.layer] = sums.get(pair.layer, 0) + measured.sum(dim=(1, 2)).double().cpu()
    loss = mean_loss(student, batches)
    reports = [LayerReport(i, *(total[:-1] / total[-1]).tolist()) for i, total in sums.items()]
    return ConversionReport(
        teacher=name,
        seed=seed,
        tokens=sum(int(batch["loss_mask"][:, 1:].sum()) for batch in batches),
        teacher_loss=teacher_loss,
        student_loss=loss.mean,
        student_loss_error=loss.error,
        uniform_loss=math.log(student.config.vocab_size),
        layers=reports,
        parameters=sum(p.numel() for p in student.parameters()),
        parameter_accounting=accounting,
    )


class Loss(NamedTuple):
    """A mean over tokens, in nats, and its standard error."""

    mean: float
    error: float


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, batches: Iterable[dict[str, torch.Tensor]]) -> Loss:
    """Next-token loss over the tokens of each batch's loss_mask."""
    total = squares = 0.0
    tokens = 0
    for batch in batches:
        for ids, positions, mask in zip(batch["input_ids"], batch["position_ids"], batch["loss_mask"], strict=True):
            # One sequence at a time: logits [T - 1, vocab] in float32 are the largest tensor.
            logits = model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0, :-1].float()
            losses = F.cross_entropy(logits, ids[1:], reduction="none").double() * mask[1:]  # [T - 1]
            total += losses.sum().item()
            squares += losses.square().sum().item()
            tokens += int(mask[1:].sum())
    mean = total / tokens
    return Loss(mean, math.sqrt(max(0.0, squares / tokens - mean**2) / tokens))


def weights_sha256(folder: Path) -> str:
    """Hash of a model folder's weights, all shards in name order."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
