"""Checks of the recurrence of every mixer against one token at a time in float64."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch

from gendistill.doctor.machine import Machine
from gendistill.doctor.measurement import Check, Errors, relative_errors
from gendistill.models.mixers.layer import fixed_log_decay
from gendistill.names import MIXERS, LinearMixer
from gendistill.ops import KERNEL_BOUND, DecayGate, Documents, linear_attention
from gendistill.ops.decay import log_decay
from gendistill.ops.reference import l2_normalize, recurrent_linear_attention

# Relative errors between two ways to compute the same, by device. float32 runs through TF32 in fla's kernels.
BOUNDS = {"cpu": {torch.float32: 1e-5}, "cuda": {torch.float32: 5e-3, torch.bfloat16: 2e-2}}
HEAD_SIZES = (64, 128)
SHUT = -30.0  # log decay of a gate that forgets everything: e^-30, where products of decays over a chunk underflow
FORGET = 20.0  # input of a bounded gate at which its sigmoid is 1, so that the log decay is at its bound


class Sizes(NamedTuple):
    """Of the measured tensors. One batch and head count for all: fla's kernels compile anew for others."""

    batch: int = 2
    length: int = 200
    heads: int = 2
    steps: int = 8


def recurrence_checks(machine: Machine, sizes: Sizes, head_sizes: tuple[int, ...]) -> Iterator[Check]:
    """A table for each precision, in it a row for each kind of recurrence and head size, a column for each case."""
    advice = "set backend: reference in the recipe (very slow), and report this with the file of --json"
    if machine.uses_kernels:
        advice = "set backend: chunked in the recipe (slower), and report this with the file of --json"
    for dtype, bound in BOUNDS[machine.device].items():
        table = f"recurrence in {str(dtype).removeprefix('torch.')}"
        for head_size, kind in product(head_sizes, kinds()):
            if kind.bounded and not machine.uses_kernels:  # a promise that only the kernels make use of
                continue
            tensors = Tensors(kind, head_size, dtype, machine.device, sizes)
            for column, case in _cases_of(kind, dtype, machine.device).items():
                yield Check(table, f"{kind.name} {head_size}", column, bound, partial(case, tensors), advice)


def _cases_of(kind: "Kind", dtype: torch.dtype, device: str) -> dict[str, Callable]:
    cases = dict(CASES)
    if kind.decay == "fixed":  # it has no gates to shut
        del cases["shut gates"]
    # Kernels compile anew for packed sequences (minutes on a GPU), and those are for training: in its precision only.
    if dtype != list(BOUNDS[device])[-1]:
        del cases["packed"]
    return cases


class Kind(NamedTuple):
    """What a mixer asks of the recurrence."""

    name: str
    delta_rule: bool
    decay: str  # channel, head or fixed
    bounded: bool = False  # log decays are promised to stay above KERNEL_BOUND, for which fla has a kernel of its own


def kinds() -> Iterator[Kind]:
    """Every linear mixer of the table; after those with a kernel for bounded gates, the same with bounded gates."""
    linear = {name: mixer for name, mixer in MIXERS.items() if isinstance(mixer, LinearMixer)}
    for name, mixer in linear.items():
        yield Kind(name, mixer.delta_rule, mixer.decay)
        if mixer.delta_rule and mixer.decay == "channel":
            yield Kind(f"{name} bounded", mixer.delta_rule, mixer.decay, bounded=True)


