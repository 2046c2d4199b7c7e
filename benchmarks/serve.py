"""A server under load: memory over thousands of requests, and throughput with many clients and with one.

    python benchmarks/serve.py leak
    python benchmarks/serve.py throughput --shape qwen3-0.6b

`leak` sends requests of all kinds to `gendistill serve embedded`, 8 at a time: chats and completions, whole and
streamed, with stop strings, log-probabilities and several choices; some are refused, some clients leave in the middle.
The server's memory is read all along. Results go to results/cpu/serve_leak.json.

`throughput` sends the same completions of unequal length 64 at a time and one at a time, in turns, and compares tokens
a second. The model has a published shape with random weights, or is MODEL. On a GPU results go to
results/gpu/serve_throughput.json; on a CPU they are only shown.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
from ledger import ROOT, gpu_machine, record, record_from_gpu
from speed_figures import serve_leak_figures, serve_throughput_figures, throughput_ratios

LEAK, THROUGHPUT = ROOT / "results/cpu/serve_leak.json", ROOT / "results/gpu/serve_throughput.json"
AT_ONCE = 8  # requests of the leak test
WARM_UP = 500  # of its requests, in which allocators and caches fill
SAMPLE_EVERY = 25  # requests
CONCURRENT = 64
LONGEST_PROMPT, LONGEST_REPLY = 512, 192  # tokens, in the throughput test
MESSAGES = [{"role": "user", "content": "What is the capital of Spain?"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    leak = parts.add_parser("leak")
    leak.add_argument("--requests", type=int, default=3000, help=f"behind {WARM_UP} to warm up")
    throughput = parts.add_parser("throughput")
    model = throughput.add_mutually_exclusive_group(required=True)
    model.add_argument("--shape", help="a published shape, see `gendistill bench`")
    model.add_argument("--model", help="what `gendistill serve` takes")
    throughput.add_argument("--rounds", type=int, default=3)
    throughput.add_argument("--per-round", type=int, default=CONCURRENT * 2, help="requests at 64 at a time")
    arguments = parser.parse_args()
    {"leak": run_leak, "throughput": run_throughput}[arguments.part](arguments)


def run_leak(arguments: argparse.Namespace) -> None:
    with serving("embedded", "--device", "cpu", "--rows", str(AT_ONCE)) as (url, process):
        raw = asyncio.run(send_all_kinds(url, process.pid, WARM_UP + arguments.requests))
    LEAK.write_text(json.dumps(raw, indent=1) + "\n")
    figures = serve_leak_figures(LEAK.parent)
    print(json.dumps(figures, indent=1))
    record(figures, "python benchmarks/serve.py leak")


async def send_all_kinds(url: str, pid: int, total: int) -> dict:
    """Sends so many requests; returns how many of each kind, and [requests, bytes of memory] all along."""
    samples, counts, drawn = [], Counter(), random.Random(0)
    numbers = iter(range(total))

    async def worker(client: openai.AsyncOpenAI) -> None:
        for number in numbers:
            kind = drawn.choice(list(KINDS))
            await KINDS[kind](client, drawn)
            counts[kind] += 1
            if number % SAMPLE_EVERY == 0:
                samples.append([number, memory_of(pid)])
            if number % 500 == 0:
                print(f"{number} requests, {samples[-1][1] / 2**20:.1f} MiB", flush=True)

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        await asyncio.gather(*(worker(client) for _ in range(AT_ONCE)))
    return {"warm_up": WARM_UP, "requests": total, "kinds": counts, "samples": sorted(samples)}


async def chat(client: openai.AsyncOpenAI, drawn: random.Random) -> None:
    await client.chat.completions.create(model="embedded", messages=MESSAGES, max_tokens=drawn.randint(1, 24))


async def sampled(client: openai.AsyncOpenAI, drawn: random.Random) -> None:
    how = dict(temperature=1.5, top_p=0.9, n=drawn.randint(1, 3), seed=drawn.randint(0, 9))
    await client.completions.create(model="embedded", prompt=prompt_of(drawn), max_tokens=24, **how)


async def streamed(client: openai.AsyncOpenAI, drawn: random.Random) -> None:
    async for _ in await client.completions.create(model="embedded", prompt=prompt_of(drawn), stream=True):
        pass


async def stopped(client: openai.AsyncOpenAI, drawn: random.Random) -> None:
    await client.completions.create(model="embedded", prompt=prompt_of(drawn), max_tokens=48, stop=["e", "a b"])


async def likelihoods(client: openai.AsyncOpenAI, drawn: random.Random) -> None:
    how = dict(max_tokens=drawn.randint(1, 16), logprobs=True, top_logprobs=5)
    await client.chat.completions.create(model="embedded", messages=MESSAGES, **how)


async def left(client: openai.AsyncOpenAI, drawn: random.Random) -> None:
    """A client that goes away behind a few tokens."""
    how = dict(max_tokens=400, temperature=2, stream=True)
    stream = await client.completions.create(model="embedded", prompt=prompt_of(drawn), **how)
    async for _ in stream:
        if drawn.random() < 0.3:
            break
    await stream.close()


async def refused(client: openai.AsyncOpenAI, drawn: random.Random) -> None:
    try:
        await client.completions.create(model="embedded", prompt="word " * drawn.randint(1200, 3000))
    except openai.BadRequestError:
        return
    raise AssertionError("an oversize prompt was taken")


KINDS = {each.__name__: each for each in (chat, sampled, streamed, stopped, likelihoods, left, refused)}


def prompt_of(drawn: random.Random) -> list[int]:
    return [drawn.randint(5, 2000) for _ in range(drawn.randint(1, 200))]


def memory_of(pid: int) -> int:
    """Bytes of a process's own memory, files that it maps aside."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])


