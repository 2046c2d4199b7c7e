"""Small random teachers of every family, with the traits that have broken converters; their students; inputs."""

from copy import deepcopy

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.models.mixers.layer import LOGIT_SCALE
from gendistill.names import MIXERS as MIXER_TABLE
from gendistill.names import LinearMixer

SHAPE = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=None,
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),  # head_dim is not hidden / heads
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False, rope_parameters=LLAMA3_ROPE, mlp_bias=True),
    "mistral": MistralConfig(**SHAPE, head_dim=16, sliding_window=None),
}


def make_teacher(family: str, seed: int = 0, **sizes):
    """A random teacher whose norms and biases are not at their trivial initialisation; of other `sizes` if given."""
    torch.manual_seed(seed)
    config = deepcopy(FAMILIES[family])
    config.update(sizes)
    teacher = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(4)  # the usual 0.02 leaves every layer too weak to be seen
    return teacher


def make_student(family: str, keep=(1,), sizes=None, **options):
    """A converted student whose new tensors are moved off their initialisation, so that every path matters."""
    teacher = make_teacher(family, **(sizes or {}))
    student, _ = convert(teacher, student_config(teacher.config, list(keep), **options), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if any(part in name for part in ("conv1d", "g_b_proj", "f_b_proj", "o_norm", ".a_proj", ".b_proj")):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "window_logit" in name:
                parameter.copy_(torch.randn_like(parameter) / LOGIT_SCALE)  # both have a share
            elif "share_proj" in name:
                parameter.copy_(torch.randn_like(parameter))  # another share for every token
    return student


MIXERS = tuple(name for name, mixer in MIXER_TABLE.items() if isinstance(mixer, LinearMixer))
WINDOW = dict(window=5, sinks=2)  # far shorter than the tests' texts


def _variants() -> dict[str, dict]:
    """Every linear mixer in every placement in the family with biases, and the other families in turn; then windows,
    alone and beside a recurrence."""
    placements = {}
    for i, mixer in enumerate(MIXERS):
        after = {layer: MIXERS[(i + layer) % len(MIXERS)] for layer in (2, 3)}
        placements[mixer, "hybrid"] = dict(keep=(1,), mixer=mixer)
        placements[mixer, "pure"] = dict(keep=(), mixer=mixer)
        placements[mixer, "mixed"] = dict(keep=(1,), mixer=mixer, mixer_in_layer=after)
        placements[mixer, "pure-mixed"] = dict(keep=(), mixer=mixer, mixer_in_layer=after)
    names = [("qwen2", *place) for place in placements if place[1] != "pure-mixed"]
    names += [("qwen3", "kda", "hybrid"), ("qwen3", "mamba2", "pure"), ("qwen3", "gla", "mixed")]
    names += [("llama", "gated_deltanet", "hybrid"), ("llama", "lightning", "pure"), ("llama", "kda", "pure-mixed")]
    names += [("mistral", "kda", "hybrid")]
    variants = {"-".join(name): dict(family=name[0], **placements[name[1:]]) for name in names}
    for family in ("qwen2", "qwen3", "llama"):
        variants[f"{family}-window-hybrid"] = dict(family=family, keep=(1,), mixer="window", **WINDOW)
    variants["qwen3-window-pure"] = dict(family="qwen3", keep=(), mixer="window", **WINDOW)
    variants["qwen2-window-without-sinks"] = dict(family="qwen2", keep=(1,), mixer="window", window=3, sinks=0)
    variants["qwen2-window-of-three"] = dict(family="qwen2", keep=(2,), mixer="window", window=3, sinks=1)
    variants["qwen2-window-mixed"] = dict(
        family="qwen2", keep=(1,), mixer="window", mixer_in_layer={3: "kda"}, **WINDOW
    )
    for family, mixer in (("qwen3", "kda"), ("llama", "gated_deltanet")):
        variants[f"{family}-{mixer}-beside-window"] = dict(family=family, keep=(1,), mixer=mixer, **WINDOW)
    by_token = dict(window_share="token", **WINDOW)
    variants["qwen2-mamba2-share-by-token"] = dict(family="qwen2", keep=(1,), mixer="mamba2", **by_token)
    variants["qwen3-kda-pure-share-by-token"] = dict(family="qwen3", keep=(), mixer="kda", **by_token)
    for options in variants.values():
        # A recurrence before attention and behind it takes three layers; other mixers stand in the fourth, and random
        # students with windows alone say too little with fewer.
        if "mixer_in_layer" not in options and options["mixer"] != "window":
            options["sizes"] = dict(num_hidden_layers=3)
    return variants


VARIANTS = _variants()

# For logits in float64, of a size of about 0.6: layers round some numbers to float32 on the way, and an output norm
# over small outputs enlarges that. In float32 nothing below 1e-3 could be told from rounding.
CLOSE = dict(rtol=0, atol=1e-4)


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def pad_left(ids: torch.Tensor, amount: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and positions with random tokens as padding: their content must not matter."""
    batch = ids.shape[0]
    mask = torch.cat([torch.zeros(batch, amount), torch.ones_like(ids)], dim=1).long()
    return torch.cat([tokens(batch, amount, seed), ids], dim=1), mask, (mask.cumsum(1) - 1).clamp(min=0)
