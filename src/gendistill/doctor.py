"""Does this machine compute what it should? Measures the recurrence and a small student on the user's own device.

A `Check` is one measurement: two ways to compute the same numbers, and how far apart they may be. `plan` lists them,
`Check.run` measures one and never raises. Nothing here prints.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from gendistill.machine import Machine
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.models.mixers import MIXERS
from gendistill.models.mixers.layer import fixed_log_decay
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.ops import KERNEL_BOUND, DecayGate, Documents, linear_attention
from gendistill.ops.decay import log_decay
from gendistill.ops.reference import l2_normalize, recurrent_linear_attention

Errors = dict[str, float]  # relative errors by the name of what was compared

# Relative errors between two ways to compute the same, by device. float32 runs through TF32 in fla's kernels.
BOUNDS = {"cpu": {torch.float32: 1e-5}, "cuda": {torch.float32: 5e-3, torch.bfloat16: 2e-2}}
STUDENT_BOUND = {"cpu": 1e-4, "cuda": 5e-2}  # in float32; norms amplify TF32's errors, a leak is far larger still
HEAD_SIZES = (64, 128)
SHUT = -30.0  # the log decay of a gate that forgets everything
FORGET = 20.0  # at which a bounded gate is at its bound


class Sizes(NamedTuple):
    """Of the measured tensors. One batch and head count for all: fla's kernels compile anew for others."""

    batch: int = 2
    length: int = 200
    heads: int = 2
    steps: int = 8


# --- checks ---


@dataclass(frozen=True)
class Check:
    """Two ways to compute the same, and the relative error allowed between them.

    `table` and `row` and `column` say where its outcome stands: "recurrence in float32", "kda 64", "packed".
    """

    table: str
    row: str
    column: str
    bound: float
    measure: Callable[[], Errors] = field(repr=False)
    advice: str

    def run(self) -> "Outcome":
        """Measures; whatever goes wrong becomes a failed outcome."""
        start = time.perf_counter()
        errors, reason = {}, None
        try:
            errors = self.measure()
        except Exception as error:  # a kernel that does not compile raises almost anything
            reason = f"{type(error).__name__}: {error}"
        return Outcome(self, errors, reason, time.perf_counter() - start)


@dataclass(frozen=True)
class Outcome:
    """What a check measured, or the reason why it could not."""

    check: Check
    errors: Errors
    reason: str | None
    seconds: float

    @property
    def worst(self) -> tuple[str, float] | None:
        """Name and size of the largest error."""
        return max(self.errors.items(), key=lambda item: item[1], default=None)

    @property
    def passed(self) -> bool:
        return self.reason is None and self.worst[1] <= self.check.bound

    @property
    def where(self) -> str:
        """The check's place in its table, with every error above the bound."""
        wrong = [f"{name} {error:.0e}" for name, error in self.errors.items() if error > self.check.bound]
        return f"{self.check.row}, {self.check.column}" + (f": {', '.join(wrong)}" if wrong else "")

    def to_dict(self) -> dict:
        """Everything, for JSON (which has no infinity)."""
        check = self.check
        return {
            "table": check.table,
            "row": check.row,
            "column": check.column,
            "passed": self.passed,
            "bound": check.bound,
            "worst": self.worst and self.worst[0],
            "errors": {name: error if error < float("inf") else "inf" for name, error in self.errors.items()},
            "reason": self.reason,
            "advice": None if self.passed else check.advice,
            "seconds": round(self.seconds, 3),
        }


def failures(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], list[str]]:
    """Where checks failed, by what went wrong and what to do about it."""
    places: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if not outcome.passed:
            check = outcome.check
            what = outcome.reason or f"relative errors above the bound of {check.bound:.0e}"
            places.setdefault((f"{check.table}: {what}", check.advice), []).append(outcome.where)
    return places


def plan(machine: Machine, sizes: Sizes | None = None, head_sizes: tuple[int, ...] = HEAD_SIZES) -> list[Check]:
    """Every check of this machine."""
    sizes = sizes or Sizes()
    return [*_recurrence_checks(machine, sizes, head_sizes), *_student_checks(machine, sizes)]


def _recurrence_checks(machine: Machine, sizes: Sizes, head_sizes: tuple[int, ...]) -> Iterator[Check]:
    fallback = "chunked" if machine.uses_kernels else "reference"
    speed = "slower" if fallback == "chunked" else "very slow"
    advice = f"set backend: {fallback} in the recipe ({speed}), and report this with the file of --json"
    for dtype, bound in BOUNDS[machine.device].items():
        name = str(dtype).removeprefix("torch.")
        trains_in_it = dtype == list(BOUNDS[machine.device])[-1]  # packed rows compile anew, and are for training
        for head_size in head_sizes:
            for kind in KINDS:
                if kind.bounded and not machine.uses_kernels:  # a promise that only the kernels make use of
                    continue
                cases = CASES if kind.decay != "fixed" else {k: v for k, v in CASES.items() if k != "shut gates"}
                for column, case in cases.items():
                    if column == "packed" and not trains_in_it:
                        continue
                    tensors = Tensors(kind, head_size, dtype, machine.device, sizes)
                    measure = partial(case, tensors)
                    yield Check(f"recurrence in {name}", f"{kind.name} {head_size}", column, bound, measure, advice)


