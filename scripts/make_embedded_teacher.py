"""Makes the embedded teacher: trains its tokenizer and weights on the embedded corpus, and examines it.

    python scripts/make_embedded_teacher.py --device cuda --minutes 3.5

Writes a Hugging Face folder (bfloat16 weights, tokenizer, chat template) and training_report.json. The examination
loads what was written, in float32, and asks questions whose phrasings and numbers were not in the training data.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes below are the parallelism

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from gendistill.embedded import corpus

TARGET = Path(__file__).resolve().parents[1] / "src/gendistill/embedded/model"
VOCABULARY = 2048
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ROW = 512  # tokens in a packed sequence
# Loss weight by kind of token: padding, the user's turn, plain text, the assistant's turn.
PAD, PROMPT, TEXT, ANSWER = range(4)
WEIGHTS = (0.0, 0.1, 0.5, 1.0)  # answers are what is asked for; prompts teach the language a little
EXAMINATION_SEED = 1
MAX_NEW_TOKENS = 64

# A space goes with the token after it, and every digit is a token of its own.
PIECES = Regex(r" ?[0-9]| ?[^\s0-9\p{P}\p{S}]+| ?[\p{P}\p{S}]+|\s+")
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on a sample of the corpus."""
    # No merge crosses a piece: "12" is always the tokens "1" and "2", so that sums can be done digit by digit.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(PIECES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        # All bytes, also those that the sample lacks: any text can be encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [document["text"] for document in corpus.plain_documents(seed, 20_000)]
    for conversation in corpus.conversations(seed, 40_000):
        texts += [f"{message['role']}\n{message['content']}" for message in conversation["messages"]]
    texts += ["system\nYou are a helpful assistant."] * 10  # no conversation has a system turn, but users write them
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        padding_side="left",  # batches are padded for generation, where all prompts must end together
    )


def chat_pieces(messages: list[dict]) -> list[tuple[str, int]]:
    """The chat template's text, cut into (text, kind); rendering a million of these with Jinja would take minutes."""
    pieces, prompt = [], ""
    for message in messages:
        prompt += f"{TURN_START}{message['role']}\n"
        if message["role"] == "assistant":
            pieces += [(prompt, PROMPT), (message["content"] + TURN_END, ANSWER)]
            prompt = "\n"  # what the template writes behind a reply, and generation never sees, is the next prompt's
        else:
            prompt += f"{message['content']}{TURN_END}\n"
    return [*pieces, (prompt, PROMPT)]


def encode_share(job: tuple[str, int, int]) -> np.ndarray:
    """Packed sequences [rows, 3, ROW] of token, position and kind: `tokens` tokens of the stream with this seed."""
    tokenizer_file, seed, tokens = job
    tokenizer = Tokenizer.from_file(tokenizer_file)
    rows, row, filled = [], None, ROW  # a full row before the first: the first document opens a new one
    encoded_tokens, block = 0, 0
    while encoded_tokens < tokens:
        for document in encode_block(tokenizer, f"{seed}-{block}"):
            length = document.shape[1]
            encoded_tokens += length
            if length > ROW:  # hardly any, and half of one would be a document without its end
                continue
            if filled + length > ROW:
                row = np.zeros((3, ROW), dtype=np.int16)  # token 0 is padding and kind 0 carries no loss
                row[1, :] = np.arange(ROW)
                rows.append(row)
                filled = 0
            row[:, filled : filled + length] = document
            row[1, filled + length :] = np.arange(ROW - filled - length)  # padding so far: a document of its own
            filled += length
        block += 1
    return np.stack(rows)


def encode_block(tokenizer: Tokenizer, seed: str) -> list[np.ndarray]:
    """A few thousand documents and conversations as arrays [3, length], shuffled."""
    pieces = [[(document["text"] + END_OF_TEXT, TEXT)] for document in corpus.plain_documents(seed, 1000)]
    pieces += [chat_pieces(conversation["messages"]) for conversation in corpus.conversations(seed, 4000)]
    # All pieces of all documents in one call, taken up again in the same order below.
    encodings = iter(tokenizer.encode_batch([text for document in pieces for text, _ in document]))
    documents = []
    for document in pieces:
        tokens, kinds = [], []
        for _, kind in document:
            ids = next(encodings).ids
            tokens += ids
            kinds += [kind] * len(ids)
        documents.append(np.array([tokens, range(len(tokens)), kinds], dtype=np.int16))  # [3, length]
    order = np.random.default_rng(abs(hash_text(seed))).permutation(len(documents))
    return [documents[index] for index in order]


