"""Makes the training text, the conversations, the prompts and the question files of the real-teacher runs from local
data sets.

    python benchmarks/real_teacher/prepare.py --data DATA --out FOLDER

DATA holds gzip'd JSON lines, one folder a set: arc_easy, arc_challenge, openbookqa and gsm8k with train and test splits
(fields question, choices, answer; GSM8K: question, answer), more_text/*/ with plain text in the field text, and
python_docs/docs.jsonl.gz, pages of Python's documentation as reStructuredText in the same field: what it says of each
function becomes a request for a program, as the evaluator words them, for the teacher to write (`synthesis`). More of
them come of the docstrings in the standard library of the Python that runs this, whose source is text, too, and its
functions replies to such requests. p3_subset/train.jsonl.gz holds instructions with their answers (source, template,
prompt, completion), wordnet_glosses a dictionary (words, pos, text): questions with options are made of both
(choices.py). Conversations come from train splits only, worded as the evaluator asks, one question each or several. A
record whose question stands in a test split is left out, and counted.
"""

import argparse
import ast
import gzip
import json
import random
import re
import shutil
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from choices import CHOICE_SETS, choices, read

from gendistill.evaluate.kinds.item import user_turn
from gendistill.evaluate.kinds.last_number import solution_of
from gendistill.names import LETTERS
from gendistill.recipe.evaluation import make_task

TEXT_SETS = ("wikipedia", "factbook", "siyavula", "biology_text")
TEXT_CHARACTERS = 12_000_000
# Questions of one conversation, at most: as long as few-shot prompts are, so that what no window of 512 tokens sees
# whole is learnt from as well.
LONGEST_LETTERS, LONGEST_SUMS = 16, 10
# "zip(a, b)", options below it, and the first paragraph of what it does.
FUNCTION = re.compile(
    r"^\.\. (?:function|method):: ([\w.]+)\(([^)\n]*)\)\n(?:[ \t]+:\w+:.*\n)*\n+((?:[ \t]+\S.*\n)+)", re.MULTILINE
)
REFERENCE = re.compile(r":[\w:+-]+:`[~!]?([^`<]*?)(?: <[^`]*>)?`")  # ":func:`zip`", of which the name is left
DESCRIBED = range(40, 500)  # characters of a description that says enough, and not too much
STUB = 'def {}({}):\n    """{}"""'
WRITTEN = range(200, 2000)  # characters of a function that is a reply
NO_LIBRARY = {"site-packages", "test", "tests", "idlelib", "lib2to3"}  # folders without code to learn from


def write(path: Path, records: list[dict]) -> None:
    with gzip.open(path, "wt", compresslevel=6) as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def exchanges(data: Path) -> list[list[tuple[str, str]]]:
    """Question and answer pairs of the train splits, one list for letters and one for worked sums."""
    tested = {r["question"] for name in (*CHOICE_SETS, "gsm8k") for r in read(data / name / "test.jsonl.gz")}
    left_out = 0
    letters, sums = [], []
    for name in CHOICE_SETS:
        for record in read(data / name / "train.jsonl.gz"):
            if record["question"] in tested:
                left_out += 1
            else:
                letters.append((user_turn(record["question"], record["choices"]), LETTERS[record["answer"]]))
    for record in read(data / "gsm8k" / "train.jsonl.gz"):
        if record["question"] in tested:
            left_out += 1
        else:
            sums.append((record["question"], solution_of(record["answer"])))
    print(f"{len(letters)} questions with letters, {len(sums)} worked sums; {left_out} left out, being test questions")
    return [letters, sums]


def conversations(pairs: list[tuple[str, str]], longest: int, rng: random.Random) -> list[dict]:
    rng.shuffle(pairs)
    made = []
    while pairs:
        turns = [pairs.pop() for _ in range(min(len(pairs), rng.randint(1, longest)))]
        roles = ("user", "assistant")
        made.append({"messages": [dict(role=r, content=c) for turn in turns for r, c in zip(roles, turn, strict=True)]})
    return made


