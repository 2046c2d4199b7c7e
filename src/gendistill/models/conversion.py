"""Teacher -> student: the surgery, with every tensor accounted for, and the certificate of what came out."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from gendistill.errors import UserError
from gendistill.models.capture import LayerRecord, record_layers
from gendistill.models.configuration import GendistillConfig
from gendistill.models.families import teacher_name
from gendistill.models.mixers.layer import LinearAttention
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.ops import Documents

NEW_IN_MIXER = (
    "q_conv1d.weight q_conv1d.bias k_conv1d.weight k_conv1d.bias v_conv1d.weight v_conv1d.bias f_a_proj.weight "
    "f_b_proj.weight a_proj.weight A_log dt_bias b_proj.weight g_a_proj.weight g_b_proj.weight g_b_proj.bias "
    "o_norm.weight"
).split()
DROPPED_FROM_ATTENTION = ("q_norm.weight", "k_norm.weight")  # a mixer L2-normalises instead


@dataclass(frozen=True)
class Ledger:
    """Every tensor of teacher and student, by student name (dropped ones by teacher name)."""

    copied: list[str]
    repeated: list[str]  # grouped keys and values, copied once for every query head of their group
    new: list[str]
    dropped: list[str]


def convert(teacher: PreTrainedModel, config: GendistillConfig, seed: int) -> tuple[GendistillForCausalLM, Ledger]:
    """Builds the student on the CPU in the teacher's dtype; new tensors get their start values from `seed`.

    Raises:
        UserError: a tensor has no counterpart, or one of another shape.
    """
    with no_init_weights():
        student = GendistillForCausalLM._from_config(config, dtype=teacher.dtype)
    student.tie_weights()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in student.modules():
            if isinstance(module, LinearAttention):
                module.set_start_values()

    source = dict(teacher.named_parameters())
    copied, repeated, new = [], [], []
    for name, parameter in student.named_parameters():
        original = unchanged = source.pop(teacher_name(name), None)
        if original is None:
            if ".linear_attn." not in name or not name.endswith(tuple(f".{tail}" for tail in NEW_IN_MIXER)):
                raise UserError(f"conversion: the student's {name} has no counterpart in the teacher")
            new.append(name)
            continue
        if config.expand_kv and any(part in name for part in (".linear_attn.k_proj.", ".linear_attn.v_proj.")):
            original = _repeat_heads(original, config)
        if original.shape != parameter.shape:
            raise UserError(
                f"conversion: {name} is {tuple(parameter.shape)} in the student, {tuple(original.shape)} in the teacher"
            )
        with torch.no_grad():
            parameter.copy_(original)
        (copied if original is unchanged else repeated).append(name)
    replaced = tuple(f"model.layers.{i}.self_attn." for i in config.layers_of_type("linear_attention"))
    if lost := [n for n in source if not (n.startswith(replaced) and n.endswith(DROPPED_FROM_ATTENTION))]:
        raise UserError(f"conversion: the student has no place for the teacher's {', '.join(sorted(lost))}")
    student.generation_config = teacher.generation_config
    return student.eval(), Ledger(copied, repeated, new, sorted(source))


def _repeat_heads(projection: torch.Tensor, config: GendistillConfig) -> torch.Tensor:
    """[kv_heads * head_dim, ...] -> [heads * head_dim, ...]: each head once for every query head of its group."""
    groups = config.num_attention_heads // config.num_key_value_heads
    return projection.unflatten(0, (-1, config.head_dim)).repeat_interleave(groups, dim=0).flatten(0, 1)


@torch.inference_mode()
def orient_heads(
    teacher: PreTrainedModel, student: GendistillForCausalLM, batches: Iterable[dict[str, torch.Tensor]]
) -> dict[int, list[int]]:
    """Turns round the heads of each mixer that point away from the teacher's attention output.

    Softmax does not see what all keys have in common; a linear state reads it, with the sign of q . k. Where a bias
    makes the keys alike (Qwen2's does) a whole head can come out negated. The last tap of its query convolution, a new
    tensor, becomes -1 instead of 1.

    Returns:
        The turned heads of each layer.
    """
    layers = student.config.layers_of_type("linear_attention")
    heads = student.config.num_attention_heads
    agreement = {i: torch.zeros(heads, dtype=torch.float64) for i in layers}
    for batch, records in _recorded(teacher, batches, layers):
        for i, record in records.items():
            inputs = []
            output = student.model.layers[i].linear_attn.o_proj
            hook = output.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
            _mixer_output(student, i, record, batch)
            hook.remove()
            target = record.attention_output.float()
            wanted = (
                target @ output.weight.float() / target.square().sum(-1, keepdim=True)
            )  # each token weighs the same
            agreement[i] += (inputs[0].float() * wanted).unflatten(-1, (heads, -1)).sum((0, 1, 3)).double().cpu()
    turned = {i: (sums < 0).nonzero().flatten().tolist() for i, sums in agreement.items()}
    for i, negative in turned.items():
        taps = student.model.layers[i].linear_attn.q_conv1d.weight.unflatten(0, (heads, -1))
        taps[negative] = -taps[negative]
    return turned


@torch.inference_mode()
def match_scale(
    teacher: PreTrainedModel, student: GendistillForCausalLM, batches: Iterable[dict[str, torch.Tensor]]
) -> dict[int, float]:
    """Scales each mixer's output to the teacher's attention output, by least squares on the teacher's own inputs.

    A start value only: at its standard start the output norm gives every layer an output of the same power, whatever
    the teacher's is. The factor goes into a new tensor: the output norm's weight, or the values' convolution where
    there is no norm. (Scaling by least squares is Taylor-Calibrate's, arXiv 2606.16429; here one factor a layer.)

    Returns:
        The factor of each layer. A mixer that points away from its teacher keeps its scale, for the certificate to see.
    """
    layers = student.config.layers_of_type("linear_attention")
    products = {i: torch.zeros(2, dtype=torch.float64) for i in layers}  # <mixer, teacher>, <mixer, mixer>
    for batch, records in _recorded(teacher, batches, layers):
        for i, record in records.items():
            mixed, target = _mixer_output(student, i, record, batch).float(), record.attention_output.float()
            products[i] += torch.stack([(mixed * target).sum(), mixed.square().sum()]).double().cpu()
    factors = {i: (both / own).item() for i, (both, own) in products.items()}
    for i, factor in factors.items():
        if factor > 0:
            mixer = student.model.layers[i].linear_attn
            scaled = mixer.v_conv1d if mixer.o_norm is None else mixer.o_norm
            scaled.weight.mul_(factor)
    return factors


def _recorded(teacher: PreTrainedModel, batches: Iterable[dict[str, torch.Tensor]], layers: list[int]):
    """Runs the teacher over the batches; yields each batch with the records of its layers."""
    for batch in batches:
        with record_layers(teacher, layers) as records:
            teacher.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        yield batch, records


def _mixer_output(student: GendistillForCausalLM, layer: int, record: LayerRecord, batch: dict) -> torch.Tensor:
    documents = Documents.from_position_ids(batch["position_ids"])
    return student.model.layers[layer].linear_attn(record.attention_input, documents=documents)[0]


@dataclass(frozen=True)
class LayerReport:
    """One replaced layer, both run on the teacher's own input."""

    layer: int
    cosine: float  # mean over tokens between mixer output and attention output
    attention_power: float  # mean square of an element of the teacher's attention output
    update_power: float  # mean square of an element of what the teacher's block adds to its input


@dataclass(frozen=True)
class Certificate:
    """What the untouched student is, measured on `tokens` loss tokens of plain text; losses in nats a token."""

    teacher: str
    seed: int
    tokens: int
    teacher_loss: float
    student_loss: float
    uniform_loss: float
    layers: list[LayerReport]
    parameters: int
    ledger: Ledger
    weights_sha256: str = ""

    def to_dict(self) -> dict:
        return asdict(self)

    def check(self) -> None:
        """Raises UserError if a mixer points away from its teacher or the student is worse than a uniform guess."""
        if bad := [f"{report.layer} (cosine {report.cosine:.3f})" for report in self.layers if not report.cosine > 0]:
            raise UserError(
                f"conversion: the mixer output of layer(s) {', '.join(bad)} does not point the teacher's way. "
                "Keep softmax attention there, or convert with another seed."
            )
        if not self.student_loss < self.uniform_loss:
            raise UserError(
                f"conversion: the untouched student's loss {self.student_loss:.3f} is not below a uniform guess "
                f"({self.uniform_loss:.3f}). Keep more layers, or place them differently."
            )


@torch.inference_mode()
def certify(
    teacher: PreTrainedModel,
    student: GendistillForCausalLM,
    ledger: Ledger,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    name: str,
    seed: int,
) -> Certificate:
    """Measures the untouched student beside its teacher.

    Args:
        batches: input_ids, position_ids and loss_mask, each [B, T], on the models' device.
        name: the teacher's name as in the recipe.
    """
    layers = student.config.layers_of_type("linear_attention")
    sums = {i: torch.zeros(4, dtype=torch.float64) for i in layers}  # cosine, power, update power, tokens
    losses = torch.zeros(2, dtype=torch.float64)
    tokens = 0
    for batch, records in _recorded(teacher, batches, layers):
        losses += torch.tensor([_loss_sum(teacher, batch), _loss_sum(student, batch)])
        tokens += int(batch["loss_mask"][:, 1:].sum())
        for i, record in records.items():
            mixed, target = _mixer_output(student, i, record, batch), record.attention_output.float()
            cosine = F.cosine_similarity(mixed.float(), target, dim=-1)
            power = target.square().mean(-1)
            update = (record.block_output - record.block_input).float().square().mean(-1)
            measured = torch.stack([cosine, power, update, torch.ones_like(cosine)])
            sums[i] += measured.sum(dim=(1, 2)).double().cpu()
    reports = [LayerReport(i, *(total[:3] / total[3]).tolist()) for i, total in sums.items()]
    teacher_loss, student_loss = (losses / tokens).tolist()
    return Certificate(
        teacher=name,
        seed=seed,
        tokens=tokens,
        teacher_loss=teacher_loss,
        student_loss=student_loss,
        uniform_loss=math.log(student.config.vocab_size),
        layers=reports,
        parameters=sum(p.numel() for p in student.parameters()),
        ledger=ledger,
    )


def _loss_sum(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    """Summed next-token loss, in nats, over the tokens of the mask."""
    total = 0.0
    for row in range(batch["input_ids"].shape[0]):  # one row at a time: [T, vocab] in float32 is the largest tensor
        ids, positions = batch["input_ids"][row : row + 1], batch["position_ids"][row : row + 1]
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, :-1].float()
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        total += (losses * batch["loss_mask"][row, 1:]).sum().item()
    return total


def weights_sha256(folder: Path) -> str:
    """Hash of a model folder's weights, all shards in name order."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
