"""transformers' own common model tests on eight kinds of student: fetches them, and runs them.

They come from transformers' source distribution. Nothing of it is installed: its test files are unpacked into build/.

    pip install parameterized
    python scripts/common_tests.py [options of pytest]
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / f"transformers-{transformers.__version__}"  # goes on the module path
PACKAGE = "transformers_common_tests"  # the name under which they are imported: many a folder is called "tests"
# Of the source distribution, by version. For another version, take the hash that the package index shows.
SHA256 = {"5.23.0": "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71"}


def fetch() -> None:
    """Has the common tests of the installed transformers in FOLDER.

    Raises:
        SystemExit: its source distribution has no known hash, or cannot be fetched, or is another file.
    """
    version = transformers.__version__
    if (FOLDER / PACKAGE).is_dir():
        return
    if version not in SHA256:
        sys.exit(f"no SHA-256 is known of transformers {version}'s source distribution; known: {', '.join(SHA256)}")
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(f"transformers=={version} --hash=sha256:{SHA256[version]}\n")
        # pip refuses a file of another hash before anything in it runs.
        options = "--quiet --no-deps --no-binary transformers --require-hashes".split()
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, "--requirement", str(wanted)]
        if subprocess.run(command).returncode:
            sys.exit(f"transformers {version}'s source distribution could not be fetched")
        unpack(Path(folder, f"transformers-{version}.tar.gz"))


def unpack(archive: Path) -> None:
    """The test files of a source distribution, as the package that they are to each other."""
    partial = FOLDER / f"{PACKAGE}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as files:
        for member in files:
            top, _, name = member.name.partition("/tests/")
            if member.isfile() and name and "/" not in top + name:
                (partial / name).write_bytes(files.extractfile(member).read())
    (partial / "__init__.py").touch()
    partial.rename(FOLDER / PACKAGE)


def main() -> None:
    fetch()
    # Without the project's own options: transformers marks its tests with names that strict markers do not know.
    tests = ["-o", "addopts=", "-m", "transformers_tests", "tests/models/test_common_of_transformers.py"]
    tests += ["-W", "ignore::pytest.PytestUnknownMarkWarning"]
    environment = os.environ | {"TRANSFORMERS_TESTS": str(FOLDER)}
    command = [sys.executable, "-m", "pytest", *tests, *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()
