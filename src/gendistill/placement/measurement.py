"""Sets scored once, kept, and told of while they come in."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gendistill.console import Console
from gendistill.placement.layerwise import Kept
from gendistill.placement.prompts import PromptMaker
from gendistill.placement.scoring import Score, Scorer
from gendistill.placement.store import Store

SCORE_LABELS = {
    "likelihood": "-log p of the right answers, nats a token",
    "exact_match": "share of right answers",
    "kl": "KL(teacher || model) on answers, nats a token",
}

Train = Callable[[int], tuple[float, int]]  # of a layer: KL after a short training with it restored, and its tokens


class Measurement:
    """What a method may ask for: scores of sets, from the file where they are there, and prompts.

    Attributes:
        scores: of all sets so far, in the order in which they were asked for.
    """

    def __init__(self, scorer: Scorer, maker: PromptMaker, store: Store, console: Console, train: Train | None = None):
        self.scorer, self.maker, self.store, self.console, self.train = scorer, maker, store, console, train
        self.scores: dict[Kept, Score] = {}
        self.of = len(scorer.model.layers)

    def evaluate(self, sets: Sequence[Kept]) -> dict[Kept, Score]:
        """Scores of sets, by set; those that were scored before are not scored again."""
        left = [kept for kept in dict.fromkeys(sets) if kept not in self.scores]
        # Sets that share layers go together, and always the same ones: a resumed search rounds as an unbroken one.
        at_once = self.scorer.model.sets_at_once(self.scorer.prompts.input_ids)
        for group in (left[start : start + at_once] for start in range(0, len(left), at_once)):
            key = json.dumps(group)
            if key not in self.store:
                before = self.scorer.model.evaluations
                values = [asdict(score) for score in self.scorer.score(group)]
                run = self.scorer.model.evaluations - before
                self.store.add(key, values, run * self.scorer.prompts.tokens)
                self._report(group, values)
            self.scores |= zip(group, (Score(**value) for value in self.store[key]), strict=True)
        return {kept: self.scores[kept] for kept in sets}

    def train_each(self) -> list[float]:
        """KL of each layer's student after its training, from the file where it is there."""
        for layer in range(self.of):
            key = f"trained {layer}"
            if key not in self.store:
                kl, tokens = self.train(layer)
                self.store.add(key, kl, tokens * self.of)
                self.console.print(
                    f"placement: layer {layer} restored and trained: KL {kl:.4f} nats a token, "
                    f"{self.store.total('seconds'):.0f} s so far",
                )
        return [self.store[f"trained {layer}"] for layer in range(self.of)]

    def by_layer(self, label: str, score: str, sets: dict[int, Kept]) -> dict[str, Any]:
        """A measured figure of each layer, for the result."""
        values = [asdict(self.scores[sets[layer]])[score] if layer in sets else None for layer in range(self.of)]
        return {"label": f"{label}: {SCORE_LABELS[score]}", "values": values}

    def _report(self, group: Sequence[Kept], values: list[dict[str, float]]) -> None:
        best = min(range(len(group)), key=lambda index: values[index]["likelihood"])
        self.console.print(
            f"placement: {len(group)} sets scored, {self.store.total('seconds'):.0f} s so far; best likelihood "
            f"{values[best]['likelihood']:.3f} nats a token, with layers {list(group[best])}",
        )