# --- the recurrence ---


class Kind(NamedTuple):
    """What a mixer asks of the recurrence."""

    name: str
    delta_rule: bool
    decay: str  # channel, head or fixed
    bounded: bool = False


KINDS = [Kind(name, *mixer) for name, mixer in MIXERS.items()]
KINDS.insert(1, KINDS[0]._replace(name=f"{KINDS[0].name} bounded", bounded=True))


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
        generator = torch.Generator().manual_seed(0)
        normal, uniform = partial(torch.randn, generator=generator), partial(torch.rand, generator=generator)
        shape = (batch, length, heads, self.head_size)
        q, k, v = l2_normalize(normal(shape)), l2_normalize(normal(shape)), normal(shape)
        inputs = {name: x.to(self.dtype) for name, x in (("q", q), ("k", k), ("v", v))}
        gates = normal(shape if self.kind.decay == "channel" else shape[:3])
        if self.kind.bounded:
            g = (gates - 2).to(self.dtype)
        elif self.kind.decay == "fixed":
            g = fixed_log_decay(heads, "cpu").expand(shape[:3]).contiguous()
        else:
            g = -torch.exp(gates - 2)
        if shut:
            g = torch.where(uniform(g.shape) < 0.1, FORGET if self.kind.bounded else SHUT, g)
        inputs["g"] = g
        if self.kind.delta_rule:
            inputs["beta"] = uniform(shape[:3])
        inputs["initial_state"] = normal(batch, heads, self.head_size, self.head_size)
        return {name: x.to(self.device) for name, x in inputs.items()}

    def form(self, **inputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The recurrence as this machine's students call it."""
        return linear_attention(**inputs | {"g": self.decay(inputs["g"])})

    def exact(self, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The recurrence token by token."""
        return recurrent_linear_attention(**inputs | {"g": log_decay(self.decay(inputs["g"]))})

    def decay(self, g: torch.Tensor) -> torch.Tensor | DecayGate:
        """As a student's layer hands it to the recurrence."""
        heads = g.shape[2]
        zeros = torch.zeros(heads * self.head_size, device=g.device)
        return DecayGate(g, zeros[:heads], zeros, KERNEL_BOUND) if self.kind.bounded else g


def compare_with_reference(tensors: Tensors, shut: bool = False) -> Errors:
    """Outputs, final state and every gradient against one token at a time in float64."""
    inputs = tensors.make(shut)
    exact = _with_gradients(tensors.exact, _double(inputs), tensors.kind)
    return _relative_errors(_with_gradients(tensors.form, inputs, tensors.kind), exact)


def compare_packed(tensors: Tensors) -> Errors:
    """Packed documents, outputs and gradients, against the same documents one by one in float64."""
    batch, length = tensors.sizes.batch, tensors.sizes.length
    rows = [[length // 3 + row, 1, length - length // 3 - row - 1] for row in range(batch)]
    inputs = tensors.make()
    inputs.pop("initial_state")
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows]).to(tensors.device)
    documents = Documents.from_position_ids(positions)

    def one_by_one(**inputs):
        outputs = []
        for row, lengths in enumerate(rows):
            split = {name: x[row : row + 1].split(lengths, dim=1) for name, x in inputs.items()}
            parts = [{name: pieces[i] for name, pieces in split.items()} for i in range(len(lengths))]
            outputs.append(torch.cat([tensors.exact(**part)[0] for part in parts], dim=1))
        return torch.cat(outputs), None

    exact = _with_gradients(one_by_one, _double(inputs), tensors.kind)
    packed = partial(tensors.form, documents=documents)
    return _relative_errors(_with_gradients(lambda **x: (packed(**x)[0], None), inputs, tensors.kind), exact)


@torch.no_grad()
def compare_steps(tensors: Tensors) -> Errors:
    """One pass over a prompt and then token by token, the state carried on, against one pass over everything."""
    inputs = tensors.make()
    state, prompt = inputs.pop("initial_state"), tensors.sizes.length - tensors.sizes.steps
    whole, final = tensors.form(**inputs, initial_state=state)
    outputs = []
    for part in [slice(prompt), *(slice(t, t + 1) for t in range(prompt, tensors.sizes.length))]:
        o, state = tensors.form(**{name: x[:, part] for name, x in inputs.items()}, initial_state=state)
        outputs.append(o)
    stepped = torch.cat(outputs[1:], dim=1)
    return _relative_errors({"o": stepped, "state": state}, {"o": whole[:, prompt:], "state": final})


CASES = {
    "usual gates": compare_with_reference,
    "shut gates": partial(compare_with_reference, shut=True),
    "packed": compare_packed,
    "steps": compare_steps,
}


def _double(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.double() for name, x in inputs.items()}


def _with_gradients(form: Callable, inputs: dict[str, torch.Tensor], kind: Kind) -> dict[str, torch.Tensor | None]:
    """Outputs, final state if there is one, and gradients of a random readout of both; fixed decays have none."""
    learned = {name: x.detach().requires_grad_() for name, x in inputs.items() if name != "g" or kind.decay != "fixed"}
    o, state = form(**inputs | learned)
    results = {"o": o} if state is None else {"o": o, "state": state}
    generator = torch.Generator().manual_seed(1)
    loss = 0.0
    for x in results.values():
        readout = torch.randn(x.shape, generator=generator).bfloat16()  # the same numbers whatever the precision
        loss = loss + (x * readout.to(x)).sum()
    loss.backward()
    gradients = {f"d{name.removeprefix('initial_')}": x.grad for name, x in learned.items()}
    return {name: x if x is None else x.detach() for name, x in (results | gradients).items()}


def _relative_errors(got: dict[str, torch.Tensor | None], exact: dict[str, torch.Tensor]) -> Errors:
    """Norm of the difference over the norm; infinite for what is missing or not finite."""
    errors = {}
    for name, expected in exact.items():
        expected = expected.double()
        error = float("inf") if got[name] is None else ((got[name].double() - expected).norm() / expected.norm()).item()
        errors[name] = error if error < float("inf") else float("inf")  # NaN too
    return errors


# --- a student ---


def _student_checks(machine: Machine, sizes: Sizes) -> Iterator[Check]:
    student = cache(partial(small_student, machine.device, sizes.heads))
    advice = "do not train or evaluate on this machine; report this with the file of --json"
    for row, case in STUDENT_CASES.items():
        measure = partial(_compare_student, case, student, machine.device, sizes)
        yield Check("student of all five mixers", row, "logits", STUDENT_BOUND[machine.device], measure, advice)


def small_student(device: str, heads: int, head_size: int = 64) -> GendistillForCausalLM:
    """A converted random Qwen3: one layer of attention, then one of each mixer; all new tensors off their start."""
    names = dict(enumerate(MIXERS, start=1))
    config = Qwen3Config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1 + len(names),
        num_attention_heads=heads,
        num_key_value_heads=1,
        head_dim=head_size,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        student, _ = convert(teacher, student_config(config, [0], mixer_in_layer=names), seed=0)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if any(part in name for part in ("conv1d", "f_b_proj", "g_b_proj", "norm", "bias")):
                    parameter.add_(0.2 * torch.randn_like(parameter))
                elif "_proj" in name:
                    parameter.mul_(4)  # the usual 0.02 leaves every layer too weak to be seen
    return student.to(device)


@torch.no_grad()
def _compare_student(case: Callable, student: Callable, device: str, sizes: Sizes) -> Errors:
    model = student()
    shape = (sizes.batch, sizes.length)
    ids = torch.randint(2, 97, shape, generator=torch.Generator().manual_seed(0)).to(device)
    got, expected = case(model, ids, sizes)
    return _relative_errors({"logits": got}, {"logits": expected})


def _padded(model: GendistillForCausalLM, ids: torch.Tensor, sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    padding = ids[:, : sizes.length // 3].flip(0)  # arbitrary tokens: their content must not matter
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = model(torch.cat([padding, ids], dim=1), attention_mask=mask, position_ids=positions, use_cache=False)
    return padded.logits[:, padding.shape[1] :], model(ids, use_cache=False).logits


def _packed(model: GendistillForCausalLM, ids: torch.Tensor, sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [sizes.length // 3, sizes.length - sizes.length // 3]
    positions = torch.cat([torch.arange(n, device=ids.device) for n in lengths]).expand_as(ids)
    separate = [model(part, use_cache=False).logits for part in ids.split(lengths, dim=1)]
    return model(ids, position_ids=positions, use_cache=False).logits, torch.cat(separate, dim=1)


def _in_pieces(
    lengths: Callable[[Sizes], list[int]], model: GendistillForCausalLM, ids: torch.Tensor, sizes: Sizes
) -> tuple[torch.Tensor, torch.Tensor]:
    logits, past = [], None
    for piece in ids.split(lengths(sizes), dim=1):
        out = model(piece, past_key_values=past, use_cache=True)
        logits, past = [*logits, out.logits], out.past_key_values
    return torch.cat(logits, dim=1), model(ids, use_cache=False).logits


def _halves(sizes: Sizes) -> list[int]:
    return [sizes.length // 2, sizes.length - sizes.length // 2]


def _prompt_and_steps(sizes: Sizes) -> list[int]:
    return [sizes.length - sizes.steps, *[1] * sizes.steps]


STUDENT_CASES = {
    "padded = unpadded": _padded,
    "packed = separate": _packed,
    "cached = uncached": partial(_in_pieces, _prompt_and_steps),
    "prefill in pieces = in one": partial(_in_pieces, _halves),
}
