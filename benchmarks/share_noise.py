"""Where a recurrence beside windows leads replies away from the teacher's: KL to the teacher a token, layer by layer.

    python benchmarks/share_noise.py --teacher FOLDER --questions FILE --student K7=STUDENT --out results/proof/noise

The teacher replies to questions of one task (--task, of window_table.py's file), greedily. Along those replies
KL(teacher || student) of the next token is taken of the student as it is, with all recurrences silent (the windows
alone, whose weights are the teacher's), with each layer's alone silent, and with each layer's alone to be heard. Beside
it stands the share that each layer's recurrence has at the replies' tokens. Writes OUT/STUDENT-TASK.json.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from ledger import ROOT, gpu_machine
from transformers import PreTrainedModel
from window_questions import read_questions

from gendistill.files import write_atomically
from gendistill.inference.generation import generate
from gendistill.models.loading import load_model, load_tokenizer
from gendistill.models.mixers.layer import LOGIT_SCALE, LinearAttention
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.ops.window import share_beside

AT_ONCE = 8  # rows
SILENT = 100.0  # logit of the window's share
Row = tuple[list[int], list[int]]  # a prompt and its reply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of a Hugging Face model")
    parser.add_argument("--questions", type=Path, required=True, help="what window_table.py made")
    parser.add_argument("--student", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--out", type=Path, default=ROOT / "results/proof/noise")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    teacher = load_model(asked.teacher, torch.bfloat16, asked.device)
    tokenizer = load_tokenizer(asked.teacher, teacher.config.vocab_size)
    (questions,) = (each for each in read_questions(asked.questions)["tasks"] if each.name == asked.task)
    prompts = questions.prompts[: asked.items]
    replies = generate(teacher, tokenizer, prompts, questions.task.max_new_tokens, stop=questions.task.stop)
    rows = [(prompt, list(reply.ids)) for prompt, reply in zip(prompts, replies, strict=True) if reply.ids]
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, folder in (each.split("=", 1) for each in asked.student):
        student = load_model(folder, torch.bfloat16, asked.device)
        found = {"task": asked.task, "questions": questions.digest, "replies": len(rows)} | noise(
            teacher, student, rows
        )
        found["machine"] = gpu_machine() if asked.device == "cuda" else {"gpu": None}
        write_atomically(asked.out / f"{name}-{asked.task}.json", json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found["kl"], indent=1), flush=True)


@torch.inference_mode()
def noise(teacher: PreTrainedModel, student: GendistillForCausalLM, rows: Sequence[Row]) -> dict:
    """KL(teacher || student) of the next token along replies, nats a token: "as is", "windows alone", by the layer that
    is "silent", and by the one that is "alone"; and the mean "share" of each layer's recurrence."""
    layers = recurrences(student)
    variants = {"as is": (), "windows alone": tuple(layers)}
    variants |= {f"silent {i}": (i,) for i in layers} | {f"alone {i}": tuple(set(layers) - {i}) for i in layers}
    sums = dict.fromkeys(variants, 0.0)
    shares, tokens = dict.fromkeys(layers, 0.0), 0
    for first in range(0, len(rows), AT_ONCE):
        part = rows[first : first + AT_ONCE]
        of_teacher = list(log_probabilities(teacher, part))
        tokens += sum(len(each) for each in of_teacher)
        for variant, silent in variants.items():
            looked_at = watched(layers, part, shares) if variant == "as is" else nullcontext()
            with silenced(layers, silent), looked_at:
                for expected, found in zip(of_teacher, log_probabilities(student, part), strict=True):
                    sums[variant] += (expected.exp() * (expected - found)).sum().item()
    kl = {variant: total / tokens for variant, total in sums.items()}
    return {"tokens": tokens, "kl": kl, "share": {i: total / tokens for i, total in shares.items()}}


def recurrences(student: GendistillForCausalLM) -> dict[int, LinearAttention]:
    """The mixers that have a window beside their recurrence, by layer."""
    linear = {i: layer.linear_attn for i, layer in enumerate(student.model.layers) if not layer.keeps_attention}
    return {i: mixer for i, mixer in linear.items() if hasattr(mixer, "window_logit")}


def log_probabilities(model: PreTrainedModel, rows: Sequence[Row]) -> Iterator[torch.Tensor]:
    """[tokens of the reply, vocabulary] of each row, float32."""
    ids = torch.zeros(len(rows), max(len(prompt) + len(reply) for prompt, reply in rows), dtype=torch.long)
    for row, (prompt, reply) in zip(ids, rows, strict=True):
        row[: len(prompt) + len(reply)] = torch.tensor([*prompt, *reply])  # what follows changes nothing before it
    hidden = model.model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    for states, row in zip(hidden, rows, strict=True):
        yield model.lm_head(states[predicting(row)]).float().log_softmax(-1)


def predicting(row: Row) -> slice:
    """The tokens that predict the reply's."""
    prompt, reply = row
    return slice(len(prompt) - 1, len(prompt) + len(reply) - 1)


@contextmanager
def silenced(layers: dict[int, LinearAttention], silent: Iterable[int]) -> Iterator[None]:
    """Inside the block the recurrences of these layers have no share."""
    kept = {i: {name: value.clone() for name, value in share_of(layers[i]).items()} for i in silent}
    for i in kept:
        for name, value in share_of(layers[i]).items():
            value.fill_(SILENT / LOGIT_SCALE if name == "window_logit" else 0.0)
    try:
        yield
    finally:
        for i, values in kept.items():
            for name, value in share_of(layers[i]).items():
                value.copy_(values[name])


def share_of(mixer: LinearAttention) -> dict[str, torch.Tensor]:
    """The parameters that the recurrence's share comes from."""
    share = {"window_logit": mixer.window_logit.data}
    return share | ({"share_proj": mixer.share_proj.weight.data} if hasattr(mixer, "share_proj") else {})


@contextmanager
def watched(layers: dict[int, LinearAttention], rows: Sequence[Row], seen: dict[int, float]) -> Iterator[None]:
    """Adds up each recurrence's share, the mean over heads, at the tokens that predict the replies."""

    def look(i: int, mixer: LinearAttention, given: tuple) -> None:
        (hidden,) = given  # [B, T, hidden]
        raw = mixer.share_proj(hidden) if hasattr(mixer, "share_proj") else None
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        share = share_beside(mixer.share_logit(), raw, positions, mixer.config.seen_whole)  # [B or 1, T, H]
        share = share.mean(-1).expand(len(rows), -1)
        seen[i] += sum(each[predicting(row)].sum().item() for each, row in zip(share, rows, strict=True))

    hooks = [mixer.register_forward_pre_hook(partial(look, i)) for i, mixer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    main()
