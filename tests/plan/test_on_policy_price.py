"""What writing replies adds to the price of a stage: caches, arithmetic and disk."""

import pytest
import torch

from gendistill.compute import Compute
from gendistill.models.cache import cache_bytes
from gendistill.models.families import student_config
from gendistill.plan.price import Planner
from gendistill.recipe.stage import Stage
from small_models import FAMILIES, make_student

SETTINGS = dict(
    objective="reverse_kl",
    loss_on="completion",
    train=["mixer"],
    tokens=10 * 8 * 64,
    sequence_length=64,
    sequences_per_step=8,
    micro_batch=2,
    learning_rate=1e-3,
)
ON_POLICY = dict(on_policy="chats", share=0.5, new_tokens=(4, 16))


@pytest.fixture
def planner():
    teacher = FAMILIES["qwen3"]
    return Planner(teacher, student_config(teacher, [1]), Compute("cpu", torch.float32, compiled=False, kernels=False))


def price(planner, **changes):
    return planner.price(Stage(**(SETTINGS | dict(data=ON_POLICY) | changes)))


def test_a_stage_without_replies_pays_for_none(planner):
    plain = price(planner, data="chats")
    assert plain.writing is None
    assert plain.disk.replies == 0
    assert plain.to_dict()["writing"] is None


def test_caches_are_those_that_writing_makes(planner):
    """Half of eight sequences, each with two conversations of 16 tokens of prompt and as many of reply."""
    writing = price(planner).writing
    assert writing.replies == 4 * 2
    student = make_student("qwen3")
    with torch.no_grad():
        made = student(torch.ones(8, 32, dtype=torch.long), use_cache=True).past_key_values
    assert writing.cache_bytes == cache_bytes(made)


def test_a_batch_of_replies_has_a_largest_size(planner):
    assert price(planner, sequences_per_step=800, micro_batch=1).writing.replies == 32  # on a CPU


def test_writing_is_a_forward_pass_of_the_share(planner):
    plain, half, all_of_it = (
        price(planner, data=data).flops_per_token for data in ("chats", ON_POLICY, ON_POLICY | dict(share=1.0))
    )
    assert all_of_it - plain == pytest.approx(2 * (half - plain))
    # A pass with nothing trained of the same student costs a third of forward and backward, or less.
    assert 0 < all_of_it - plain < plain / 2


def test_replies_take_disk(planner):
    on_policy, plain = price(planner), price(planner, data="chats")
    tokens = 10 * 4 * 64
    assert on_policy.disk.replies == 8 * tokens
    assert on_policy.needed - plain.needed == on_policy.writing.cache_bytes // on_policy.writing.replies
