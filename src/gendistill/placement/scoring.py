"""Scores of sets of kept layers, on the answers of recall prompts.

Shapes: K predicted tokens of all answers together, V words, D channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gendistill.errors import UserError
from gendistill.placement.layerwise import Kept, Layerwise
from gendistill.placement.prompts import Answered


@dataclass(frozen=True)
class Score:
    """How well the teacher answers with only some of its attention.

    Attributes:
        likelihood: mean negative log-likelihood of the right answers' tokens, nats a token.
        exact_match: share of the answers that greedy generation would give word for word and then end.
        kl: mean KL(teacher || teacher with this set) over the answers' tokens and the ends of turns, nats a token.
    """

    likelihood: float
    exact_match: float
    kl: float

    def key(self, name: str) -> tuple[float, ...]:
        """What to sort by, the best first. Of few prompts many match exactly: among equals the likelihood decides."""
        keys = {
            "likelihood": (self.likelihood,),
            "exact_match": (-self.exact_match, self.likelihood),
            "kl": (self.kl,),
        }
        return keys[name]


class Scorer:
    """Scores sets of kept layers on one batch of prompts.

    Attributes:
        teacher: the log-probabilities [K, V] of the whole teacher.
        whole: its score.
    """

    def __init__(self, model: Layerwise, prompts: Answered):
        self.model, self.prompts = model, prompts
        whole = tuple(range(len(model.layers)))
        self.teacher = self._log_p(model.last_states(prompts.input_ids, [whole])[whole])
        self.whole = self._score(self.teacher)

    def score(self, sets: Sequence[Kept]) -> list[Score]:
        """A score for each set. Rounding depends on which sets are scored together.

        Raises:
            UserError: a likelihood is no number; sets could not be sorted by it.
        """
        states = self.model.last_states(self.prompts.input_ids, sets)
        scores = [self._score(self._log_p(states[kept])) for kept in sets]
        for kept, score in zip(sets, scores, strict=True):
            if not math.isfinite(score.likelihood):
                raise UserError(
                    f"keep_attention: with layers {list(kept)} kept, the likelihood of the right answers is "
                    f"{score.likelihood}. Measure with dtype: float32, or with a window in the other layers."
                )
        return scores

    @torch.inference_mode()
    def _log_p(self, states: torch.Tensor) -> torch.Tensor:
        """[N, T, D] -> [K, V]: only the answers are projected to the vocabulary."""
        return answer_log_p(self.model.teacher, states, self.prompts)

    @torch.inference_mode()
    def _score(self, log_p: torch.Tensor) -> Score:
        x = self.prompts
        likelihood = -log_p.gather(1, x.targets[:, None])[:, 0]  # [K]
        # An answer is generated word for word exactly if each of its tokens is the most likely one behind those before
        # it, and then a token that ends the turn: so one pass over prompt and answer tells, without generating.
        choice = log_p.argmax(-1)  # [K]
        right = torch.where(x.is_end, torch.isin(choice, x.ends), choice == x.targets)
        wrong = torch.bincount(x.rows, weights=(~right).float())  # [N], tokens of each answer
        return Score(
            likelihood=likelihood[~x.is_end].mean().item(),
            exact_match=(wrong == 0).float().mean().item(),
            kl=divergence(self.teacher, log_p).item(),
        )


def answer_log_p(teacher, states: torch.Tensor, prompts: Answered) -> torch.Tensor:
    """Hidden states behind the last layer [N, T, D] -> log-probabilities of the answers' tokens [K, V], float32."""
    answers = teacher.model.norm(states[prompts.rows, prompts.columns])  # [K, D]
    return F.log_softmax(teacher.lm_head(answers).float(), dim=-1)


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Mean KL(p || q) of distributions [K, V], in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


Evaluate = Callable[[Sequence[Kept]], dict[Kept, Score]]  # what a search asks for
