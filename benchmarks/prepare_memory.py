"""Memory that preparing a .txt takes, read as one document: 20 MB and 200 MB of text, and compressed ones.

    python benchmarks/prepare_memory.py --tokenizer DIR --text FILE...

The texts of the files' records stand in one .txt, again from the beginning where they are shorter. Each is prepared in
a process of its own, whose peak of memory it is. It takes five minutes on 2 cores. Results go to
results/cpu/prepare_memory.json.
"""

import argparse
import gzip
import json
import tempfile
from itertools import cycle
from pathlib import Path

from figures import prepare_memory_figures
from ledger import ROOT, record
from prepare_data import LENGTH, apart, prepare

SIZES = (20, 200)  # MB
TOKENS_PER_BYTE = 0.2  # somewhat fewer than any text has, so that it is not read twice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of a Hugging Face tokenizer")
    parser.add_argument("--text", nargs="+", required=True, help="files or folders of records with a field text")
    arguments = parser.parse_args()
    path = ROOT / "results/cpu/prepare_memory.json"
    raw: dict[str, dict] = {"tokens_per_byte": TOKENS_PER_BYTE, ".txt": {}, ".txt.gz": {}}
    for megabytes in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "text.txt"
            write_text(arguments.text, text, megabytes)
            packed = text.with_name("text.txt.gz")
            with gzip.open(packed, "wb", compresslevel=1) as file:
                file.write(text.read_bytes())
            for form in (text, packed):
                suffix = "".join(form.suffixes)
                raw[suffix][str(megabytes)] = apart(prepare_text, arguments.tokenizer, form, megabytes)
                path.write_text(json.dumps(raw, indent=1) + "\n")
    record(prepare_memory_figures(path.parent), "python benchmarks/prepare_memory.py")


def write_text(sources: list[str], path: Path, megabytes: int) -> None:
    from gendistill.data.sources import read_records
    from gendistill.recipe.data import Source

    left = megabytes * 2**20
    with open(path, "wb") as file:
        for source in cycle(sources):
            for each in read_records(Source(path=source)):
                left -= file.write(f"{each['text'][:left]}\n\n".encode())
                if left <= 0:
                    return


def prepare_text(tokenizer: str, text: Path, megabytes: int) -> dict:
    from gendistill.recipe.data import Source

    tokens = int(megabytes * 2**20 * TOKENS_PER_BYTE) // LENGTH * LENGTH
    return prepare(tokenizer, Source(path=str(text)), tokens, "all")


if __name__ == "__main__":
    main()
