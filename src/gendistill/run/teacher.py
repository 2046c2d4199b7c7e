"""The teacher that a run began with: its files and its tokenizer, by hash, in teacher.json.

A stage that resumes with another teacher would end in a student of both.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from gendistill.data.fingerprints import tokenizer_hash
from gendistill.errors import UserError
from gendistill.files import file_sha256, write_atomically
from gendistill.models.loading import model_folder, weight_files
from gendistill.run.folder import RunFolder

RECORD = "teacher.json"
GENERATION = "generation_config.json"  # optional; names tokens that end replies
PLACE_OF_A_TOKENIZER = ("name_or_path", "vocab_file", "tokenizer_file", "local_files_only", "is_local")


def check_teacher(folder: RunFolder, name: str, *, records: bool = True) -> None:
    """Refuses a teacher whose weights or configuration are not those that the run began with; records them at first.

    Weights are read once per run folder. After that a file counts as unchanged while its size, place on the disk and
    both times are: the second, of its last change (`st_ctime`), is the system's own, and no program can set it back.
    Otherwise it is read again, and its content decides.

    Raises:
        UserError: a file has another content, is new or is gone.
    """
    source = model_folder(name)
    before = _recorded(folder).get("files", {})
    paths = [source / "config.json", source / GENERATION, *weight_files(source)]
    found = {path.name: _described(path, before.get(path.name)) for path in paths}
    if before:  # runs of earlier versions have recorded nothing of it
        before = {GENERATION: found[GENERATION]} | before
    hashes = [{file: about["sha256"] for file, about in files.items()} for files in (before, found)]
    if before and hashes[0] != hashes[1]:
        changed = sorted(file for file in before.keys() | found.keys() if hashes[0].get(file) != hashes[1].get(file))
        raise _refusal(folder, f"{source}: {', '.join(changed)}")
    if records and _recorded(folder).get("files") != found:
        _record(folder, files=found)


def check_tokenizer(folder: RunFolder, tokenizer, *, records: bool = True) -> None:
    """The same for the teacher's tokenizer: vocabulary, merges, template, special tokens; and how it decodes."""
    found = {"tokenizer": tokenizer_hash(tokenizer), "tokenizer_settings": _settings_hash(tokenizer)}
    before = _recorded(folder)
    if any(before.get(name, value) != value for name, value in found.items()):
        raise _refusal(folder, "its tokenizer")
    if records and not found.items() <= before.items():
        _record(folder, **found)


def _settings_hash(tokenizer) -> str:
    """Of what stands in tokenizer_config.json and changes no ids: students are saved with it, and replies decoded."""
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if name not in PLACE_OF_A_TOKENIZER}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()[:20]


def _described(path: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    """A file's hash, and what tells without reading it that it is unchanged; None for both if it is not there."""
    if not path.exists():
        return {"sha256": None, "unchanged": None}
    about = path.stat()
    unchanged = [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    if before is not None and before["unchanged"] == unchanged:
        return before
    return {"sha256": file_sha256(path), "unchanged": unchanged}


def _recorded(folder: RunFolder) -> dict[str, Any]:
    path = folder.root / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise UserError(
            f"{path}: is damaged, so that nothing says which teacher this run began with. Delete it only "
            "if that has not changed."
        ) from None


def _record(folder: RunFolder, **values: Any) -> None:
    write_atomically(folder.root / RECORD, json.dumps(_recorded(folder) | values, indent=1) + "\n")


def _refusal(folder: RunFolder, what: str) -> UserError:
    return UserError(
        f"the teacher is not the one that the run in {folder.root} began with; different: {what}. Undo the change, or "
        "give another --output."
    )
