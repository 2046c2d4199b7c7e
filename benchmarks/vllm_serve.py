"""Teacher and student served by vLLM, under the same load and each under the most that it holds.

    python benchmarks/vllm_serve.py --shape qwen3-0.6b --keep 7
    python benchmarks/vllm_serve.py --teacher FOLDER --student FOLDER --label qwen2.5-1.5b

Either side is `vllm serve`, asked by `vllm bench serve` for random prompts: contexts of --contexts tokens, of which
--output are the reply's. "equal" has --at-once requests at a time; "largest" has more than fit, and vLLM lets in as
many as its cache holds, which are counted while it runs. Without folders the models have a published shape with random
weights. On a GPU results are added to results/gpu/vllm_serve.json under the label; on a CPU they are only shown.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import torch
from figures import ROOT, gpu_machine, record_from_gpu, vllm_serve_figures

from gendistill.bench.models import student_of_shape, teacher_of_shape
from gendistill.embedded import teacher_folder

RAW = ROOT / "results/gpu/vllm_serve.json"
PORT = 8017
MOST = 256  # requests at a time that the server is to let in
PROMPTS_EQUAL = 4  # times --at-once
FEWEST_LARGEST = 64  # requests of a run at the largest load
KEPT = "median_ttft_ms p99_ttft_ms median_tpot_ms p99_tpot_ms output_throughput total_token_throughput".split()
SLACK = 16  # tokens that a random prompt may become longer by, written out and read again
PATIENCE = 600  # seconds until a server answers
RUNNING = re.compile(r"^vllm:num_requests_running\{.*?\} (\S+)$", re.MULTILINE)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def main() -> None:
    arguments = parse()
    label = arguments.label or arguments.shape
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"teacher": arguments.teacher, "student": arguments.student}
        if arguments.shape is not None:
            folders = write_pair(Path(scratch), arguments)
        measured = {side: measure(folder, arguments) for side, folder in folders.items()}
    settings = {name: value for name, value in vars(arguments).items() if name not in folders}
    raw = settings | {"most": MOST, "measured": measured}
    print(json.dumps(raw, indent=1))
    if torch.cuda.is_available():
        known = json.loads(RAW.read_text()) if RAW.exists() else {"pairs": {}}
        known["pairs"][label] = raw
        RAW.write_text(json.dumps(known | {"machine": gpu_machine("vllm")}, indent=1) + "\n")
        record_from_gpu(RAW, vllm_serve_figures, "python benchmarks/vllm_serve.py")


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
    parser.add_argument("--tokens", type=int, default=4_000_000, help="contexts together, of a run at the largest load")
    parser.add_argument("--loads", nargs="+", choices=["equal", "largest"], default=["equal", "largest"])
    arguments = parser.parse_args()
    if arguments.shape is None and (arguments.student is None or arguments.label is None):
        parser.error("--teacher needs --student and --label")
    return arguments


def write_pair(folder: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Folders of a teacher and a student with random weights, with a tokenizer that has a part of their vocabulary."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = teacher_of_shape(arguments.shape, max(arguments.contexts), device, torch.bfloat16)
    student = student_of_shape(teacher, arguments.keep, log_decay_bound=arguments.bound)
    folders = {}
    for side, model in (("teacher", teacher), ("student", student)):
        folders[side] = folder / side
        model.save_pretrained(folders[side])
        for name in TOKENIZER:
            shutil.copy(teacher_folder() / name, folders[side])
    del teacher, student, model
    torch.cuda.empty_cache()
    return folders


def measure(folder: Path | str, arguments: argparse.Namespace) -> list[dict]:
    """A row for each context and load."""
    rows = []
    with serving(folder, max(arguments.contexts)) as url:
        for context in arguments.contexts:
            for load in arguments.loads:
                at_once, prompts = arguments.at_once, PROMPTS_EQUAL * arguments.at_once
                if load == "largest":
                    at_once, prompts = MOST, max(FEWEST_LARGEST, min(MOST * 2, arguments.tokens // context))
                row = ask(url, folder, context - arguments.output - SLACK, arguments.output, at_once, prompts)
                rows.append({"context": context, "load": load} | row)
                print(folder, rows[-1], flush=True)
    return rows


@contextmanager
def serving(folder: Path | str, longest: int) -> Iterator[str]:
    """`vllm serve` on a folder, which answers at the URL."""
    command = ["serve", str(folder), "--port", str(PORT), "--max-model-len", str(longest), "--max-num-seqs", str(MOST)]
    # So that no request is answered from what another left.
    process = subprocess.Popen([*vllm(), *command, "--no-enable-prefix-caching", "--served-model-name", "model"])
    url = f"http://127.0.0.1:{PORT}"
    try:
        wait_for(f"{url}/health", process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=120)


def vllm() -> list[str]:
    return [sys.executable, "-m", "vllm.entrypoints.cli.main"]


def wait_for(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urlopen(url, timeout=5)
            return
        except (URLError, OSError):
            time.sleep(1)
    raise SystemExit(f"no server answered within {PATIENCE} s, or it ended: {process.poll()}")


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
    return {name: result[name] for name in KEPT} | {"requests_in_cache": max(running, default=0)}


@contextmanager
def counting(url: str) -> Iterator[list[int]]:
    """How many requests run, looked at twice a second."""
    seen, ended = [], threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            text = urlopen(f"{url}/metrics", timeout=30).read().decode()
            seen.append(int(sum(map(float, RUNNING.findall(text)))))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
