"""The step that measures, after the conversion and after each stage, where a student's own replies lead it."""

import hashlib
import json
from functools import partial
from itertools import chain
from pathlib import Path

from gendistill.distill.replies import Prompt, ReplyTokens, ReplyWriter, prompts_of
from gendistill.distill.reply_kl import MOST_NEW_TOKENS, PROMPTS, ReplyKL, measure_reply_kl
from gendistill.distributed import as_rank_zero_says
from gendistill.errors import UserError
from gendistill.files import read_json, write_atomically
from gendistill.inference.generation import pad_id
from gendistill.inference.stopping import end_ids
from gendistill.models.loading import load_model
from gendistill.models.positions import depends_on_length, most_positions
from gendistill.run.prepare import prepare_held_out
from gendistill.run.run import Run


def measure_replies(run: Run, stage: str) -> ReplyKL | None:
    """The reply-KL of a stage's student, or the conversion's; as measured before, if its student is the same.

    Returns:
        None if the recipe has no stage on completions, or its data no record held out.

    Raises:
        UserError: the stage's student is not as it was written.
    """
    prompts = held_out_prompts(run)
    if not prompts:
        return None
    # On one process, with models of its own: they are whole.
    return ReplyKL(**as_rank_zero_says(partial(_measure, run, stage, prompts)))


def _measure(run: Run, stage: str, prompts: list[Prompt]) -> dict:
    path = run.folder.reply_kl(stage)
    # Deleted checkpoints or other held-out records make another student, or ask it other things.
    made_of = {
        "weights": run.folder.read_report(stage)["weights_sha256"],
        "prompts": hashlib.sha256(repr(prompts).encode()).hexdigest(),
    }
    if path.exists() and (found := _read(path)) is not None and found["made_of"] == made_of:
        return found["reply_kl"]
    with run.times.of("replies", stage):
        # Loaded anew: what training left in memory may be sharded.
        student = load_model(str(run.folder.student(stage)), run.compute.dtype, run.compute.device)
        writer = ReplyWriter(student, reply_tokens(run), run.compute.dtype)
        found = measure_reply_kl(run.teacher, student, writer, prompts, vocabulary=len(run.tokenizer))
    write_atomically(path, json.dumps({"made_of": made_of, "reply_kl": found.to_dict()}) + "\n")
    run.console.print(
        f"{stage}: reply-KL {found.mean:.4f} nats a token, over {len(prompts)} replies of at most {found.new_tokens} "
        "tokens to held-out prompts",
    )
    return found.to_dict()


def _read(path: Path) -> dict | None:
    """A measurement as it was written; None of a damaged file, which is measured again."""
    try:
        return read_json(path)  # written in one piece, so only a disk or a hand can have damaged it
    except UserError:
        return None


def held_out_prompts(run: Run) -> list[Prompt]:
    """Prompts that no stage trains on, the same for all stages: of the last one's mixture that learns replies."""
    stages = [stage for stage in run.recipe.stages.values() if stage.loss_on == "completion"]
    # A student whose positions depend on the length is none that the decoding loop can run.
    if not stages or depends_on_length(run.config):
        return []
    dataset = prepare_held_out(run, stages[-1])
    if dataset is None:
        return []
    # Beyond the model's positions it would be asked what it was never taught.
    longest = most_positions(run.config) - MOST_NEW_TOKENS
    found = chain.from_iterable(prompts_of(dataset[:], 0))
    return [prompt for prompt in found if len(prompt.ids) <= longest][:PROMPTS]


def reply_tokens(run: Run) -> ReplyTokens:
    # What text is judged for loops is what a reader would see.
    decode = partial(run.tokenizer.decode, skip_special_tokens=True)
    return ReplyTokens(end_ids(run.teacher, run.tokenizer), pad_id(run.tokenizer), decode)
