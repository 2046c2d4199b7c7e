"""The exported folder: code, weights, tokenizer, reports and card, written in one piece."""

import shutil
from pathlib import Path

from safetensors.torch import load_file

from gendistill.errors import UserError
from gendistill.export.card import model_card
from gendistill.export.code import ENTRY, file_name, flat_name, standalone_code
from gendistill.export.origin import origin_of
from gendistill.files import SUMS, damage_of, folder_in_one_piece, write_atomically
from gendistill.models import GendistillConfig
from gendistill.models.loading import load_config, load_model, load_tokenizer, weight_files

SHARD = "4GB"  # of the hub's files, so that a broken download costs no more
# What each of transformers' classes is to load, from the entry.
AUTO_CLASSES = {
    "AutoConfig": "GendistillConfig",
    "AutoModel": "GendistillModel",
    "AutoModelForCausalLM": "GendistillForCausalLM",
}


def export_student(student: Path, target: Path) -> Path:
    """Writes a student as a folder that needs no gendistill; returns it.

    Weights keep their dtype, bit for bit.

    Raises:
        UserError: `student` is no student's folder or is damaged; or `target` holds what is no earlier export.
    """
    student, target = student.resolve(), target.resolve()
    # Before anything is read at length: a mistake in the call shows at once.
    check_target(student, target)
    check_student(student)
    # Every name and shape: the code that is exported does not check what it loads.
    model = load_model(str(student), "auto", "cpu")
    tokenizer = load_tokenizer(str(student), model.config.vocab_size)
    origin = origin_of(student)
    # As stored, and not the model's: loading casts to one dtype what may be stored in several.
    stored = {name: x for path in weight_files(student) for name, x in load_file(path).items()}
    model.config.auto_map = {auto: f"{flat_name(ENTRY)}.{name}" for auto, name in AUTO_CLASSES.items()}
    with folder_in_one_piece(target) as partial:
        model.save_pretrained(partial, state_dict=stored, max_shard_size=SHARD)
        tokenizer.save_pretrained(partial)
        card = model_card(origin, model.config, sum(x.numel() for x in stored.values()))
        for name, text in {**standalone_code(), **origin.files(), "README.md": card}.items():
            write_atomically(partial / name, text)
        if origin.licence.text is not None:
            write_atomically(partial / "LICENSE", origin.licence.text)
        shutil.rmtree(target, ignore_errors=True)  # an earlier export, now that its successor is there
    return target


def check_student(folder: Path) -> None:
    """Raises UserError if it is no student's folder, or not as it was written."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Give a student's, e.g. runs/demo/0-conversion/student")
    if not (folder / "config.json").is_file():
        # Most likely a run folder, which has one student for each stage.
        students = sorted(str(path.parent) for path in folder.glob("**/student/config.json"))
        found = f"Students in it: {', '.join(students)}" if students else "It has no config.json"
        raise UserError(f"{folder} is no student's folder. {found}")
    # Students that other programs saved have no hashes; that their weights fit, `load_model` checks.
    if (folder / SUMS).is_file() and (damage := damage_of(folder)) is not None:
        raise UserError(f"{folder}: {damage}. Only a student that is as it was written can be exported.")
    config = load_config(str(folder))
    if not isinstance(config, GendistillConfig):
        raise UserError(f"{folder} holds a model of type '{config.model_type}', no student that gendistill made")


def check_target(student: Path, target: Path) -> None:
    """Raises UserError if something would be lost there: only an earlier export, as it was written, is replaced."""
    if target == student or target in student.parents or student in target.parents:
        raise UserError(f"{target} and the student's {student} lie in each other; export to another folder")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; give a folder to write")
    if not target.exists() or not any(target.iterdir()):
        return
    if not (target / file_name(ENTRY)).is_file() or not (target / SUMS).is_file():
        raise UserError(f"{target} is not empty and holds no earlier export. Give another folder.")
    # A card that was edited, or the .git of a clone, is somebody's work.
    sealed = {line.split("  ", 1)[1] for line in (target / SUMS).read_text(encoding="utf-8").splitlines()}
    own = sorted(path.name for path in target.iterdir() if path.name not in {*sealed, SUMS})
    changed = damage_of(target) if not own else f"{', '.join(own)} added since written"
    if changed is not None:
        raise UserError(f"{target} holds an earlier export, of which would be lost: {changed}. Give another folder.")
