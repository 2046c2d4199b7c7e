"""Exported folders compute what their sources compute, where gendistill is not installed and where it is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import check_imports, get_relative_import_files

from gendistill.export.code import ENTRY, file_name, flattened, source_of, standalone_code
from gendistill.export.folder import export_student
from gendistill.models import GendistillForCausalLM
from small_models import tokens

# All families and mixers; hybrid, pure and mixed; a window alone and beside a recurrence.
VARIANTS = [
    "qwen2-kda-mixed",
    "qwen3-gla-mixed",
    "llama-gated_deltanet-beside-window",
    "qwen3-kda-pure-share-by-token",
    "llama-lightning-pure",
    "mistral-kda-hybrid",
    "qwen2-window-mixed",
    "qwen3-window-pure",
]

CODE = standalone_code()  # text by file name


@pytest.fixture(scope="module")
def exported(tmp_path_factory, save_student):
    """Folders with exported/ and, as expected.pt, what the source answers; all exports have one name, so that their
    code is imported once."""
    folders = {}
    for variant in VARIANTS:
        folder = folders[variant] = tmp_path_factory.mktemp("export") / variant
        student = save_student(variant, folder / "student")
        export_student(folder / "student", folder / "exported")
        ids = tokens(2, 20)
        with torch.no_grad():
            expected = {"ids": ids, "logits": student(ids).logits}
            expected["replies"] = student.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False)
        torch.save(expected, folder / "expected.pt")
    return folders


def test_where_gendistill_is_not_installed(exported, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    program = Path(__file__).with_name("standalone_loading.py")
    command = [sys.executable, program, *exported.values()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(VARIANTS)
    assert {name: checks for name, checks in zip(VARIANTS, found, strict=True) if not all(checks.values())} == {}
    assert set(found[0]) == {"logits", "tokens", "ids", "cached", "padded", "saved again"}


@pytest.mark.parametrize("trusts", [True, False])
def test_where_it_is_its_own_classes_load_the_folder(exported, trusts):
    folder = exported["qwen2-kda-mixed"]
    model = AutoModelForCausalLM.from_pretrained(folder / "exported", trust_remote_code=trusts)
    assert type(model) is GendistillForCausalLM
    expected = torch.load(folder / "expected.pt")
    with torch.no_grad():
        assert torch.equal(model(expected["ids"]).logits, expected["logits"])


def test_every_file_is_the_librarys_own():
    """But for its imports, which are undone here, letter by letter."""
    modules = {file: text.split(maxsplit=2)[1] for file, text in CODE.items()}  # as the first line says
    names = {file.removesuffix(".py"): module for file, module in modules.items()}
    for file, text in CODE.items():
        text = text.split("\n", 1)[1]
        text = re.sub(r"( *)try:\n    ( *(?:from|import) .*)\n\1except ImportError:\n\1    raise\n", r"\2\n", text)
        text = re.sub(r"from \.(\w+) import", lambda found: f"from {names[found[1]]} import", text)
        assert file == file_name(modules[file])
        assert text == source_of(modules[file])


def test_transformers_finds_every_file_and_asks_for_no_other_package(exported):
    """Of folders on the hub, every file's imports must be installed: Triton and fla are not, on most machines."""
    folder = exported["qwen3-window-pure"] / "exported"
    needed = {Path(path).name for path in get_relative_import_files(folder / file_name(ENTRY))}
    assert needed | {file_name(ENTRY)} == {path.name for path in folder.glob("*.py")}
    for path in folder.glob("*.py"):
        check_imports(path)


def test_what_transformers_would_not_copy_is_refused():
    for line in ("import gendistill.ops", "from gendistill import ops"):
        with pytest.raises(ValueError, match=r"gendistill\.new, line 2: import names from a module"):
            flattened("gendistill.new", f"\n{line}\n")


def test_only_imports_that_may_fail_are_put_within_try():
    source = "import torch\ntry:\n    import fla\nexcept ImportError:\n    fla = None\ndef f():\n    import fla.ops\n"
    text, _ = flattened("gendistill.new", source)
    expected = source.replace(
        "    import fla.ops", "    try:\n        import fla.ops\n    except ImportError:\n        raise"
    )
    assert text.split("\n", 1)[1] == expected
