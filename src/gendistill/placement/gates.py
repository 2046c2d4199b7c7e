"""One gate a layer between attention and an aligned mixer, trained to keep the teacher's answers with little attention.

In layer l, y = a_l attention(x) + (1 - a_l) mixer(x), a_l the sigmoid of the one number that trains; all weights are
frozen. What is minimised is KL(teacher || gated model) on the answers of recall prompts, plus a penalty on the sum of a
(after FlashMorph, arXiv 2606.30562, which matches hidden states there).
"""

import math

import torch

from gendistill.evaluate.kinds.recall import AnsweredPrompt
from gendistill.placement.layerwise import Layerwise
from gendistill.placement.measurement import Measurement
from gendistill.placement.prompts import Answered
from gendistill.placement.scoring import answer_log_p, divergence
from gendistill.recipe.placement import Gates

START = 2.0  # a = 0.88: near the teacher, where the divergence has something to say of each layer
DECAYS = (0.9, 0.999)  # of Adam's means
REPORT_EVERY = 10  # steps


def train_gates(measurement: Measurement, settings: Gates) -> list[float]:
    """The gates a [layers] after training; every step is kept, so that a killed training resumes with the next.

    Prompts are others in every step, and none of those that sets are scored on.
    """
    store, model = measurement.store, measurement.scorer.model
    count = settings.steps * settings.prompts_per_step
    prompts = measurement.maker.make(settings.prompts + count)[settings.prompts :]
    # Logits of the gates, and Adam's means of the gradient and of its square: [layers] each, float64 on the CPU.
    state = torch.zeros(3, measurement.of, dtype=torch.float64)
    state[0] = START
    for step in range(settings.steps):
        key = f"gates {step}"
        if key not in store:
            batch = prompts[step * settings.prompts_per_step : (step + 1) * settings.prompts_per_step]
            kl, gradient, tokens = _gradient(model, measurement, batch, state[0])
            open_share = torch.sigmoid(state[0])
            gradient += settings.penalty * open_share * (1 - open_share)  # the sigmoid's slope
            state = adam_step(state, gradient, step + 1, settings.learning_rate)
            store.add(key, {"kl": kl, "state": state.tolist()}, tokens * measurement.of)
            if (step + 1) % REPORT_EVERY == 0 or step + 1 == settings.steps:
                gates = torch.sigmoid(state[0])
                measurement.console.print(
                    f"placement: gates after step {step + 1} of {settings.steps}: KL {kl:.3f} nats a token, sum "
                    f"{gates.sum():.2f} of {measurement.of}, {store.total('seconds'):.0f} s so far",
                )
        state = torch.tensor(store[key]["state"], dtype=torch.float64)
    return torch.sigmoid(state[0]).tolist()


def _gradient(
    model: Layerwise, measurement: Measurement, batch: list[AnsweredPrompt], logits: torch.Tensor
) -> tuple[float, torch.Tensor, int]:
    """Mean KL over prompts, its gradient by the logits [layers], and the prompts' tokens."""
    logits = logits.clone().requires_grad_()
    total, tokens = 0.0, 0
    for prompt in batch:  # one at a time: activations of all layers are kept for the way back
        answered = measurement.maker.batch([prompt])
        kl = gated_divergence(model, answered, torch.sigmoid(logits)) / len(batch)
        kl.backward()
        total += kl.item()
        tokens += answered.tokens
    return total, logits.grad, tokens


def gated_divergence(model: Layerwise, answered: Answered, gates: torch.Tensor) -> torch.Tensor:
    """Mean KL(teacher || gated model) over the answers' tokens and the ends of turns; gradients reach the gates.

    Args:
        gates: [layers], from 0 to 1.
    """
    whole = tuple(range(len(model.layers)))
    with torch.no_grad():
        teacher = answer_log_p(model.teacher, model.last_states(answered.input_ids, [whole])[whole], answered)
    gated = model.gated_states(answered.input_ids, gates.to(answered.input_ids.device, torch.float32))
    return divergence(teacher, answer_log_p(model.teacher, gated, answered))


def adam_step(state: torch.Tensor, gradient: torch.Tensor, step: int, learning_rate: float) -> torch.Tensor:
    """Adam (Kingma and Ba 2015) without weight decay: parameters and both means [3, n] after step 1, 2, ..."""
    parameters, mean, square = state
    mean = DECAYS[0] * mean + (1 - DECAYS[0]) * gradient
    square = DECAYS[1] * square + (1 - DECAYS[1]) * gradient**2
    size = learning_rate * math.sqrt(1 - DECAYS[1] ** step) / (1 - DECAYS[0] ** step)
    return torch.stack([parameters - size * mean / (square.sqrt() + 1e-8), mean, square])
