"""fla's kernels against the reference, on a CUDA device. fp32 inputs run through TF32: errors near 1e-3 are normal."""

import pytest
import torch
from transformers import StaticCache

from gendistill.ops import KERNEL_BOUND, DecayGate, Documents, linear_attention
from gendistill.ops.chunked import chunked_linear_attention
from gendistill.ops.reference import l2_normalize, recurrent_linear_attention
from small_models import make_student

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BOUNDS = {torch.float32: 5e-3, torch.bfloat16: 2e-2}  # relative error, outputs and gradients
HEADS = {64: 14, 128: 16}  # as in Qwen2.5-0.5B and Qwen3-0.6B
KINDS = {  # what each mixer asks for
    "kda": dict(delta_rule=True, per_channel=True),
    "kda_bounded": dict(delta_rule=True, per_channel=True, bounded=True),
    "gated_deltanet": dict(delta_rule=True, per_channel=False),
    "gla": dict(delta_rule=False, per_channel=True),
    "mamba2_and_lightning": dict(delta_rule=False, per_channel=False),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
every_size = pytest.mark.parametrize("head_size", HEADS, ids=["d64", "d128"])


def make_inputs(kind, length, head_size, dtype, batch=2):
    """Everyday gates and, for every seventh token, one that forgets nearly all (-5) or more (-30)."""
    torch.manual_seed(0)
    kind, heads = KINDS[kind], HEADS[head_size]
    shape = (batch, length, heads, head_size)
    q, k, v = (torch.randn(shape, device="cuda") for _ in range(3))
    q, k, v = l2_normalize(q).to(dtype), l2_normalize(k).to(dtype), v.to(dtype)
    g = -torch.exp(torch.randn(shape if kind["per_channel"] else shape[:3], device="cuda") - 2).clamp(max=5)
    g[:, ::7] = -30.0
    inputs = {"q": q, "k": k, "v": v, "g": g}
    if kind.get("bounded"):
        raw = torch.randn(shape, device="cuda")
        raw[:, ::7] = 20.0
        inputs["g"] = raw.to(dtype)
        inputs["A_log"] = 0.1 * torch.randn(heads, device="cuda")
        inputs["dt_bias"] = torch.randn(heads * head_size, device="cuda") - 2
    if kind["delta_rule"]:
        inputs["beta"] = torch.rand(shape[:3], device="cuda")
    return inputs


def call(form, A_log=None, dt_bias=None, **inputs):
    """The recurrence; with the parameters of a gate, g is what that makes a bounded decay of."""
    if A_log is not None:
        gate = DecayGate(inputs["g"], A_log, dt_bias, KERNEL_BOUND)
        inputs["g"] = gate if form is linear_attention else gate.log_decay()
    return form(**inputs)


def tokens(inputs, part):
    return {name: x if name in ("A_log", "dt_bias") else x[:, part] for name, x in inputs.items()}


def packed(*lengths, rows=2):
    return Documents.from_position_ids(torch.cat([torch.arange(n) for n in lengths]).cuda().repeat(rows, 1))


def run(form, inputs, dtype, **options):
    inputs = {
        name: (x.double() if dtype == torch.float64 else x).clone().requires_grad_() for name, x in inputs.items()
    }
    o, state = call(form, **inputs, **options)
    generator = torch.Generator("cuda").manual_seed(1)
    readout = torch.randn(o.shape, device="cuda", generator=generator)
    loss = (o * readout.to(o.dtype)).sum()
    if state is not None and "documents" not in options:
        loss = loss + (state * torch.randn(state.shape, device="cuda", generator=generator).to(state.dtype)).sum()
    loss.backward()
    results = {"o": o.detach(), "state": None if state is None else state.detach()}
    return results | {f"d{name}": x.grad for name, x in inputs.items()}


def error(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


def errors(got, exact):
    return {name: error(got[name], x) for name, x in exact.items() if x is not None and got[name] is not None}


def show(title, measured):
    print(f"\n{title}:", {name: f"{value:.1e}" for name, value in measured.items()})


@pytest.mark.parametrize("form", ["plain", "packed"])
@every_dtype
@every_size
@every_kind
def test_kernel_equals_reference(kind, head_size, dtype, form):
    inputs = make_inputs(kind, 200, head_size, dtype)
    shared = {"documents": packed(70, 1, 129)} if form == "packed" else {}
    if form == "plain":
        inputs["initial_state"] = torch.randn(2, HEADS[head_size], head_size, head_size, device="cuda")
    exact = run(recurrent_linear_attention, inputs, torch.float64, **shared)
    measured = errors(run(linear_attention, inputs, dtype, **shared), exact)
    show(f"{kind}, head size {head_size}, {dtype}, {form}", measured)
    assert max(measured.values()) < BOUNDS[dtype]


@every_size
@pytest.mark.parametrize("kind", ["kda", "kda_bounded"])
def test_gradients_are_the_same_bits_in_every_run(kind, head_size):
    """No race: one of KDA's kernels runs with more warps than fla tries on Hopper (scripts/tune_kernels.py)."""
    inputs = make_inputs(kind, 2048, head_size, torch.bfloat16, batch=4)
    documents = packed(700, 37, 1, 900, 410, rows=4)
    first, *others = (run(linear_attention, inputs, torch.bfloat16, documents=documents) for _ in range(4))
    for other in others:
        for name, x in first.items():
            assert x is None or torch.equal(x, other[name]), name


@every_size
@every_kind
def test_kernel_at_training_shape(kind, head_size):
    """Rows as training has them: what a kernel gets wrong may need many chunks and documents to show."""
    inputs = make_inputs(kind, 2048, head_size, torch.bfloat16)
    documents = packed(700, 37, 1, 900, 410)
    exact = run(chunked_linear_attention, inputs, torch.float64, documents=documents)
    measured = errors(run(linear_attention, inputs, torch.bfloat16, documents=documents), exact)
    show(f"{kind}, head size {head_size}, 2 rows of 2048 tokens", measured)
    assert max(measured.values()) < BOUNDS[torch.bfloat16]


@every_size
@every_kind
@torch.no_grad()
def test_steps_equal_one_pass(kind, head_size):
    inputs = make_inputs(kind, 40, head_size, torch.float32)
    whole, final = call(linear_attention, **inputs)
    outputs, state = call(linear_attention, **tokens(inputs, slice(30)))
    outputs = [outputs]
    for t in range(30, 40):
        o, state = call(linear_attention, **tokens(inputs, slice(t, t + 1)), initial_state=state)
        outputs.append(o)
    measured = {"o": error(torch.cat(outputs, dim=1), whole.double()), "state": error(state, final.double())}
    show(f"{kind}, head size {head_size}, steps", measured)
    assert max(measured.values()) < 5e-3


STUDENTS = {
    "kda hybrid": dict(keep=(1,)),
    "kda bounded": dict(keep=(1,), log_decay_bound=-5.0),
    "gated_deltanet hybrid": dict(keep=(1,), mixer="gated_deltanet"),
    "mamba2 pure": dict(keep=(), mixer="mamba2"),
    "gla pure": dict(keep=(), mixer="gla"),
    "mixed": dict(keep=(1,), mixer_in_layer={0: "gated_deltanet", 2: "lightning", 3: "gla"}),
}
every_student = pytest.mark.parametrize("options", STUDENTS.values(), ids=[name.replace(" ", "_") for name in STUDENTS])


@every_student
@torch.no_grad()
def test_student_on_cuda_equals_cpu_padded_packed_and_cached(options):
    student = make_student("qwen3", **options)
    ids = torch.randint(2, 97, (2, 90), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    positions = torch.cat([torch.arange(50), torch.arange(40)]).repeat(2, 1)
    expected = student(ids, attention_mask=mask).logits[:, 20:]
    expected_packed = student(ids, position_ids=positions).logits
    student, ids, mask = student.cuda(), ids.cuda(), mask.cuda()
    got = student(ids, attention_mask=mask).logits[:, 20:]
    got_packed = student(ids, position_ids=positions.cuda()).logits
    out = student(ids[:, :80], attention_mask=mask[:, :80], use_cache=True)
    logits = [out.logits]
    for t in range(80, 90):
        step = dict(attention_mask=mask[:, : t + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(student(ids[:, t : t + 1], **step).logits)
    measured = {
        "padded": error(got.cpu(), expected.double()),
        "packed": error(got_packed.cpu(), expected_packed.double()),
        "cached": error(torch.cat(logits, dim=1)[:, 20:].cpu(), expected.double()),
    }
    show(f"student {options}, cuda against cpu", measured)
    assert max(measured.values()) < 1e-2


@every_student
@torch.no_grad()
def test_a_cuda_graph_decodes_like_eager_steps(options):
    """Decoding captured once and replayed: states are updated in place, and no step asks the GPU for a number."""
    student = make_student("qwen3", **options).cuda()
    ids = torch.randint(2, 97, (2, 40), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    expected = student(ids, use_cache=False).logits[:, 24:]
    if student.config.is_pure:
        cache = student(ids[:, :20], use_cache=True).past_key_values
    else:
        cache = StaticCache(config=student.config, max_cache_len=64)
        student(ids[:, :20], past_key_values=cache, use_cache=True)
    token, position = ids[:, :1].clone(), torch.zeros(2, 1, dtype=torch.long, device="cuda")

    def step(t=None):
        if t is not None:
            token.copy_(ids[:, t : t + 1])
            position.fill_(t)
        return student(token, position_ids=position, past_key_values=cache, use_cache=True).logits

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for t in range(20, 23):
            step(t)  # kernels compile outside the graph
    torch.cuda.current_stream().wait_stream(stream)
    step(23)
    graph = torch.cuda.CUDAGraph()
    token.copy_(ids[:, 24:25])
    position.fill_(24)
    with torch.cuda.graph(graph):
        logits = step()
    got = []
    for t in range(24, 40):
        token.copy_(ids[:, t : t + 1])
        position.fill_(t)
        graph.replay()
        got.append(logits.clone())
    measured = {"logits": error(torch.cat(got, dim=1), expected.double())}
    show(f"student {options}, CUDA graph", measured)
    assert measured["logits"] < 1e-2
