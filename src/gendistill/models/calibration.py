"""Initialisation read off the teacher on a little text: a head's direction, its size, its half-life.

Only tensors the teacher does not have are touched; copied weights stay copied. Batches hold input_ids and position_ids,
each [B, T], on the models' device.

Shapes: B sequences, T tokens, H heads, D channels of a head.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from gendistill.models.attention import attention_switched_to
from gendistill.models.hooks import recorded, side_by_side
from gendistill.models.mixers.layer import LinearAttention
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.names import INITIALISATIONS, look_up
from gendistill.ops.output_gate import GATE_ACTIVATIONS

Batch = dict[str, torch.Tensor]
SHORTEST_HALF_LIFE = 1.0  # tokens: a head that attends to its own token only would start with no memory at all
SMALLEST_GATE = 0.02  # of a head that points away from its teacher's: small, not negative, and not shut
LARGEST_SIGMOID = 0.9  # of an output gate that cannot reach 1, with some room left above


def calibrate(
    teacher: PreTrainedModel, student: GendistillForCausalLM, batches: list[Batch], initialisation: str
) -> None:
    """Sets the initial values that need the teacher.

    standard: heads that point away are turned round, layers are scaled; half-lives stay as published.
    centred: before that, the mean of each layer's keys is taken from them.
    teacher: also each head's half-life from the teacher's mean attention distance, and its size by least squares
        (Taylor-Calibrate, arXiv 2606.16429).

    Raises:
        UserError: there is no such initialisation.
    """
    look_up(INITIALISATIONS, initialisation, "initialisation")
    # Keys and half-lives first: they change a head's output, to which all that follows is fitted. A head is turned
    # round before it is scaled, for a factor below zero says nothing of its size.
    with window_switched_off(student):
        if initialisation == "centred":
            centre_keys(teacher, student, batches)
        if initialisation == "teacher":
            for i, distance in mean_attention_distance(teacher, batches, student.config.linear_layers).items():
                student.model.layers[i].linear_attn.set_half_lives(distance.clamp(min=SHORTEST_HALF_LIFE))
        orient_heads(teacher, student, batches)
        match_scale(teacher, student, batches)
        if initialisation == "teacher":
            match_heads(teacher, student, batches)


@contextmanager
def window_switched_off(student: GendistillForCausalLM) -> Iterator[None]:
    """Inside the block, layers with a recurrence and a window have the recurrence alone."""
    before = student.config.window_is_on
    student.config.window_is_on = False
    try:
        yield
    finally:
        student.config.window_is_on = before


@torch.inference_mode()
def mean_attention_distance(
    teacher: PreTrainedModel, batches: Iterable[Batch], layers: Iterable[int]
) -> dict[int, torch.Tensor]:
    """Attention distance of each head of a layer, in tokens [H]: the mean over tokens t of sum_s a_ts (t - s)."""
    sums: dict[int, torch.Tensor] = {}
    tokens = 0

    def watch(layer: int, weights: torch.Tensor) -> None:  # [B, H, T, T]
        index = torch.arange(weights.shape[-1], device=weights.device, dtype=torch.float32)  # [T]
        distance = index[:, None] - index  # [T, T]; below 0 only where the weights are 0
        sums[layer] = sums.get(layer, 0.0) + (weights.float() * distance).sum((0, 2, 3)).double().cpu()

    hooks = [
        teacher.model.layers[i].self_attn.register_forward_hook(lambda _, __, output, i=i: watch(i, output[1]))
        for i in layers
    ]
    try:
        with attention_switched_to("eager", teacher):  # the one implementation that has its weights to show
            for batch in batches:
                teacher.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
                tokens += batch["input_ids"].numel()
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: total / tokens for layer, total in sums.items()}


@torch.inference_mode()
def centre_keys(teacher: PreTrainedModel, student: GendistillForCausalLM, batches: Iterable[Batch]) -> None:
    """Takes from each mixer's keys their mean over tokens, through the initial bias of the keys' convolution.

    Softmax attention is the same whatever is added to all keys, but for RoPE; a linear state is not. Where the common
    part is large (Qwen2's keys have biases up to a hundred times as long as what tells them apart), normalised keys are
    all alike: every token erases what the one before it wrote, and no query can choose.
    """
    sums: dict[int, torch.Tensor] = {}  # [keys] by layer
    tokens = 0
    for batch, records in recorded(teacher, batches, student.config.linear_layers):
        tokens += batch["input_ids"].numel()
        for i, record in records.items():
            keys = student.model.layers[i].linear_attn.k_proj(record.attention_input)  # [B, T, keys]
            sums[i] = sums.get(i, 0) + keys.double().sum((0, 1))
    for i, total in sums.items():
        convolution = student.model.layers[i].linear_attn.k_conv1d  # the identity still
        convolution.bias.copy_(-total / tokens)


@torch.inference_mode()
def match_heads(teacher: PreTrainedModel, student: GendistillForCausalLM, batches: Iterable[Batch]) -> None:
    """Scales each head's output to the teacher's head by least squares, through the initial bias of its output gate.

    The gate is where a head has a size of its own: values are shared by a group of heads, the norm's weight by all. A
    head that points away from its teacher's is made small, not negative.
    """
    heads = student.config.num_attention_heads
    products: dict[int, torch.Tensor] = {}  # <mixer, teacher> and <mixer, mixer>, each by head
    for pair in side_by_side(teacher, student, batches, student.config.linear_layers):
        mixed, target = pair.mixer_heads.float(), pair.teacher.attention_heads.float()  # [B, T, H * D]
        by_head = [(mixed * x).unflatten(-1, (heads, -1)).sum((0, 1, 3)) for x in (target, mixed)]  # [H] each
        products[pair.layer] = products.get(pair.layer, 0) + torch.stack(by_head).double().cpu()
    for i, (both, own) in products.items():
        mixer = student.model.layers[i].linear_attn
        bias = mixer.g_b_proj.bias.unflatten(0, (heads, -1))  # [H, D], written to below
        gate = GATE_ACTIVATIONS[student.config.gate_activation](bias.float()) * (both / own).to(bias.device)[:, None]
        if student.config.gate_activation == "sigmoid" and (over := gate.max() / LARGEST_SIGMOID) > 1:
            _scale_tensor(mixer).mul_(over)  # what the gates cannot reach, the whole layer takes over
            gate = gate / over
        bias.copy_(_gate_bias(gate.clamp(min=SMALLEST_GATE), student.config.gate_activation))


def _gate_bias(gate: torch.Tensor, activation: str) -> torch.Tensor:
    """The input at which the gate's activation takes a value > 0."""
    if activation == "sigmoid":
        return torch.logit(gate)
    if activation == "silu":
        bias = gate.clamp(min=1.0)
        for _ in range(30):  # Newton on SiLU(bias) = gate, which is convex and rising there
            sigmoid = torch.sigmoid(bias)
            bias = bias - (bias * sigmoid - gate) / (sigmoid * (1 + bias * (1 - sigmoid)))
        return bias
    raise ValueError(f"gate activation '{activation}': its inverse is known for {', '.join(GATE_ACTIVATIONS)} only")


@torch.inference_mode()
def orient_heads(
    teacher: PreTrainedModel, student: GendistillForCausalLM, batches: Iterable[Batch]
) -> dict[int, list[int]]:
    """Turns round the heads of each mixer that point away from the teacher's attention output.

    Softmax is blind to what all keys have in common; a linear state reads it, with the sign of q . k. Where a bias
    makes the keys alike (Qwen2's does) a whole head can come out negated. The last tap of its query convolution, a new
    tensor, becomes -1 instead of 1.

    Returns:
        The turned heads of each layer.
    """
    heads = student.config.num_attention_heads
    agreement: dict[int, torch.Tensor] = {}  # [H] by layer
    for pair in side_by_side(teacher, student, batches, student.config.linear_layers):
        target = pair.teacher.attention_output.float()  # [B, T, hidden]
        # The teacher's output as seen before the output projection, where heads are apart: [B, T, H * D].
        wanted = target @ student.model.layers[pair.layer].linear_attn.o_proj.weight.float()
        wanted = wanted / target.square().sum(-1, keepdim=True)  # each token weighs the same
        sums = (pair.mixer_heads.float() * wanted).unflatten(-1, (heads, -1)).sum((0, 1, 3)).double().cpu()
        agreement[pair.layer] = agreement.get(pair.layer, 0) + sums
    turned = {i: (sums < 0).nonzero().flatten().tolist() for i, sums in agreement.items()}
    for i, negative in turned.items():
        taps = student.model.layers[i].linear_attn.q_conv1d.weight.unflatten(0, (heads, -1))  # [H, D, 1, kernel]
        taps[negative] = -taps[negative]  # in place: a view of the weight
    return turned


@torch.inference_mode()
def match_scale(teacher: PreTrainedModel, student: GendistillForCausalLM, batches: Iterable[Batch]) -> dict[int, float]:
    """Scales each mixer's output to the teacher's attention output, by least squares on the teacher's own inputs.

    An initial value only: the output norm gives every layer an output of the same mean square at first, whatever the
    teacher's is.

    Returns:
        The factor of each layer. A mixer that points away from its teacher keeps its scale; the report refuses it.
    """
    products: dict[int, torch.Tensor] = {}  # <mixer, teacher>, <mixer, mixer>
    for pair in side_by_side(teacher, student, batches, student.config.linear_layers):
        mixed, target = pair.mixer_output.float(), pair.teacher.attention_output.float()  # [B, T, hidden]
        both = torch.stack([(mixed * target).sum(), mixed.square().sum()]).double().cpu()
        products[pair.layer] = products.get(pair.layer, 0) + both
    factors = {i: (both / own).item() for i, (both, own) in products.items()}
    for i, factor in factors.items():
        if factor > 0:
            _scale_tensor(student.model.layers[i].linear_attn).mul_(factor)
    return factors


def _scale_tensor(mixer: LinearAttention) -> torch.Tensor:
    """The new tensor that scales a layer: the output norm's weight, or the values' convolution if there is no norm."""
    return (mixer.v_conv1d if mixer.o_norm is None else mixer.o_norm).weight