def run_throughput(arguments: argparse.Namespace) -> None:
    import torch

    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or write_shape(arguments.shape, Path(folder) / arguments.shape)
        limits = ["--rows", str(CONCURRENT), "--context", str(LONGEST_PROMPT + LONGEST_REPLY), "--name", "model"]
        with serving(model, *limits) as (url, _):
            raw = asyncio.run(measure(url, arguments.rounds, arguments.per_round))
    raw |= {"model": arguments.model or arguments.shape, "longest": [LONGEST_PROMPT, LONGEST_REPLY]}
    if not on_gpu:
        print(f"times as many tokens a second: {', '.join(f'{ratio:.2f}' for ratio in throughput_ratios(raw))}")
        return
    THROUGHPUT.write_text(json.dumps(raw | {"machine": gpu_machine()}, indent=1) + "\n")
    print(json.dumps(serve_throughput_figures(THROUGHPUT.parent), indent=1))
    record_from_gpu(THROUGHPUT, serve_throughput_figures, "python benchmarks/serve.py throughput --shape qwen3-0.6b")


def write_shape(name: str, folder: Path) -> str:
    """A student of a published shape, 7 of 28 layers kept, with a tokenizer that knows some of its ids."""
    import torch

    from gendistill.bench.models import student_of_shape, teacher_of_shape
    from gendistill.models.loading import load_tokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = teacher_of_shape(name, LONGEST_PROMPT + LONGEST_REPLY, device, torch.bfloat16)
    keep = max(1, teacher.config.num_hidden_layers // 4)
    student = student_of_shape(teacher, keep, mixer="kda", log_decay_bound=-5.0)
    student.save_pretrained(folder)
    load_tokenizer("embedded", student.config.vocab_size).save_pretrained(folder)
    return str(folder)


async def measure(url: str, rounds: int, per_round: int) -> dict:
    """Tokens and seconds of rounds at 64 at a time and at one, in turns; the first of each warms up."""
    found: dict[str, list] = {str(CONCURRENT): [], "1": []}
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        for number in range(rounds + 1):
            for at_once, count in ((CONCURRENT, per_round), (1, max(4, per_round // 16))):
                round_ = await send(client, at_once, count)
                print(
                    f"round {number}, {at_once} at a time: {round_['tokens'] / round_['seconds']:.0f} tokens/s",
                    flush=True,
                )
                if number:
                    found[str(at_once)].append(round_)
    return {"rounds": found}


async def send(client: openai.AsyncOpenAI, at_once: int, count: int) -> dict:
    # The same in every round, by their number: those sent one at a time are the first of those sent together.
    drawn = random.Random(0)
    asked = []
    for _ in range(count):
        prompt = [drawn.randint(5, 1000) for _ in range(drawn.randint(16, LONGEST_PROMPT))]
        asked.append(dict(prompt=prompt, max_tokens=drawn.randint(64, LONGEST_REPLY), temperature=0))
    gate = asyncio.Semaphore(at_once)

    async def ask(how: dict) -> int:
        async with gate:
            return (await client.completions.create(model="model", **how)).usage.completion_tokens

    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(ask, asked)))
    return {"requests": count, "tokens": tokens, "seconds": round(time.perf_counter() - began, 4)}


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server in a process of its own: its URL, once it answers, and the process; ended by SIGTERM."""
    command = [sys.executable, "-m", "gendistill.cli", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        if "http://" not in line:
            raise SystemExit("the server did not start")
        time.sleep(1)  # the line comes just before the port is opened
        yield line.split()[-1], process
        process.terminate()
        process.communicate()
        assert process.returncode == 0, "the server did not end well"


if __name__ == "__main__":
    main()
