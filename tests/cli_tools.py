"""A recipe on the embedded teacher, small enough for tests, and the command line, as a user calls it or in-process."""

import io
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from gendistill.cli import main

STAGE = dict(
    data="text",
    sequence_length=64,
    sequences_per_step=2,
    micro_batch=2,
    tokens=64 * 2 * 12,
    learning_rate=1e-3,
    checkpoint_every=4,
)
RECIPE = dict(
    name="tiny",
    teacher="embedded",
    device="cpu",
    student=dict(keep_attention=[2, 5]),
    conversion=dict(tokens=512, sequence_length=128),
    data=dict(
        text=[dict(path="embedded:text")],
        instructions=[dict(path="embedded:chat", messages="messages")],
    ),
    stages=dict(
        qk_alignment=STAGE | dict(objective="mixer_l2", train=["mixer_qk", "mixer_conv", "mixer_gate"]),
        block_alignment=STAGE | dict(objective="block_l2", train=["mixer"]),
        logit_distillation=STAGE | dict(objective="forward_kl", train=["mixer", "mlp", "norm"]),
        instruction_distillation=STAGE
        | dict(
            objective="forward_kl",
            loss_on="completion",
            train=["mixer", "mlp", "norm"],
            data="instructions",
            micro_batch=1,
        ),
    ),
    evaluation=dict(
        batch_size=8,
        tasks=dict(
            facts=dict(kind="short_answer", path="embedded:facts", items=8, max_new_tokens=8),
            choice=dict(kind="multiple_choice", path="embedded:choice", items=8, max_new_tokens=4),
            arithmetic=dict(kind="last_number", path="embedded:arithmetic", items=4, max_new_tokens=16),
        ),
    ),
)


def in_process(*arguments):
    """Runs the command in this process, which has imported torch already; returns (exit code, output).

    A bug ends as in a process of its own: in a traceback and exit code 1.
    """
    output = io.StringIO()
    # pytest takes warnings of the log for itself; without it they go to stderr.
    log, shown = logging.getLogger(), logging.StreamHandler(output)
    shown.setLevel(logging.WARNING)
    log.addHandler(shown)
    with patch("sys.argv", ["gendistill", *map(str, arguments)]), redirect_stdout(output), redirect_stderr(output):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            log.removeHandler(shown)
    return code, output.getvalue()


def forked(*arguments, **streams):
    """Starts the command as `in_a_process` does."""
    return in_a_process(main, argv=["gendistill", *map(str, arguments)], **streams)


def in_a_process(function, *arguments, argv=("gendistill",), output=os.devnull, errors=os.devnull):
    """Calls a function in a process of its own that has imported torch already, which takes seconds: for signals.

    Args:
        output, errors: files that get what it prints.

    Returns:
        a `multiprocessing.Process`.
    """
    context = multiprocessing.get_context("forkserver")
    # Of this pytest process the first to come; imports alone, which leave no threads.
    context.set_forkserver_preload(["gendistill.run.distill", "gendistill.run.convert", "torch.utils.tensorboard"])
    process = context.Process(target=_call, args=(function, arguments, argv, output, errors))
    process.start()
    return process


def _call(function, arguments, argv, output, errors):
    import torch  # the process has it; whoever imports these tools need not

    # A shell has what it starts in the background ignore Ctrl-C, these tests with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # as in `environment`: with more, sums are added up in another order
    as_called = patch("sys.argv", list(argv))
    with open(output, "w") as out, open(errors, "w") as err, redirect_stdout(out), redirect_stderr(err), as_called:
        function(*arguments)


def command(*arguments):
    """The same for a process of its own."""
    return [sys.executable, "-c", "from gendistill.cli import main; main()", *map(str, arguments)]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
