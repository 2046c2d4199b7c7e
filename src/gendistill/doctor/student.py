"""Checks of a small student of all mixers: padded, packed, cached, prefilled in pieces."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from gendistill.doctor.machine import Machine
from gendistill.doctor.measurement import Check, Errors, relative_errors
from gendistill.doctor.recurrence import Sizes
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.names import MIXERS

STUDENT_BOUND = {"cpu": 1e-4, "cuda": 5e-2}  # in float32; norms amplify TF32's errors, a leak is far larger still


def student_checks(machine: Machine, sizes: Sizes) -> Iterator[Check]:
    """One table: ways of running a model that must give the same logits."""
    # Built by the first check that asks, so that a failure to build it is a failed check and not a traceback.
    student = cache(partial(small_student, machine.device, sizes.heads))
    advice = "do not train or evaluate on this machine; report this with the file of --json"
    for row, case in STUDENT_CASES.items():
        measure = partial(_compare_student, case, student, machine.device, sizes)
        yield Check("student of all mixers", row, "logits", STUDENT_BOUND[machine.device], measure, advice)


def small_student(device: str, heads: int, head_size: int = 64) -> GendistillForCausalLM:
    """A converted random Qwen3: one layer of attention, then one of each mixer.

    Beside every recurrence stands a window, and no new tensor is at its initialisation.
    """
    names = dict(enumerate(MIXERS, start=1))  # layer -> mixer; layer 0 keeps attention
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
        teacher = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        student, _ = convert(teacher, student_config(config, [0], mixer_in_layer=names, window=16, sinks=4), seed=0)
        # A zero bias or a convolution that passes its input through would hide a mistake in them.
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
    ids = torch.randint(2, 97, shape, generator=torch.Generator().manual_seed(0)).to(device)  # neither padding nor end
    got, expected = case(model, ids, sizes)
    return relative_errors({"logits": got}, {"logits": expected})


def _padded(model: GendistillForCausalLM, ids: torch.Tensor, sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Padding on the left, against none; logits [B, T, V], as of all cases."""
    padding = ids[:, : sizes.length // 3].flip(0)  # [B, P] arbitrary tokens: their content must not matter
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], dim=1)  # [B, P + T]
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # 0 at the first token that is not padding
    padded = model(torch.cat([padding, ids], dim=1), attention_mask=mask, position_ids=positions, use_cache=False)
    return padded.logits[:, padding.shape[1] :], model(ids, use_cache=False).logits


def _packed(model: GendistillForCausalLM, ids: torch.Tensor, sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Two documents in one packed sequence, against each alone."""
    lengths = [sizes.length // 3, sizes.length - sizes.length // 3]
    # Positions that restart at 0 are all that tells where a document begins.
    positions = torch.cat([torch.arange(n, device=ids.device) for n in lengths]).expand_as(ids)
    separate = [model(part, use_cache=False).logits for part in ids.split(lengths, dim=1)]
    return model(ids, position_ids=positions, use_cache=False).logits, torch.cat(separate, dim=1)


def _in_pieces(
    lengths: Callable[[Sizes], list[int]], model: GendistillForCausalLM, ids: torch.Tensor, sizes: Sizes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Piece after piece with the cache of those before, against one pass."""
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
