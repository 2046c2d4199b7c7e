"""Made-up names, numbers and codes: what nobody has read anywhere cannot be guessed from a question."""

import random
from collections.abc import Callable

ONSETS = "b br c ch d dr f fl g gr h j k l m n p pl pr r s sh sk st t th tr v w z".split()
# Syllables that can be read aloud in most languages, and that tokenizers cut into few pieces.
VOWELS = "a e i o u ai ea ou".split()
ENDINGS = ["", *"l m n r s th ck nd rt".split()]
SYLLABLES = (2, 3)  # of a name: half a million of two, a hundred million of three
CODE_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # without those that look like digits
TRIES = 1000


class Exhausted(Exception):
    """Everything that was drawn stands in the text already."""


class Invention:
    """Draws what neither the text nor anything drawn before holds."""

    def __init__(self, rng: random.Random, text: str):
        """`text` is all that stands around what is invented."""
        self.rng, self.text = rng, text
        self.taken: set[str] = set()

    def name(self) -> str:
        return self._unused(lambda: self._word().capitalize())

    def identifier(self) -> str:
        """As `name`, in lower case."""
        return self._unused(self._word)

    def year(self) -> str:
        return self._unused(lambda: str(self.rng.randrange(1200, 2000)))

    def amount(self) -> str:
        """A number of three digits, which a small model can still add."""
        return self._unused(lambda: str(self.rng.randrange(110, 990)))

    def count(self) -> str:
        """A number of four or five digits."""
        return self._unused(lambda: str(self.rng.randrange(2100, 99_000)))

    def code(self) -> str:
        def draw() -> str:
            letters = "".join(self.rng.choices(CODE_LETTERS, k=2))
            return f"{letters}-{self.rng.randrange(1000, 10_000)}"

        return self._unused(draw)

    def _word(self) -> str:
        syllables = [self.rng.choice(ONSETS) + self.rng.choice(VOWELS) for _ in range(self.rng.choice(SYLLABLES))]
        return "".join([*syllables, self.rng.choice(ENDINGS)])

    def _unused(self, draw: Callable[[], str]) -> str:
        for _ in range(TRIES):
            drawn = draw()
            # Inside one that is taken it would be found there, too.
            if drawn not in self.text and not any(drawn in other or other in drawn for other in self.taken):
                self.taken.add(drawn)
                return drawn
        raise Exhausted


# What a relation's value can be, by name.
VALUES: dict[str, Callable[[Invention], str]] = {
    "name": Invention.name,
    "year": Invention.year,
    "count": Invention.count,
    "code": Invention.code,
}
