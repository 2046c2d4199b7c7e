"""Teacher and student served by vLLM, under the same load and each under the most that it holds.

    python benchmarks/vllm_serve.py --shape qwen3-0.6b --keep 7
    python benchmarks/vllm_serve.py --teacher FOLDER --student FOLDER --label qwen2.5-1.5b

Either side is `vllm serve`, asked by `vllm bench serve` for random prompts: contexts of --contexts tokens, of which
--output are the reply's. "equal" has --at-once requests at a time, the same for both; "largest" has all at once,
--waves times as many as the side's cache holds by what vLLM says at its start, so that it is full most of the time; how
many run is counted. Without folders the models have a published shape with random weights, and a tokenizer that splits
text at blanks. Prompts come all at once, hundreds of some hundred thousand characters; while one process with a common
tokenizer read them and sent out replies besides, the GPU was seen idle. So --api-servers of them read, and quickly.
Either server may take --step-tokens in a step: a step with a piece of a prompt holds up all requests that decode, and
in smaller pieces there are more of them.

On a GPU each row is added to results/gpu/vllm_serve.json (or --out) under the label as it is measured, and not measured
again by the same settings: what was cut short is resumed, and `--sides student` can follow in another lease. On a CPU
rows are only shown.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

import torch
from ledger import ROOT, gpu_machine, record_from_gpu
from speed_figures import vllm_serve_figures
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from gendistill.bench.models import student_of_shape, teacher_of_shape
from gendistill.files import write_atomically

RAW = ROOT / "results/gpu/vllm_serve.json"
PORT = 8017
MOST = 256  # requests at a time that the server is to let in
PROMPTS_EQUAL = 4  # times --at-once
# Rows with others are not of the same table.
SETTINGS = ("shape", "keep", "bound", "output", "at_once", "waves", "step_tokens", "api_servers")
KEPT = "median_ttft_ms p99_ttft_ms median_tpot_ms p99_tpot_ms output_throughput total_token_throughput".split()
SLACK = 16  # tokens that a random prompt may become longer by, written out and read again
PATIENCE = 600  # seconds until a server answers
# Of vLLM's log: how many requests of the longest context its cache holds.
HOLDS = re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x")
RUNNING = re.compile(r"^vllm:num_requests_running\{.*?\} (\S+)$", re.MULTILINE)
WRITTEN = re.compile(r"^vllm:generation_tokens_total\{.*?\} (\S+)$", re.MULTILINE)
EVERY = 20  # seconds between two lines of progress
WORDS = 2048  # that the tokenizer of a shape knows


def main() -> None:
    arguments = parse()
    label = arguments.label or arguments.shape
    ledger = Ledger(arguments.out, label, {name: getattr(arguments, name) for name in SETTINGS})
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"teacher": arguments.teacher, "student": arguments.student}
        if arguments.shape is not None:
            folders = write_pair(Path(scratch), arguments)
        for side in arguments.sides:
            measure(side, folders[side], arguments, ledger)
    print(json.dumps(ledger.pair, indent=1))
    if torch.cuda.is_available() and arguments.out == RAW:
        record_from_gpu(RAW, vllm_serve_figures, "python benchmarks/vllm_serve.py")


class Ledger:
    """The rows of a pair, in the file of all pairs; on a CPU they are kept nowhere.

    Args:
        path: of the file; it may not be there yet.
        label: of the pair.
        settings: of which rows with others do not count.
    """

    def __init__(self, path: Path, label: str, settings: dict):
        self.path = path
        self.known = json.loads(path.read_text()) if path.exists() else {"pairs": {}}
        self.pair = settings | {"most": MOST, "measured": {}}
        before = self.known["pairs"].get(label, {})
        if all(before.get(name) == value for name, value in self.pair.items() if name != "measured"):
            self.pair["measured"] = before["measured"]
        self.known["pairs"][label] = self.pair

    def has(self, side: str, context: int, load: str) -> bool:
        rows = self.pair["measured"].get(side, [])
        return any((row["context"], row["load"]) == (context, load) for row in rows)

    def add(self, side: str, row: dict) -> None:
        self.pair["measured"].setdefault(side, []).append(row)
        print(side, row, flush=True)
        if torch.cuda.is_available():
            text = json.dumps(self.known | {"machine": gpu_machine("vllm")}, indent=1) + "\n"
            write_atomically(self.path, text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--shape", help="a published shape, see `gendistill bench`")
    models.add_argument("--teacher", help="a folder; with --student")
    parser.add_argument("--student", help="a folder")
    parser.add_argument("--label", help="of the results, left out: the shape")
    parser.add_argument("--keep", type=int, default=7, help="layers with attention, of a shape")
    parser.add_argument("--bound", type=float, default=-5.0, help="of the log decay, of a shape")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192, 32768, 65536])
    parser.add_argument("--output", type=int, default=512, help="tokens of a reply")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--waves", type=float, default=2.0, help="of requests at the largest load")
    parser.add_argument("--step-tokens", type=int, default=32_768, help="the most that a server takes in a step")
    parser.add_argument("--api-servers", type=int, default=4, help="processes that read prompts and send out replies")
    parser.add_argument("--sides", nargs="+", choices=["teacher", "student"], default=["teacher", "student"])
    parser.add_argument("--out", type=Path, default=RAW)
    parser.add_argument("--loads", nargs="+", choices=["equal", "largest"], default=["equal", "largest"])
    arguments = parser.parse_args()
    if arguments.shape is None and (arguments.student is None or arguments.label is None):
        parser.error("--teacher needs --student and --label")
    return arguments


def write_pair(folder: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Folders of a teacher and a student with random weights, and of a tokenizer with a part of their vocabulary."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = teacher_of_shape(arguments.shape, max(arguments.contexts), device, torch.bfloat16)
    student = student_of_shape(teacher, arguments.keep, log_decay_bound=arguments.bound)
    folders = {}
    for side, model in (("teacher", teacher), ("student", student)):
        folders[side] = folder / side
        model.save_pretrained(folders[side])
        word_tokenizer().save_pretrained(folders[side])
    del teacher, student, model
    torch.cuda.empty_cache()
    return folders


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word."""
    words = ["<unknown>", "<end>", *(f"w{number}" for number in range(2, WORDS))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=words[0], eos_token=words[1])