class Tensors(NamedTuple):
    """Which inputs to make."""

    kind: Kind
    head_size: int
    dtype: torch.dtype
    device: str
    sizes: Sizes

    def make(self, shut: bool = False) -> dict[str, torch.Tensor]:
        """Random inputs, the same on every device; with `shut`, every tenth gate forgets (nearly) everything.

        g is a log decay, but for bounded ones what it comes from, see `decay`.
        """
        batch, length, heads, _ = self.sizes
        generator = torch.Generator().manual_seed(0)  # of the CPU: a GPU's would draw other numbers
        normal, uniform = partial(torch.randn, generator=generator), partial(torch.rand, generator=generator)
        shape = (batch, length, heads, self.head_size)  # [B, T, H, D]
        q = l2_normalize(normal(shape))
        k = l2_normalize(normal(shape))
        v = normal(shape)
        inputs = {name: x.to(self.dtype) for name, x in (("q", q), ("k", k), ("v", v))}
        g = self._make_gates(normal(shape if self.kind.decay == "channel" else shape[:3]))
        if shut:
            g = torch.where(uniform(g.shape) < 0.1, FORGET if self.kind.bounded else SHUT, g)
        inputs["g"] = g
        if self.kind.delta_rule:
            inputs["beta"] = uniform(shape[:3])
        inputs["initial_state"] = normal(batch, heads, self.head_size, self.head_size)
        return {name: x.to(self.device) for name, x in inputs.items()}

    def _make_gates(self, normal: torch.Tensor) -> torch.Tensor:
        """Log decays from normal numbers, [B, T, H, D] or [B, T, H]; of bounded kinds what they come from."""
        if self.kind.bounded:
            return (normal - 2).to(self.dtype)  # raw gates are in the model's precision, log decays in float32
        if self.kind.decay == "fixed":
            return fixed_log_decay(normal.shape[2], "cpu").expand(normal.shape).contiguous()
        if self.kind.decay in ("channel", "head"):
            return -torch.exp(normal - 2)  # around -0.14: half of the state is gone after five tokens
        raise ValueError(f"unknown decay '{self.kind.decay}'; known: channel, head, fixed")

    def by_backend(self, **inputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Outputs [B, T, H, D] and final state [B, H, D, D] by the backend that this machine's students use."""
        return linear_attention(**inputs | {"g": self.decay(inputs["g"])})

    def by_reference(self, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, token by token."""
        return recurrent_linear_attention(**inputs | {"g": log_decay(self.decay(inputs["g"]))})

    def decay(self, g: torch.Tensor) -> torch.Tensor | DecayGate:
        """As a student's layer hands it to the recurrence."""
        heads = g.shape[2]
        zeros = torch.zeros(heads * self.head_size, device=g.device)
        return DecayGate(g, zeros[:heads], zeros, KERNEL_BOUND) if self.kind.bounded else g


def compare_with_reference(tensors: Tensors, shut: bool = False) -> Errors:
    """Outputs, final state and every gradient against one token at a time in float64."""
    inputs = tensors.make(shut)
    exact = _with_gradients(tensors.by_reference, _double(inputs), tensors.kind)
    return relative_errors(_with_gradients(tensors.by_backend, inputs, tensors.kind), exact)


def compare_packed(tensors: Tensors) -> Errors:
    """Packed documents, outputs and gradients, against the same documents one by one in float64."""
    batch, length = tensors.sizes.batch, tensors.sizes.length
    # Lengths of each row's documents. Boundaries lie elsewhere in each row, and one document is of a single token.
    rows = [[length // 3 + row, 1, length - length // 3 - row - 1] for row in range(batch)]
    inputs = tensors.make()
    inputs.pop("initial_state")  # a packed document starts from nothing
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])  # [B, T]
    documents = Documents.from_position_ids(positions.to(tensors.device))

    def one_by_one(**inputs):
        outputs = []
        for row, lengths in enumerate(rows):
            # Of each input the documents, [1, length, ...].
            split = {name: x[row : row + 1].split(lengths, dim=1) for name, x in inputs.items()}
            parts = [{name: pieces[i] for name, pieces in split.items()} for i in range(len(lengths))]
            outputs.append(torch.cat([tensors.by_reference(**part)[0] for part in parts], dim=1))  # [1, T, H, D]
        return torch.cat(outputs), None  # [B, T, H, D]; states differ by document and are not compared

    exact = _with_gradients(one_by_one, _double(inputs), tensors.kind)
    packed = partial(tensors.by_backend, documents=documents)
    return relative_errors(_with_gradients(lambda **x: (packed(**x)[0], None), inputs, tensors.kind), exact)


@torch.no_grad()
def compare_steps(tensors: Tensors) -> Errors:
    """Prefill of a prompt and then decoding token by token, the state carried on, against one pass over everything."""
    inputs = tensors.make()
    state = inputs.pop("initial_state")
    prompt = tensors.sizes.length - tensors.sizes.steps
    whole, final = tensors.by_backend(**inputs, initial_state=state)
    outputs = []
    for part in [slice(prompt), *(slice(t, t + 1) for t in range(prompt, tensors.sizes.length))]:
        o, state = tensors.by_backend(**{name: x[:, part] for name, x in inputs.items()}, initial_state=state)
        outputs.append(o)
    stepped = torch.cat(outputs[1:], dim=1)  # [B, steps, H, D]
    return relative_errors({"o": stepped, "state": state}, {"o": whole[:, prompt:], "state": final})


CASES = {
    "usual gates": compare_with_reference,
    "shut gates": partial(compare_with_reference, shut=True),
    "packed": compare_packed,
    "steps": compare_steps,
}


def _double(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.double() for name, x in inputs.items()}


def _with_gradients(function: Callable, inputs: dict[str, torch.Tensor], kind: Kind) -> dict[str, torch.Tensor | None]:
    """Outputs, final state if there is one, and gradients of a random readout of both; fixed decays have none."""
    trained = {name: x.detach().requires_grad_() for name, x in inputs.items() if name != "g" or kind.decay != "fixed"}
    o, state = function(**inputs | trained)
    results = {"o": o} if state is None else {"o": o, "state": state}
    generator = torch.Generator().manual_seed(1)
    loss = 0.0
    # A plain sum as the loss would hide errors that cancel.
    for x in results.values():
        readout = torch.randn(x.shape, generator=generator).bfloat16()  # the same numbers whatever the precision
        loss = loss + (x * readout.to(x)).sum()
    loss.backward()
    gradients = {f"d{name.removeprefix('initial_')}": x.grad for name, x in trained.items()}
    return {name: x if x is None else x.detach() for name, x in (results | gradients).items()}
