"""What the server did, in the text form that Prometheus reads."""

from collections import Counter
from collections.abc import Iterator, Sequence

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)  # upper bounds of a histogram's buckets


class Histogram:
    """Seconds, counted in buckets."""

    def __init__(self, bounds: Sequence[float] = SECONDS):
        self.bounds = bounds
        # Sums and counts alone, however long the server runs.
        self.counts = [0] * len(bounds)
        self.sum, self.count = 0.0, 0

    def observe(self, seconds: float) -> None:
        self.sum += seconds
        self.count += 1
        for place, bound in enumerate(self.bounds):
            self.counts[place] += seconds <= bound  # cumulative, as Prometheus has them

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0


class Metrics:
    """Counters and histograms; changed on the event loop only."""

    def __init__(self):
        # Of /v1/completions with status 200, say; a stream that fails later counts by the status that was sent.
        self.responses: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = self.generated_tokens = 0
        self.cancelled = 0
        self.first_token, self.duration = Histogram(), Histogram()

    def text(self, running: int, waiting: int) -> str:
        """All of it; `running` and `waiting` are the requests of this moment."""
        lines = [
            *_single("requests_running", "gauge", "requests that have a row of the batch", running),
            *_single("requests_waiting", "gauge", "requests in the queue", waiting),
            *_single("prompt_tokens_total", "counter", "tokens of prompts taken in", self.prompt_tokens),
            *_single("generated_tokens_total", "counter", "tokens of replies", self.generated_tokens),
            *_single("calls_cancelled_total", "counter", "calls whose client went away", self.cancelled),
            *_head("responses_total", "counter", "responses by path and status"),
        ]
        for (path, status), count in sorted(self.responses.items()):
            lines.append(f'gendistill_responses_total{{path="{path}",status="{status}"}} {count}')
        lines += _histogram("first_token_seconds", "from a call to the first token of its replies", self.first_token)
        lines += _histogram("call_seconds", "from a call to the end of its replies", self.duration)
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP gendistill_{name} {about}"
    yield f"# TYPE gendistill_{name} {kind}"


def _single(name: str, kind: str, about: str, value: float) -> Iterator[str]:
    yield from _head(name, kind, about)
    yield f"gendistill_{name} {value}"


def _histogram(name: str, about: str, histogram: Histogram) -> Iterator[str]:
    yield from _head(name, "histogram", about)
    # The last bucket has all of them, which is how readers know the largest.
    for bound, count in zip([*histogram.bounds, "+Inf"], [*histogram.counts, histogram.count], strict=True):
        yield f'gendistill_{name}_bucket{{le="{bound}"}} {count}'
    yield f"gendistill_{name}_sum {histogram.sum}"
    yield f"gendistill_{name}_count {histogram.count}"
