"""Throughput from text to packed sequences, beside the tokenizer alone; its memory; and how much is padding.

    python benchmarks/prepare_data.py --tokenizer DIR --text FILE... --instructions FILE,PROMPT,COMPLETION...

Text: 60 MB of the files, from its JSON lines to rows of 2,048 tokens on disk; the tokenizer alone gets the same texts
in the same batches, from memory, and hands out its ids. The two take turns, three rounds. Memory is the peak of a
process that prepares, once with all of the text and once with a quarter of it. Instructions: padding in sequences of
2,048 tokens.
Run it on an otherwise idle machine; it takes about five minutes on 2 cores. Results go to results/cpu/prepare.json.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

from figures import prepare_figures
from ledger import ROOT, record

MEGABYTES, LENGTH, ROUNDS = 60, 2048, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of a Hugging Face tokenizer")
    parser.add_argument("--text", nargs="+", required=True, help="files or folders of records with a field text")
    parser.add_argument("--instructions", nargs="+", default=[], help="file, field of the prompt, of the completion")
    arguments = parser.parse_args()
    tokenizer = arguments.tokenizer
    path = ROOT / "results/cpu/prepare.json"
    raw = {"megabytes": MEGABYTES, "sequence_length": LENGTH, "cores": multiprocessing.cpu_count(), "rounds": []}
    raw["sources"] = [Path(source).name for source in arguments.text]
    with tempfile.TemporaryDirectory() as folder:
        raw["instructions"] = [apart(prepare_instructions, tokenizer, each) for each in arguments.instructions]
        quarter = write_text(arguments.text, Path(folder), MEGABYTES // 4)
        raw["quarter"] = apart(prepare_text, tokenizer, quarter, apart(tokenizer_alone, tokenizer, quarter)["tokens"])
        text = write_text(arguments.text, Path(folder), MEGABYTES)
        for _ in range(ROUNDS):
            alone = apart(tokenizer_alone, tokenizer, text)
            raw["rounds"].append({"alone": alone, "prepare": apart(prepare_text, tokenizer, text, alone["tokens"])})
            path.write_text(json.dumps(raw, indent=1) + "\n")
    record(prepare_figures(path.parent), "python benchmarks/prepare_data.py")


def apart(function, *arguments) -> dict:
    """Runs it in a process of its own, so that its peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def write_text(sources: list[str], folder: Path, megabytes: int) -> Path:
    """The first megabytes of the sources' texts as one file of JSON lines, a megabyte of each in turn."""
    from gendistill.data.sources import read_records
    from gendistill.recipe.data import Source

    path, size = folder / f"{megabytes}.jsonl", 0
    readers = [read_records(Source(path=source)) for source in sources]
    with open(path, "w") as file:
        while readers:
            for reader in list(readers):  # about as much of each, so that a part of the text is like the whole
                written = 0
                while written < 2**20 and size < megabytes * 2**20:
                    record = next(reader, None)
                    if record is None:
                        readers.remove(reader)
                        break
                    file.write(json.dumps({"text": record["text"]}, ensure_ascii=False) + "\n")
                    written += len(record["text"].encode())
                    size += len(record["text"].encode())
            if size >= megabytes * 2**20:
                return path
    raise SystemExit(f"the texts have {size / 2**20:.0f} MB; give more")


def tokenizer_alone(tokenizer: str, text: Path) -> dict:
    from transformers import AutoTokenizer

    from gendistill.data.plain import batches

    backend = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False).backend_tokenizer
    with open(text) as lines:
        texts = [json.loads(line)["text"] for line in lines]
    tokens, began = 0, time.perf_counter()
    for batch in batches(texts, len):
        tokens += sum(len(encoding.ids) for encoding in backend.encode_batch_fast(batch, add_special_tokens=False))
    return {"tokens": tokens, "seconds": time.perf_counter() - began}


def prepare_text(tokenizer: str, text: Path, tokens: int) -> dict:
    """All of the text but for what does not fill the last row."""
    from gendistill.recipe.data import Source

    return prepare(tokenizer, Source(path=str(text)), tokens // LENGTH * LENGTH, "all")


def prepare_instructions(tokenizer: str, each: str) -> dict:
    """A million tokens of rows, read as often as that takes."""
    from gendistill.recipe.data import Source

    path, prompt, completion = each.split(",")
    source = Source(path=path, prompt=prompt, completion=completion, epochs=1000, skip_malformed=10**6)
    return {"data": Path(path).parent.name} | prepare(tokenizer, source, 2**20, "completion")


def prepare(tokenizer: str, source, tokens: int, loss_on: str) -> dict:
    from transformers import AutoTokenizer

    from gendistill.data import dataset

    tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    settings = dict(sequence_length=LENGTH, tokens=tokens, loss_on=loss_on, seed=0)
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        stats = dataset.prepare([source], tokenizer, **settings, cache=cache).stats
        seconds = time.perf_counter() - began
    counts = {name: stats[name] for name in ("tokens", "padding_tokens", "documents", "loss_tokens")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return counts | {"malformed": stats["sources"][0]["malformed"], "seconds": seconds, "peak_bytes": peak}


if __name__ == "__main__":
    main()