def texts(data: Path, rng: random.Random) -> list[dict]:
    records = [
        {"text": record["text"]}
        for name in TEXT_SETS
        for path in sorted((data / "more_text" / name).glob("*.jsonl.gz"))
        for record in read(path)
    ]
    rng.shuffle(records)
    kept, characters = [], 0
    for record in records:
        if characters < TEXT_CHARACTERS:
            kept.append(record)
            characters += len(record["text"])
    print(f"{len(kept)} documents, {characters:,} characters")
    return kept


def programs(data: Path) -> list[dict]:
    """Requests for functions, each with a signature and what the function is to do; for no two the same."""
    found = {}
    for page in read(data / "python_docs" / "docs.jsonl.gz"):
        for name, parameters, text in FUNCTION.findall(page["text"]):
            described = re.sub(r"[`*\\]+", "", REFERENCE.sub(r"\1", " ".join(text.split())))
            name = name.split(".")[-1]
            if len(described) in DESCRIBED and is_signature(name, parameters):
                found[described] = requested(STUB.format(name, parameters, described))
    print(f"{len(found)} requests for programs")
    return list(found.values())


def requested(stub: str) -> dict:
    (request,) = make_task(task="humaneval").template
    return {"prompt": request.replace("{prompt}", stub)}


def library() -> Iterator[str]:
    """The source of each module of the standard library."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if not NO_LIBRARY & set(path.relative_to(folder).parts):
            yield path.read_text(encoding="utf-8")


def functions() -> list[dict]:
    """Requests as `programs` has them, of the standard library's functions; its methods need their class."""
    found = {}
    for source in library():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef) or {arg.arg for arg in node.args.args[:1]} & {"self", "cls"}:
                continue
            described = " ".join((ast.get_docstring(node) or "").split())
            if len(described) in DESCRIBED and '"""' not in described:
                found[described] = requested(STUB.format(node.name, ast.unparse(node.args), described))
    print(f"{len(found)} requests for functions")
    return list(found.values())


def bodies() -> list[dict]:
    """Conversations: a function's head is given, and the whole function is the reply."""
    found = {}
    for source in library():
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef) or node.decorator_list:
                continue
            text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            if len(text) in WRITTEN:
                found[text] = replied(head(text, node), text)
    print(f"{len(found)} functions written out")
    return list(found.values())


def head(text: str, node: ast.FunctionDef) -> str:
    """The lines of a function before its first statement: its signature, and what it says of itself."""
    described = ast.get_docstring(node) is not None
    last = node.body[0].end_lineno if described else node.body[0].lineno - 1
    return "\n".join(text.splitlines()[: last - node.lineno + 1])


def replied(stub: str, text: str) -> dict:
    request = {"role": "user", "content": requested(stub)["prompt"]}
    return {"messages": [request, {"role": "assistant", "content": f"```python\n{text}\n```"}]}


def is_signature(name: str, parameters: str) -> bool:
    """Whether it is one in Python: the documentation puts optional parameters in brackets."""
    try:
        ast.parse(f"def {name}({parameters}): pass")
    except SyntaxError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    letters, sums = exchanges(arguments.data)
    chat = conversations(letters, LONGEST_LETTERS, rng) + conversations(sums, LONGEST_SUMS, rng)
    rng.shuffle(chat)
    write(arguments.out / "chat.jsonl.gz", chat)
    write(arguments.out / "choices.jsonl.gz", conversations(choices(arguments.data), LONGEST_LETTERS, random.Random(1)))
    write(arguments.out / "bodies.jsonl.gz", bodies())
    write(arguments.out / "programs.jsonl.gz", programs(arguments.data))
    write(arguments.out / "functions.jsonl.gz", functions())
    write(arguments.out / "code.jsonl.gz", [{"text": source} for source in library()])
    shutil.copyfile(arguments.data / "p3_subset/train.jsonl.gz", arguments.out / "instructions.jsonl.gz")
    write(arguments.out / "text.jsonl.gz", texts(arguments.data, rng))
    for name in ("arc_easy", "openbookqa", "gsm8k"):
        for split in ("train", "test"):
            shutil.copyfile(arguments.data / name / f"{split}.jsonl.gz", arguments.out / f"{name}.{split}.jsonl.gz")


if __name__ == "__main__":
    main()
