"""A tiny ablation on the embedded teacher, and its variants run in this process, which has imported torch already."""

from pathlib import Path

import yaml

from cli_tools import RECIPE, STAGE, in_process
from gendistill.ablation.file import read_ablation_file
from gendistill.ablation.launch import errors_of
from gendistill.ablation.queue import Queue
from gendistill.ablation.summary import summarise
from gendistill.ablation.variants import make_variants
from gendistill.console import Console

LAST = "stages.logit_distillation"
# Of four steps; a checkpoint is written behind the last.
SHORT = dict(sequence_length=64, sequences_per_step=2, micro_batch=2, tokens=64 * 2 * 4, checkpoint_every=4)
BASE = RECIPE | dict(
    held_out=0,
    stages=dict(
        block_alignment=STAGE | SHORT | dict(objective="block_l2", train=["mixer"]),
        logit_distillation=STAGE | SHORT | dict(objective="forward_kl", train=["mixer", "norm"], expected_loss=[0, 8]),
    ),
    evaluation=dict(
        batch_size=8,
        stages=["logit_distillation"],
        tasks=dict(facts=dict(kind="short_answer", path="embedded:facts", items=4, max_new_tokens=4)),
    ),
)
ABLATION = dict(
    name="two_axes",
    base="tiny.yaml",
    seeds=[0],
    axes=dict(
        objective={f"{LAST}.objective": ["reverse_kl"]},
        # A thousand times the base's.
        rate=dict(huge={f"{LAST}.learning_rate": 1000 * STAGE["learning_rate"]}),
    ),
    controls=dict(window={"student.window": 32}, teacher=None),
)


def write_ablation_file(folder: Path, base=BASE, **changes) -> Path:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(ABLATION | changes, sort_keys=False))
    return path


class InProcess:
    """A launcher whose processes have ended as soon as they are started."""

    places, seconds_between_looks = 1, 0

    def __init__(self, fail: str | None = None):
        """`fail` ends this variant with an error, without running it."""
        self.started: list[str] = []
        self.fail = fail

    def start(self, command, log, place):
        name = log.stem
        self.started.append(name)
        if name == self.fail:
            errors_of(log).write_text("Traceback\ngendistill: no room on the disk\n")
            return _Ended(2)
        # Behind the interpreter and the module.
        code, output = in_process(*command[3:])
        log.write_text(output)
        errors_of(log).write_text(output if code else "")
        return _Ended(code)


class _Ended:
    def __init__(self, code):
        self.code = code

    def poll(self):
        return self.code

    wait = poll

    def terminate(self):
        pass


def run_queue(path, root, launcher=None, only=()):
    """Runs an ablation to its end; returns its queue."""
    file = read_ablation_file(path)
    queue = Queue(root, file, make_variants(file), Console(quiet=True))
    queue.run(launcher or InProcess(), only)
    summarise(root, queue.ablation(), queue.planned)
    return queue
