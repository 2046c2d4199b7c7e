"""What a layer's keys have in common, taken away at the start or not, and the rate of what is new: one layer by itself.

    python benchmarks/centred_keys.py --teacher FOLDER --data PREPARED > results/cpu/centred_keys.txt

FOLDER is Qwen2.5-Coder-1.5B-Instruct, PREPARED what real_teacher/prepare.py made. The mixer of a layer is trained, all
of it, to give what the teacher's attention gives on the teacher's input; what is left unexplained is measured on text
that is held out, as a share of the attention output's square. Runs on a CPU, in some twenty minutes.
"""

import argparse
import gzip
import json
import math
import random
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gendistill.models.calibration import calibrate
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.models.hooks import recorded
from gendistill.models.loading import load_tokenizer
from gendistill.models.mixers.layer import LinearAttention

LAYER = 8
ROWS, HELD_OUT, LENGTH = 40, 4, 1024  # sequences, those held out among them, tokens
EPOCHS, AT_ONCE, RATE = 3, 2, 1e-3
SOURCES = {"text": 14, "code": 8, "choices": 10, "chat": 8, "bodies": 30}  # documents of each file
LONGEST = 1500  # tokens of a document
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")  # the teacher's; all else is new
CALIBRATED = 3  # rows
VARIANTS = [(initialisation, times) for initialisation in ("standard", "centred") for times in (1, 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder")
    parser.add_argument("--data", type=Path, required=True, help="what prepare.py made")
    asked = parser.parse_args()
    teacher = beginning(asked.teacher)
    rows = packed(load_tokenizer(asked.teacher, teacher.config.vocab_size), asked.data)
    inputs, outputs = inputs_and_outputs(teacher, rows)
    print(f"layer {LAYER}, {EPOCHS * (ROWS - HELD_OUT) * LENGTH:,} tokens, torch {torch.__version__} on a CPU")
    for initialisation, times in VARIANTS:
        mixer = started(teacher, rows[:CALIBRATED], initialisation)
        before = unexplained(mixer, inputs[-HELD_OUT:], outputs[-HELD_OUT:])
        began = time.monotonic()
        align(mixer, inputs[:-HELD_OUT], outputs[:-HELD_OUT], times)
        after = unexplained(mixer, inputs[-HELD_OUT:], outputs[-HELD_OUT:])
        seconds = time.monotonic() - began
        print(
            f"keys {initialisation}, what is new at {times} x {RATE}: {before:.3f} -> {after:.3f}, {seconds:.0f} s",
            flush=True,
        )


def beginning(folder: str) -> PreTrainedModel:
    """The teacher as far as the layer."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.num_hidden_layers = LAYER + 1
    config.layer_types = config.layer_types[: LAYER + 1]
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, trust_remote_code=False)
    return model.eval()


def packed(tokenizer, data: Path) -> torch.Tensor:
    """[ROWS, LENGTH]: documents one after another."""
    rng = random.Random(0)
    documents = [
        text for name, count in SOURCES.items() for text in drawn(data / f"{name}.jsonl.gz", count, tokenizer, rng)
    ]
    rng.shuffle(documents)
    ids = [token for document in documents for token in [*document, tokenizer.eos_token_id]]
    return torch.tensor(ids[: ROWS * LENGTH]).view(ROWS, LENGTH)


def drawn(path: Path, count: int, tokenizer, rng: random.Random) -> list[list[int]]:
    with gzip.open(path, "rt") as file:
        records = rng.sample([json.loads(line) for line in file], count)
    texts = [
        record["text"] if "text" in record else tokenizer.apply_chat_template(record["messages"], tokenize=False)
        for record in records
    ]
    return [ids[:LONGEST] for ids in tokenizer(texts)["input_ids"]]


@torch.inference_mode()
def inputs_and_outputs(teacher: PreTrainedModel, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[ROWS, LENGTH, hidden]: what goes into the layer's attention, and what comes out."""
    batches = (batch_of(rows[i : i + 1]) for i in range(len(rows)))
    records = [of_layer[LAYER] for _, of_layer in recorded(teacher, batches, [LAYER])]
    pairs = [(record.attention_input, record.attention_output) for record in records]
    inputs, outputs = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return inputs.clone(), outputs.clone()


def batch_of(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": rows, "position_ids": torch.arange(LENGTH).expand(len(rows), -1)}


def started(teacher: PreTrainedModel, rows: torch.Tensor, initialisation: str) -> LinearAttention:
    """The mixer in the layer's place, as a conversion begins it."""
    config = student_config(teacher.config, list(range(LAYER)), mixer="kda", log_decay_bound=-5.0)
    student, _ = convert(teacher, config, seed=0)
    calibrate(teacher, student, [batch_of(rows)], initialisation)
    return student.model.layers[LAYER].linear_attn


def align(mixer: LinearAttention, inputs: torch.Tensor, outputs: torch.Tensor, times: float) -> None:
    """Trains it, what is new at so many times the rate."""
    of_teacher = [weight for name, weight in mixer.named_parameters() if name.split(".")[0] in PROJECTIONS]
    new = [weight for name, weight in mixer.named_parameters() if name.split(".")[0] not in PROJECTIONS]
    groups = [{"params": of_teacher, "lr": RATE}, {"params": new, "lr": times * RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.95))
    steps = EPOCHS * len(inputs) // AT_ONCE
    shape = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    order = torch.Generator().manual_seed(1)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs), generator=order).split(AT_ONCE):
            loss = error(mixer, inputs[rows], outputs[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(mixer.parameters(), 1.0)
            optimizer.step()
            shape.step()


def rate_at(step: int, steps: int) -> float:
    """Cosine to a hundredth, behind a warm-up of a twentieth."""
    warm = min(1.0, (step + 1) / (0.05 * steps))
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def error(mixer: LinearAttention, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    mixed, _ = mixer(inputs)
    return (mixed - outputs).square().sum() / outputs.square().sum()


@torch.no_grad()
def unexplained(mixer: LinearAttention, inputs: torch.Tensor, outputs: torch.Tensor) -> float:
    return error(mixer, inputs, outputs).item()


if __name__ == "__main__":
    main()
