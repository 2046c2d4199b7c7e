"""Records that no stage trains on. A stage's loss is measured on them as well: what it learnt, and not what it learnt
by heart.

Which records those are depends on their numbers in the source alone. So they are the same for every stage, mixture,
sequence length, pass and seed, and a student never sees one on its way through the stages.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Which records of every source are read: those to train on, or those held out.

    Attributes:
        share: of the records, held out.
        held_out: whether these are the ones that are read.
    """

    share: float = 0.0
    held_out: bool = False

    def takes(self, record: int) -> bool:
        """Whether a record is of this part, by its number in the source, from 0."""
        return is_held_out(record, self.share) == self.held_out


EVERYTHING = Part()


def is_held_out(record: int, share: float) -> bool:
    """Drawn by the record's number: data in a pattern (four rotations of a question) would answer to every 100th.

    A larger share holds out all that a smaller one does. The first record never is: a source may be one book.
    """
    if not share or not record:
        return False
    digest = hashlib.blake2b(f"held out {record}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64
