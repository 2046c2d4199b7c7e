"""Follows docs/tutorial.md word by word in a fresh clone: every command, in order, as a reader would type it.

    python scripts/tutorial.py [--folder FOLDER]

The clone is made in FOLDER, which must not be there yet; in a temporary folder, gone afterwards, if none is given. The
demo is installed and run as on a new machine, which takes minutes. The first command that fails ends it.
"""

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/tutorial.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A conversation waits for a person, a server for its end; the last section wants a model of the reader's.
NOT_FOLLOWED = ("gendistill chat", "gendistill serve", "FOLDER_OR_ID")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each block that is followed, in the page's order."""
    for language, text in BLOCK.findall(page):
        if not any(words in text for words in NOT_FOLLOWED):
            yield language, text


def script(page: str) -> str:
    """The page as one shell script, which ends at the first error."""
    lines = ["set -e"]
    for language, text in blocks(page):
        if language == "python":
            lines.append(f"python - <<'PYTHON'\n{text}PYTHON")
        elif language == "sh":
            lines += [f"echo '> '{_quoted(line)}\n{line}" for line in text.replace("\\\n", " ").splitlines()]
    return "\n".join(lines) + "\n"


def _quoted(line: str) -> str:
    return "'" + line.replace("'", "'\\''") + "'"


def follow(folder: Path) -> None:
    """Clones what is committed into the folder, and runs the page's script there."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    # Nothing of the environment that this was started from: it would be found before the clone's own.
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    page = (folder / "docs/tutorial.md").read_text(encoding="utf-8")
    subprocess.run(["bash", "-c", script(page)], cwd=folder, env=own, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args().folder
    if given is not None:
        follow(given)
    else:
        with tempfile.TemporaryDirectory(prefix="gendistill-tutorial-") as temporary:
            follow(Path(temporary) / "gendistill")
