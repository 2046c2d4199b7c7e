"""fla's kernels against the reference, on a CUDA device. fp32 inputs run through TF32: errors near 1e-3 are normal."""

import pytest
import torch

from gendistill.ops import Documents, gated_delta_rule
from gendistill.ops.reference import recurrent_gated_delta_rule
from small_models import make_student

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BOUNDS = {torch.float32: 5e-3, torch.bfloat16: 2e-2}  # relative error, outputs and gradients


def make_inputs(length, head_size, dtype, batch=2, heads=3):
    torch.manual_seed(0)
    shape = (batch, length, heads, head_size)
    q, k, v = (torch.randn(shape, device="cuda").to(dtype) for _ in range(3))
    g = -torch.exp(torch.randn(shape, device="cuda") - 2)
    beta = torch.rand(shape[:3], device="cuda")
    return {"q": q, "k": k, "v": v, "g": g, "beta": beta}


def run(form, inputs, dtype, **options):
    inputs = {
        name: (x.double() if dtype == torch.float64 else x).clone().requires_grad_() for name, x in inputs.items()
    }
    o, state = form(**inputs, **options)
    readout = torch.randn(o.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    (o * readout.to(o.dtype)).sum().backward()
    return o, state, {name: x.grad for name, x in inputs.items()}


def error(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("head_size", [64, 128])
def test_kernel_equals_reference(head_size, dtype, packed):
    inputs = make_inputs(200, head_size, dtype)
    documents = None
    if packed:
        positions = torch.cat([torch.arange(70), torch.arange(1), torch.arange(129)]).cuda().repeat(2, 1)
        documents = Documents.from_position_ids(positions)
    exact_o, exact_state, exact = run(recurrent_gated_delta_rule, inputs, torch.float64, documents=documents)
    o, state, gradients = run(gated_delta_rule, inputs, dtype, documents=documents)
    errors = {"o": error(o, exact_o)} | {f"d{name}": error(gradients[name], exact[name]) for name in exact}
    if not packed:
        errors["state"] = error(state, exact_state)
    print(f"\nhead size {head_size}, {dtype}, packed {packed}:", {n: f"{e:.1e}" for n, e in errors.items()})
    assert max(errors.values()) < BOUNDS[dtype]


@pytest.mark.parametrize("head_size", [64, 128])
def test_steps_equal_one_pass(head_size):
    inputs = make_inputs(40, head_size, torch.float32)
    with torch.no_grad():
        whole, final = gated_delta_rule(**inputs)
        outputs, state = gated_delta_rule(**{name: x[:, :30] for name, x in inputs.items()})
        outputs = [outputs]
        for t in range(30, 40):
            o, state = gated_delta_rule(**{name: x[:, t : t + 1] for name, x in inputs.items()}, initial_state=state)
            outputs.append(o)
    assert error(torch.cat(outputs, dim=1), whole.double()) < 5e-3
    assert error(state, final.double()) < 5e-3


def test_student_on_cuda_equals_cpu_padded_packed_and_cached():
    student = make_student("qwen3")
    ids = torch.randint(2, 97, (2, 90))
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    positions = torch.cat([torch.arange(50), torch.arange(40)]).repeat(2, 1)
    with torch.no_grad():
        expected = student(ids, attention_mask=mask).logits[:, 20:]
        expected_packed = student(ids, position_ids=positions).logits
        student = student.cuda()
        got = student(ids.cuda(), attention_mask=mask.cuda()).logits[:, 20:]
        got_packed = student(ids.cuda(), position_ids=positions.cuda()).logits
        out = student(ids[:, :80].cuda(), attention_mask=mask[:, :80].cuda(), use_cache=True)
        logits = [out.logits]
        for t in range(80, 90):
            logits.append(
                student(
                    ids[:, t : t + 1].cuda(),
                    attention_mask=mask[:, : t + 1].cuda(),
                    past_key_values=out.past_key_values,
                    use_cache=True,
                ).logits
            )
    errors = {
        "padded": error(got.cpu(), expected.double()),
        "packed": error(got_packed.cpu(), expected_packed.double()),
        "cached": error(torch.cat(logits, dim=1)[:, 20:].cpu(), expected.double()),
    }
    print("\nstudent, cuda against cpu:", {name: f"{value:.1e}" for name, value in errors.items()})
    assert max(errors.values()) < 1e-2