def measure(side: str, folder: Path | str, arguments: argparse.Namespace, ledger: Ledger) -> None:
    """A row for each context and load that is not there yet."""
    wanted = [(context, load) for context in arguments.contexts for load in arguments.loads]
    missing = [each for each in wanted if not ledger.has(side, *each)]
    if not missing:
        return
    longest = max(arguments.contexts)
    with serving(folder, longest, arguments.step_tokens, arguments.api_servers) as (url, holds):
        for context, load in missing:
            at_once, prompts = arguments.at_once, PROMPTS_EQUAL * arguments.at_once
            if load == "largest":
                fit = min(MOST, holds * longest / context)
                at_once, prompts = MOST, round(arguments.waves * fit)
            row = ask(url, folder, context - arguments.output - SLACK, arguments.output, at_once, prompts)
            ledger.add(side, {"context": context, "load": load, "requests": prompts} | row)


@contextmanager
def serving(folder: Path | str, longest: int, step_tokens: int, api_servers: int) -> Iterator[tuple[str, float]]:
    """`vllm serve` on a folder: the URL where it answers, and how many requests of the longest context it holds."""
    command = ["serve", str(folder), "--port", str(PORT), "--max-model-len", str(longest), "--max-num-seqs", str(MOST)]
    command += ["--max-num-batched-tokens", str(step_tokens), "--api-server-count", str(api_servers)]
    # So that no request is answered from what another left.
    command += ["--no-enable-prefix-caching", "--served-model-name", "model"]
    url = f"http://127.0.0.1:{PORT}"
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log, open(log.name, "w") as said:
        process = subprocess.Popen([*vllm(), *command], stdout=said, stderr=subprocess.STDOUT)
        try:
            began = time.monotonic()
            wait_for(f"{url}/health", process, log)
            holds = requests_held(log.read())
            took = time.monotonic() - began
            print(f"{folder}: answers after {took:.0f} s, holds {holds:.1f} requests of {longest:,} tokens", flush=True)
            yield url, holds
        finally:
            process.terminate()
            process.wait(timeout=120)


def requests_held(log: str) -> float:
    """Requests of the longest context in the cache, by vLLM's log."""
    found = HOLDS.findall(log)
    if not found:
        raise SystemExit(f"vLLM did not say how many requests its cache holds:\n{log[-2000:]}")
    return float(found[-1])


def vllm() -> list[str]:
    return [sys.executable, "-m", "vllm.entrypoints.cli.main"]


def wait_for(url: str, process: subprocess.Popen, log: IO[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urlopen(url, timeout=5)
            return
        except (URLError, OSError):
            time.sleep(1)
    said = log.read()[-4000:]
    raise SystemExit(f"no server answered within {PATIENCE} s, or it ended: {process.poll()}. It said:\n{said}")


def ask(url: str, folder: Path | str, prompt: int, reply: int, at_once: int, prompts: int) -> dict:
    """What `vllm bench serve` measures, and the most requests that were in the cache at a time."""
    with tempfile.TemporaryDirectory() as results, counting(url) as running:
        lengths = ["--random-input-len", str(prompt), "--random-output-len", str(reply)]
        load = ["--num-prompts", str(prompts), "--max-concurrency", str(at_once), "--num-warmups", "2"]
        model = ["--model", str(folder), "--served-model-name", "model", "--base-url", url]
        output = ["--save-result", "--result-dir", results, "--result-filename", "result.json", "--disable-tqdm"]
        command = ["bench", "serve", *model, "--dataset-name", "random", *lengths, *load, "--ignore-eos", *output]
        subprocess.run([*vllm(), *command], check=True, stdout=subprocess.DEVNULL, env=os.environ)
        result = json.loads(Path(results, "result.json").read_text())
    if result["completed"] != prompts:
        raise SystemExit(f"{result['completed']} of {prompts} requests were answered")
    return {name: result[name] for name in KEPT} | {"requests_in_cache": max(running, default=None)}


@contextmanager
def counting(url: str) -> Iterator[list[int]]:
    """How many requests run, looked at twice a second; now and then a line says so."""
    seen, ended = [], threading.Event()

    def look() -> None:
        began = told = time.monotonic()
        while not ended.wait(0.5):
            # A server that takes in hundreds of long prompts answers late; what was lost is one look.
            with suppress(OSError):
                text = urlopen(f"{url}/metrics", timeout=30).read().decode()
                running, written = (int(sum(map(float, part.findall(text)))) for part in (RUNNING, WRITTEN))
                seen.append(running)
                now = time.monotonic()
                if now - told > EVERY:
                    told = now
                    print(f"{now - began:.0f} s: {running} requests run, {written:,} tokens of replies", flush=True)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