def hash_text(text: str) -> int:
    """The same number in every process, unlike `hash`."""
    return int.from_bytes(text.encode(), "big") % 2**32


def encode(tokenizer_file: Path, tokens: int, seed: int, processes: int) -> torch.Tensor:
    """The training data, [rows, 3, ROW]; each process makes a share of it from a seed of its own."""
    jobs = [(str(tokenizer_file), seed * 1000 + share, tokens // processes) for share in range(processes)]
    if processes == 1:
        shares = [encode_share(jobs[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            shares = pool.map(encode_share, jobs)
    return torch.from_numpy(np.concatenate(shares))


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> torch.nn.Module:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # not hidden_size / num_attention_heads, so that code which assumes so is found out
        intermediate_size=512,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over 2 %, then a cosine to zero; `progress` runs from 0 to 1."""
    warm_up = 0.02
    if progress < warm_up:
        return peak * progress / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))


def train(model: torch.nn.Module, rows: torch.Tensor, arguments: argparse.Namespace) -> dict:
    """Trains until `steps` or `minutes` are used up; returns what it cost."""
    device = torch.device(arguments.device)
    rows = rows.to(device)  # [rows, 3, ROW], all of it: small, and a step only picks from it
    optimizer = make_optimizer(model, arguments.learning_rate, fused=device.type == "cuda")
    generator = torch.Generator().manual_seed(arguments.seed)
    steps_per_epoch = len(rows) // arguments.rows
    if steps_per_epoch == 0:
        raise SystemExit(
            f"{len(rows)} packed sequences are fewer than one step's {arguments.rows}; raise --tokens or lower --rows"
        )
    start, step, progress = time.perf_counter(), 0, 0.0
    model.train()
    while progress < 1:
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(rows), generator=generator).to(device)
        first = step % steps_per_epoch * arguments.rows
        batch = rows[order[first : first + arguments.rows]].long()  # [B, 3, ROW]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, arguments.learning_rate)
        loss, losses = losses_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        elapsed = time.perf_counter() - start
        progress = step / arguments.steps if arguments.steps else elapsed / (60 * arguments.minutes)
        if step % arguments.log_every == 0 or progress >= 1:
            answer = (batch[:, 2, 1:] == ANSWER).flatten()  # [B * (ROW - 1)]
            rate = step * arguments.rows * ROW / elapsed
            print(
                f"step {step:5} {elapsed:6.1f} s  loss {loss.item():.4f}  answers {losses[answer].mean().item():.4f}  "
                f"{rate / 1e3:.0f} thousand tokens/s",
                flush=True,
            )
    return {"steps": step, "tokens": step * arguments.rows * ROW, "seconds": round(elapsed, 1)}


def make_optimizer(model: torch.nn.Module, learning_rate: float, fused: bool) -> torch.optim.AdamW:
    """AdamW that decays matrices alone: norms are scales around 1."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=fused)


def losses_of(model: torch.nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted mean over a batch [B, 3, ROW], and the cross entropy of each token [B * (ROW - 1)]."""
    ids, positions, kinds = batch.unbind(1)  # [B, ROW] each
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits  # [B, ROW, V]
    # The first token of a document is not to be predicted from the document before it.
    weight = torch.tensor(WEIGHTS, device=ids.device)[kinds[:, 1:]] * (positions[:, 1:] > 0)  # [B, ROW - 1]
    losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weight.flatten()).sum() / weight.sum(), losses


@torch.inference_mode()
def replies(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    """Greedy replies to user turns, in batches padded on the left."""
    texts = []
    for first in range(0, len(prompts), 200):
        conversations = [[{"role": "user", "content": prompt}] for prompt in prompts[first : first + 200]]
        inputs = tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def is_right(name: str, item: dict, reply: str) -> bool:
    """Strictly: the answer and nothing else, but for sums, where the last number counts."""
    if name == "facts":
        return reply.strip().rstrip(".") in item["answer"]
    if name == "choice":
        return reply.strip() == corpus.LETTERS[item["answer"]]
    if name == "arithmetic":
        numbers = re.findall(r"\d+", reply)
        return bool(numbers) and numbers[-1] == item["answer"]
    raise ValueError(f"unknown evaluation '{name}'; known: {', '.join(corpus.EVALUATIONS)}")


def examine(folder: Path, device: str, count: int) -> dict:
    """Accuracy per held-out set and per relation, of the weights as saved, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).to(device).eval()
    report = {}
    for name in corpus.EVALUATIONS:
        items = list(corpus.evaluation_items(name, EXAMINATION_SEED, count))
        prompts = [
            corpus.choice_prompt(item["question"], item["choices"]) if name == "choice" else item["question"]
            for item in items
        ]
        answers = replies(model, tokenizer, prompts)
        grades = defaultdict(list)  # by relation
        for item, answer in zip(items, answers, strict=True):
            grades[item["relation"]].append(is_right(name, item, answer))
        accuracy = sum(map(sum, grades.values())) / len(items)
        relations = {relation: f"{sum(given)}/{len(given)}" for relation, given in sorted(grades.items())}
        report[name] = {"accuracy": round(accuracy, 4), "items": len(items), "relations": relations}
        print(f"\n{name}: {accuracy:.1%} of {len(items)}  {relations}")
        wrong = [
            i for i, (item, answer) in enumerate(zip(items, answers, strict=True)) if not is_right(name, item, answer)
        ]
        for index in [*range(5), *wrong[:8]]:  # a few as they come, and a few of those to learn from
            verdict = "right" if is_right(name, items[index], answers[index]) else "WRONG"
            print(f"  {verdict}  {prompts[index]!r} -> {answers[index]!r} (gold {items[index]['answer']})")
    return report


def check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """The fast rendering used for training must be the template's, token for token."""
    for conversation in corpus.conversations(0, 50):
        pieces = [tokenizer.encode(text, add_special_tokens=False) for text, _ in chat_pieces(conversation["messages"])]
        rendered = tokenizer.apply_chat_template(conversation["messages"], return_dict=True)["input_ids"]
        assert sum(pieces, []) == rendered, conversation


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=3.5, help="time for training proper (default 3.5)")
    length.add_argument("--steps", type=int, help="train for so many steps instead")
    parser.add_argument("--out", type=Path, default=TARGET, help="folder to write")
    parser.add_argument("--rows", type=int, default=128, help=f"packed sequences of {ROW} tokens in a step")
    parser.add_argument("--tokens", type=int, default=60_000_000, help="distinct tokens to prepare")
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--items", type=int, default=400, help="questions in each set of the examination")
    parser.add_argument("--log-every", type=int, default=100, help="steps between lines")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    start = time.perf_counter()
    if arguments.out.exists():
        shutil.rmtree(arguments.out)
    arguments.out.mkdir(parents=True)
    tokenizer = train_tokenizer(arguments.seed)
    check_template(tokenizer)
    tokenizer.save_pretrained(arguments.out)
    print(f"tokenizer of {len(tokenizer)} entries: {time.perf_counter() - start:.1f} s", flush=True)
    rows = encode(arguments.out / "tokenizer.json", arguments.tokens, arguments.seed, arguments.processes)
    share = (rows[:, 2] != PAD).float().mean().item()
    print(f"{len(rows)} packed sequences, {share:.1%} full: {time.perf_counter() - start:.1f} s", flush=True)
    model = build_model(tokenizer, arguments.seed).to(arguments.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters} parameters on {arguments.device}", flush=True)
    cost = train(model, rows, arguments)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    report = {
        "examination": examine(arguments.out, arguments.device, arguments.items),
        "training": cost | {"parameters": parameters, "learning_rate": arguments.learning_rate, "seed": arguments.seed},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (arguments.out / "training_report.json").write_text(json.dumps(report, indent=2) + "\n")
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"\n{arguments.out}: {size} bytes, {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
