"""Speed of grading the replies of real models and of marking conversations, beside another checkout.

    python benchmarks/grading_speed.py --against DIR --tokenizer DIR --chats FILE,PROMPT,COMPLETION

Graded, strictly and flexibly, are the replies of tests/evaluate/kinds/shared/real_replies.json, kind by kind, but for
programs, whose time is the sandbox's, and what is asked about long contexts, which other checkouts make otherwise.
Marked are 1,500 records of the file as chats of one turn and 500 as chats of three. DIR is the other checkout; both
sides take turns in processes of their own, five rounds, and CPU seconds are counted, so that other work on the machine
matters little. It takes two minutes. Results go to results/cpu/grading.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

from ledger import ROOT, commit

ROUNDS = 5
# Of a measurement: all replies are graded in a hundredth of a second, and marked in seconds.
GRADED, MARKED = 40, 2
LEFT_OUT = ("code", "needle", "needle_sum", "fact", "recall")
REPLIES = ROOT / "tests/evaluate/kinds/shared/real_replies.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="folder of the other checkout")
    parser.add_argument("--tokenizer", required=True, help="folder of a Hugging Face tokenizer with a chat template")
    parser.add_argument("--chats", required=True, help="a .jsonl file, field of the prompt, of the completion")
    parser.add_argument("--measure", action="store_true", help="time what PYTHONPATH has, and print it")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(grading() | {"marking": marking(arguments.tokenizer, arguments.chats)}))
        return
    rounds: dict[str, list[dict]] = {"ours": [], "against": []}
    for _ in range(ROUNDS):
        for side, checkout in (("ours", ROOT), ("against", arguments.against)):
            rounds[side].append(measured_apart(checkout))
    commits = {"ours": commit(), "against": commit(arguments.against)}
    raw = {"commits": commits, "speed_ratios": ratios(rounds), "cpu_seconds": rounds}
    (ROOT / "results/cpu/grading.json").write_text(json.dumps(raw, indent=1) + "\n")
    print(json.dumps(raw["speed_ratios"], indent=1))


def measured_apart(checkout: Path) -> dict[str, float]:
    """CPU seconds of each part with the package of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, *sys.argv, "--measure"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def ratios(rounds: dict[str, list[dict]]) -> dict[str, float]:
    """How many times faster than the other checkout each part is, and all grading together: medians over the rounds."""
    pairs = list(zip(rounds["ours"], rounds["against"], strict=True))
    found = {part: median(against[part] / ours[part] for ours, against in pairs) for part in pairs[0][0]}
    graded = [part for part in found if part != "marking"]
    found["grading"] = median(sum(map(b.get, graded)) / sum(map(a.get, graded)) for a, b in pairs)
    return {part: round(ratio, 3) for part, ratio in found.items()}


def grading() -> dict[str, float]:
    from gendistill.evaluate.kinds import grade

    by_kind = defaultdict(list)
    for row in json.loads(REPLIES.read_text(encoding="utf-8"))["replies"]:
        if row["kind"] not in LEFT_OUT:
            by_kind[row["kind"]].append((item_of(row), row["reply"]))
    seconds = {}
    for kind, graded in by_kind.items():
        items, replies = zip(*graded, strict=True)
        # Each time other texts that read alike, so that none is remembered; the first time compiles patterns.
        rounds = [[reply + "\n" * blanks for reply in replies] for blanks in range(GRADED + 1)]
        grade(items, rounds.pop())
        seconds[kind] = cpu_seconds(lambda items=items, rounds=rounds: grade(items, rounds.pop()), GRADED)
    return seconds


def item_of(row: dict):
    """The item through which a row's reply is graded."""
    from gendistill.evaluate.kinds.item import Item
    from gendistill.names import LETTERS

    candidates = tuple(LETTERS[: len(row.get("choices", ()))]) or (*row.get("accepted", ()), *row.get("others", ()))
    answers = (", ".join(row["answers"]),) if "answers" in row else tuple(row.get("accepted", ()))
    checks = {key: row[key] for key in ("instruction_ids", "kwargs") if key in row}
    return Item(
        0, row["kind"], row.get("question", "?"), candidates, (0,), answers, tuple(row.get("choices", ())), checks
    )


def marking(tokenizer: str, chats: str) -> float:
    from transformers import AutoTokenizer

    from gendistill.data.chat import encode_conversations

    path, prompt, completion = chats.split(",")
    turns = []
    with open(path, encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            turns.append(
                [{"role": "user", "content": record[prompt]}, {"role": "assistant", "content": record[completion]}]
            )
    several = [turns[n] + turns[n + 1] + turns[n + 2] for n in range(0, 1500, 3)]
    conversations = turns[:1500] + several
    loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    encode_conversations(loaded, conversations[:10])
    parts = [conversations[n : n + 100] for n in range(0, 2000, 100)]
    return cpu_seconds(lambda: [encode_conversations(loaded, part) for part in parts], MARKED)


def cpu_seconds(work: Callable[[], object], times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


if __name__ == "__main__":
    main()
