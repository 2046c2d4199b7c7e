"""The chunked form equals the recurrence: outputs, final state and every gradient, whatever the gates and lengths."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.errors import UserError
from gendistill.ops import Documents, dispatch, linear_attention, set_backend
from gendistill.ops.chunked import chunked_linear_attention
from gendistill.ops.reference import l2_normalize, recurrent_linear_attention

KINDS = {  # what each mixer asks for: the delta rule or not, a decay per channel or per head
    "kda": dict(delta_rule=True, per_channel=True),
    "gated_deltanet": dict(delta_rule=True, per_channel=False),
    "gla": dict(delta_rule=False, per_channel=True),
    "mamba2 and lightning": dict(delta_rule=False, per_channel=False),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def make_inputs(
    length,
    kind=KINDS["kda"],
    *,
    batch=2,
    heads=2,
    key_size=8,
    value_size=8,
    gate_spread=1.0,
    similar_keys=False,
    seed=0,
):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k = normal(batch, length, heads, key_size), normal(batch, length, heads, key_size)
    if similar_keys:
        k = normal(batch, 1, heads, key_size) + 1e-3 * k
    q, k = l2_normalize(q), l2_normalize(k)
    v = normal(batch, length, heads, value_size)
    g = -torch.exp(gate_spread * normal(batch, length, heads, key_size) - 1)
    inputs = {"q": q, "k": k, "v": v, "g": g if kind["per_channel"] else g[..., 0]}
    if kind["delta_rule"]:
        inputs["beta"] = torch.sigmoid(2 * normal(batch, length, heads))
    return inputs | {"initial_state": normal(batch, heads, key_size, value_size)}


def positions_of(lengths):
    return torch.cat([torch.arange(n) for n in lengths])[None]


def run(form, inputs, dtype, documents=None):
    """Outputs, state and gradients of a fixed random readout."""
    inputs = {name: x.clone().to(dtype).requires_grad_() for name, x in inputs.items()}
    o, state = form(**inputs, documents=documents)
    generator = torch.Generator().manual_seed(99)
    readout = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype) for x in (o, state)]
    ((o * readout[0]).sum() + (state * readout[1]).sum()).backward()
    return {"o": o, "state": state} | {f"d{name}": x.grad for name, x in inputs.items()}


def assert_equal(got, expected, bound):
    for name, exact in expected.items():
        # A gradient that is exactly zero (an initial state cut off by a boundary) may come back as no gradient at all.
        value = torch.zeros_like(exact) if got[name] is None else got[name].double()
        assert torch.isfinite(value).all(), name
        assert (value - exact).norm() <= bound * exact.norm() + 1e-12, name


@every_kind
@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 150),
    gate_spread=st.sampled_from([0.1, 1.0, 4.0]),
    similar_keys=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_chunked_equals_reference(kind, length, gate_spread, similar_keys, seed):
    inputs = make_inputs(length, kind, gate_spread=gate_spread, similar_keys=similar_keys, seed=seed)
    exact = run(recurrent_linear_attention, inputs, torch.float64)
    # Nearly equal keys cancel in the outputs and gradients, in any method; the bounds are what the
    # arithmetic allows.
    assert_equal(run(chunked_linear_attention, inputs, torch.float64), exact, 1e-9)
    assert_equal(run(chunked_linear_attention, inputs, torch.float32), exact, 1e-3 if similar_keys else 1e-5)


@every_kind
@pytest.mark.parametrize("gate", [-1e-9, -30.0, -1e4])
def test_extreme_gates(kind, gate):
    inputs = make_inputs(100, kind)
    inputs["g"][:, ::3] = gate  # every third token forgets nothing, or everything
    exact = run(recurrent_linear_attention, inputs, torch.float64)
    assert_equal(run(chunked_linear_attention, inputs, torch.float32), exact, 1e-5)


def test_all_gates_shut_leaves_only_the_last_write():
    inputs = make_inputs(70, key_size=4)
    inputs["g"].fill_(-1e4)
    o, _ = chunked_linear_attention(**{name: x.float() for name, x in inputs.items()})
    q, k, v, beta = (inputs[name] for name in ("q", "k", "v", "beta"))
    expected = beta[..., None] * v * (q * k).sum(-1, keepdim=True) / 2
    torch.testing.assert_close(o.double(), expected, rtol=1e-5, atol=1e-6)


@every_kind
@pytest.mark.parametrize("lengths", [[5, 1, 60, 64, 20], [64, 64], [1, 1, 1], [130, 3]])
def test_packed_documents_equal_separate_ones(kind, lengths):
    inputs = make_inputs(sum(lengths), kind, batch=1)
    inputs.pop("initial_state")
    documents = Documents.from_position_ids(positions_of(lengths))
    exact = run(recurrent_linear_attention, inputs, torch.float64, documents)
    packed = run(chunked_linear_attention, inputs, torch.float32, documents)
    assert_equal(packed, exact, 1e-5)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        apart, _ = recurrent_linear_attention(**{name: x[:, part] for name, x in inputs.items()})
        torch.testing.assert_close(exact["o"][:, part], apart, rtol=1e-12, atol=1e-12)
        start += length


def test_borders_clear_the_initial_state():
    inputs = make_inputs(20, batch=1)
    documents = Documents.from_position_ids(positions_of([12, 8]))
    _, state = chunked_linear_attention(**inputs, documents=documents)
    apart, expected = recurrent_linear_attention(**{n: x[:, 12:] for n, x in inputs.items() if n != "initial_state"})
    torch.testing.assert_close(state, expected)


@every_kind
@pytest.mark.parametrize("cut", [1, 37, 64, 99])
def test_pieces_equal_the_whole(kind, cut):
    inputs = make_inputs(100, kind)
    state = inputs.pop("initial_state")
    whole, final = linear_attention(**inputs, initial_state=state)
    first, state = linear_attention(**{name: x[:, :cut] for name, x in inputs.items()}, initial_state=state)
    second, state = linear_attention(**{name: x[:, cut:] for name, x in inputs.items()}, initial_state=state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(state, final)


def test_writes_are_read_back():
    """An identity the definition promises: a value written with beta 1 under a key is what that key reads next."""
    inputs = make_inputs(3, heads=1, key_size=4)
    inputs["beta"].fill_(1.0)
    inputs["q"] = inputs["k"]
    o, _ = recurrent_linear_attention(**inputs)
    torch.testing.assert_close(o * 2, inputs["v"], rtol=1e-5, atol=1e-5)


@every_kind
def test_every_mixer_is_the_delta_rule_with_parts_left_out(kind):
    """One state update: equal decays of all channels are a decay per head; no two keys alike make the rules agree."""
    inputs = make_inputs(8, kind, key_size=8)
    basis = torch.eye(8, dtype=torch.float64)[None, :, None].expand(2, 8, 2, 8)
    inputs |= {"k": basis, "g": torch.full_like(inputs["g"], -0.1), "initial_state": None}
    if kind["delta_rule"]:
        inputs["beta"] = torch.ones_like(inputs["beta"])
    plain = {**inputs, "g": torch.full((2, 8, 2, 8), -0.1, dtype=torch.float64), "beta": torch.ones(2, 8, 2)}
    for got, expected in zip(recurrent_linear_attention(**inputs), recurrent_linear_attention(**plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def backend():
    yield set_backend
    set_backend("auto")


def test_a_backend_asked_for_by_name_is_taken(backend, monkeypatch):
    inputs = make_inputs(5)
    taken = []
    monkeypatch.setitem(dispatch._PLAIN, "reference", lambda *_: taken.append("reference"))
    monkeypatch.setitem(dispatch._PLAIN, "chunked", lambda *_: taken.append("chunked"))
    for name in ("reference", "chunked"):
        backend(name)
        linear_attention(**inputs)
    assert taken == ["reference", "chunked"]


def test_plain_is_for_any_device(backend, monkeypatch):
    """A tensor on CUDA, as far as anybody asks: exported folders compute so where fla-core is not installed."""
    on_cuda = SimpleNamespace(is_cuda=True, shape=(2, 5), device="cuda")
    monkeypatch.setattr(dispatch, "chunked_linear_attention", lambda *_: "chunked")
    monkeypatch.setattr(dispatch, "recurrent_linear_attention", lambda *_: "token by token")
    assert dispatch.takes_kernels(on_cuda)
    backend("plain")
    assert not dispatch.takes_kernels(on_cuda)
    assert linear_attention(on_cuda, None, None, torch.zeros(1)) == "chunked"
    on_cuda.shape = (2, 1)
    assert linear_attention(on_cuda, None, None, torch.zeros(1)) == "token by token"


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_a_backend_that_cannot_run_is_refused(backend):
    with pytest.raises(UserError, match="needs a CUDA device"):
        backend("kernels")
    with pytest.raises(UserError, match="known: auto, plain, reference, chunked, kernels"):
        backend("triton")
    linear_attention(**make_inputs(5))  # and the choice before still holds


def test_documents_are_read_off_position_ids():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [3, 4, 5, 6, 0, 1]])
    documents = Documents.from_position_ids(positions)
    assert documents.starts.int().tolist() == [[1, 0, 0, 1, 0, 1], [1, 0, 0, 0, 1, 0]]
    assert documents.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]
    assert documents.cu_seqlens.tolist() == [0, 3, 5, 6, 10, 12]
    assert Documents.from_position_ids(torch.arange(5).repeat(2, 1)) is None
