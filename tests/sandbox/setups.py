"""Runs programs in a set-up, as a script: `python setups.py ISOLATION MEMORY`, programs as JSON on standard input."""

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORKERS = 6  # most of the time they wait for programs that sleep


def run(isolation: str, programs: list[dict], memory: int, **python) -> list[list]:
    from gendistill.sandbox.run import run_task
    from gendistill.sandbox.task import Task

    def outcome(program: dict) -> list:
        task = Task(program["code"], "", program["seconds"], memory, isolation, tests=program["tests"], **python)
        return list(run_task(task))

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(outcome, programs))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    tempfile.tempdir = sys.argv[3]
    from gendistill.errors import UserError

    try:
        print(json.dumps(run(sys.argv[1], json.load(sys.stdin), int(sys.argv[2]))))
    except UserError as refusal:
        print(json.dumps(str(refusal)))
