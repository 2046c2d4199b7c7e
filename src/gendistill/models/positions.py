"""How far a model's positions reach, and whether what they mean depends on the text's length."""

from transformers import PreTrainedConfig

# RoPE types whose frequencies follow the length of the longest sequence that was seen: what a token's position means
# then depends on what else is in the batch.
BY_LENGTH = ("dynamic", "longrope")


def _rope(config: PreTrainedConfig) -> dict:
    return getattr(config, "rope_parameters", None) or {}


def most_positions(config: PreTrainedConfig) -> int | None:
    """Positions that a model has; None if its configuration does not say.

    YaRN (arXiv 2309.00071) reaches `factor` times the positions that it was trained with, which model cards leave
    standing as `max_position_embeddings`.
    """
    limit = getattr(config, "max_position_embeddings", None)
    rope = _rope(config)
    if limit is None or rope.get("rope_type") != "yarn":
        return limit
    original = rope.get("original_max_position_embeddings") or limit
    return max(limit, int(original * rope.get("factor", 1.0)))


def depends_on_length(config: PreTrainedConfig) -> bool:
    """Whether sequences of a batch change each other's positions: then they must be run one by one."""
    return _rope(config).get("rope_type") in BY_LENGTH
