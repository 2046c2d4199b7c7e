"""What each process holds of a stage's models, gradients and optimizer, by strategy; sizes in bytes.

`replicas` shares out masters and optimizer state by rows (`distill/replicas.py`), `fsdp` also the layers themselves,
and gathers one when its turn comes (`distill/sharding.py`); `zero2` gathers each once a step.
"""

from typing import NamedTuple

from gendistill.distill.replicas import BUCKET_BYTES
from gendistill.models.cost import FLOAT32
from gendistill.names import look_up


class Parameters(NamedTuple):
    """Counts of parameters; decay gates stay in float32 whatever the arithmetic's dtype."""

    teacher: int
    student: int
    student_gates: int
    trained: int
    trained_gates: int
    # In decoder layers, without decay gates: what FSDP shards.
    teacher_layers: int = 0
    student_layers: int = 0
    trained_layers: int = 0
    largest_layer: int = 0  # of the student's


class Holding(NamedTuple):
    """Bytes of one process, but for `stepped`.

    Attributes:
        gradients: summed over micro-batches, in float32.
        micro_gradients: of one micro-batch, before they are added to the sums.
        gathered: layers that are whole for a moment, or for a step, with gradients of one.
        exchange: buckets under way between processes, before the optimizer steps.
        setting_up: models in float32 and what is made of them, before there are gradients.
        stepped: parameters that this process's optimizer has masters and state of.
    """

    teacher: int
    student: int
    masters: int
    gradients: int
    micro_gradients: int
    gathered: int
    exchange: int
    setting_up: int
    stepped: int


def holding(strategy: str, counts: Parameters, size: int, processes: int, hosts: int = 1) -> Holding:
    """What one of so many processes holds.

    Args:
        strategy: "whole", "replicas", "hybrid", "zero2" or "fsdp".
        size: bytes of a number of the arithmetic; 4 if nothing is rounded.
        hosts: that have as many processes each.

    Raises:
        UserError: there is no such strategy.
    """
    kinds = {"whole": _whole, "replicas": _replicas, "hybrid": _fsdp, "zero2": _zero2, "fsdp": _fsdp}
    # Hosts that are replicas of each other share nothing out among them.
    sharing = processes // hosts if strategy == "hybrid" else processes
    return look_up(kinds, strategy, "strategy")(counts, size, sharing)


def student_bytes(counts: Parameters, size: int) -> int:
    """A whole student in the precision of the arithmetic."""
    return (counts.student - counts.student_gates) * size + counts.student_gates * FLOAT32


def _whole(counts: Parameters, size: int, processes: int) -> Holding:
    # Where nothing is rounded a parameter is its own master, and its gradients are added where they come.
    rounded = 0 if size == FLOAT32 else counts.trained - counts.trained_gates
    copied = counts.trained if size != FLOAT32 else 0
    return Holding(
        teacher=counts.teacher * size,
        student=student_bytes(counts, size),
        masters=rounded * FLOAT32,
        gradients=counts.trained * FLOAT32,
        micro_gradients=rounded * size,
        gathered=0,
        exchange=0,
        setting_up=counts.teacher * size + FLOAT32 * (counts.student + copied),
        stepped=counts.trained,
    )


def _replicas(counts: Parameters, size: int, processes: int) -> Holding:
    whole, own = _whole(counts, size, processes), _share(counts.trained, processes)
    # Also where nothing is rounded a master is a copy: its rows are stepped here, the others' elsewhere.
    # Two buckets at a time, each as it is sent and as it is received.
    bucket = min(BUCKET_BYTES, counts.trained * FLOAT32)
    return whole._replace(
        masters=own * FLOAT32,
        # What is summed here of all rows, and over all processes of this one's.
        gradients=(counts.trained + own) * FLOAT32,
        exchange=2 * (bucket + _share(bucket, processes)),
        setting_up=counts.teacher * size + FLOAT32 * (counts.student + own),
        stepped=own,
    )


def _fsdp(counts: Parameters, size: int, processes: int) -> Holding:
    rounded = size != FLOAT32
    teacher = counts.teacher - counts.teacher_layers + _share(counts.teacher_layers, processes)
    sharded = _share(counts.student_layers, processes)  # those that train and those that do not
    # Embedding, head, final norm and decay gates.
    whole = counts.student - counts.student_layers - counts.student_gates
    trained_whole = counts.trained - counts.trained_layers
    stepped = trained_whole + _share(counts.trained_layers, processes)
    rounded_whole = (trained_whole - counts.trained_gates) * rounded
    return Holding(
        teacher=teacher * size,
        # Shards are float32, and rounded as they are gathered.
        student=whole * size + (counts.student_gates + sharded) * FLOAT32,
        masters=rounded_whole * FLOAT32,
        gradients=stepped * FLOAT32,
        micro_gradients=rounded_whole * size,
        # A layer at work and the next one on its way; gradients of one, and as float32 where they are summed.
        gathered=counts.largest_layer * (3 * size + FLOAT32),
        exchange=0,
        # Models are loaded whole and sharded then.
        setting_up=counts.teacher * size + FLOAT32 * (counts.student + rounded_whole),
        stepped=stepped,
    )


def _zero2(counts: Parameters, size: int, processes: int) -> Holding:
    # All layers beside their shards, which are float32; gradients of one layer, and as float32 where they are summed.
    gathered = counts.student_layers * size + counts.largest_layer * (size + FLOAT32)
    return _fsdp(counts, size, processes)._replace(teacher=counts.teacher * size, gathered=gathered)


def _share(count: int, processes: int) -> int:
    return -(-count // processes)
