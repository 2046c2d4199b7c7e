"""What a linear layer is to the operations of prefill and decoding, of random weights."""

import torch

from gendistill.ops.decode_layer_kernels import Recurrence

HEADS, GROUPS, TAPS = 4, 2, 4


def make_recurrence(
    dtype, decay, bound, delta_rule, silu, norm, share, *, width: int = 64, device: str = "cuda"
) -> Recurrence:
    """decay: channel, head or fixed. share: None, head or token."""
    channels = (HEADS + 2 * GROUPS) * width

    def draw(*shape, dtype=dtype):
        return 0.3 * torch.randn(*shape, device=device, dtype=dtype)

    return Recurrence(
        conv_weight=draw(channels, TAPS),
        conv_bias=draw(channels),
        decay_weight=draw(HEADS * width, width) if decay == "channel" else None,
        A_log=None if decay == "fixed" else draw(HEADS, dtype=torch.float32),
        dt_bias=None if decay == "fixed" else draw(HEADS * (width if decay == "channel" else 1), dtype=torch.float32),
        bound=bound,
        fixed=-draw(HEADS, dtype=torch.float32).abs() if decay == "fixed" else None,
        delta_rule=delta_rule,
        gate_weight=draw(HEADS * width, width),
        gate_bias=draw(HEADS * width),
        norm=draw(width) if norm else None,
        eps=1e-6,
        silu_conv=silu,
        silu_gate=silu,
        heads=HEADS,
        key_heads=GROUPS,
        share_logit=None if share is None else torch.randn(HEADS, device=device),
        share_by_token=share == "token",
        seen_whole=None if share is None else 5,
    )
