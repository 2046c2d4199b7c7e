"""What replaces softmax attention: five mixers that share one layer and differ in two words.

| name           | writes by  | decay       | paper            |
| -------------- | ---------- | ----------- | ---------------- |
| kda            | delta rule | per channel | arXiv 2510.26692 |
| gated_deltanet | delta rule | per head    | arXiv 2412.06464 |
| gla            | adding     | per channel | arXiv 2312.06635 |
| mamba2         | adding     | per head    | arXiv 2405.21060 |
| lightning      | adding     | fixed       | arXiv 2405.17381 |

Everything else (projections, convolutions, normalised q and k, output gate and norm, initialisation) is the same, so
comparing mixers compares state updates. Mamba-2 is its discrete form as used for conversion (arXiv 2408.10189): the
decay alone depends on the input, and values are written unscaled.
"""

from typing import Literal, NamedTuple

from gendistill.names import MixerName


class Mixer(NamedTuple):
    """The state update of a mixer."""

    delta_rule: bool
    decay: Literal["channel", "head", "fixed"]


MIXERS: dict[MixerName, Mixer] = {
    "kda": Mixer(delta_rule=True, decay="channel"),
    "gated_deltanet": Mixer(delta_rule=True, decay="head"),
    "gla": Mixer(delta_rule=False, decay="channel"),
    "mamba2": Mixer(delta_rule=False, decay="head"),
    "lightning": Mixer(delta_rule=False, decay="fixed"),
}
