"""`gendistill.generate`: transformers' `generate` for token ids, by the fast decoding loop."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from gendistill.errors import UserError
from gendistill.inference.decoding import Decoding, Sampling, can_decode


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> torch.Tensor:
    """Prompts with their replies, as `model.generate` returns them: greedy, or sampled with a temperature.

    Args:
        model: a student, or a teacher of a supported family.
        input_ids: [B, T].
        attention_mask: [B, T], 0 for padding, on whichever side it stands; None for none.
        eos_token_id: what ends a reply; None: as the generation config says.
        temperature: 0 is greedy.

    Returns:
        [B, T + new tokens]: the prompts as given, then the replies, filled up with padding behind their ends.

    Raises:
        UserError: the model is none that the loop knows: use `model.generate`.
    """
    if not can_decode(model):
        raise UserError(
            f"gendistill.generate knows students and teachers of supported families, not {type(model).__name__}; use "
            "model.generate"
        )
    config = model.generation_config
    ends = config.eos_token_id if eos_token_id is None else eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    # Any id does: what stands behind an end is nobody's.
    pad = config.pad_token_id if config.pad_token_id is not None else next(iter(ends), 0)
    rows = input_ids.tolist()
    if attention_mask is not None:
        real = attention_mask.bool().tolist()
        rows = [[token for token, is_real in zip(*own, strict=True) if is_real] for own in zip(rows, real, strict=True)]
    # A reply's random numbers are its own, whatever else is in the batch.
    sampling = None
    if temperature > 0:
        sampling = Sampling(temperature, top_p, [f"{seed} {row}" for row in range(len(rows))])
    # -1 is no token: without an end every reply takes its budget.
    decoding = Decoding(model, len(rows), max_new_tokens, ends=ends or [-1], pad=pad, sampling=sampling)
    replies: dict[int, list[int]] = {}
    for ended in decoding.run(rows):
        replies |= ended
    longest = max(map(len, replies.values()))
    new = [replies[row] + [pad] * (longest - len(replies[row])) for row in range(len(rows))]
    return torch.cat([input_ids, torch.tensor(new, device=input_ids.device)], dim=1)
