"""gendistill export: a student as a Hugging Face folder that loads where gendistill is not installed."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = ("gendistill export runs/demo/4-instruction_distillation/student exported",)


def command(
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="a student's folder")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder to write; an earlier export is replaced")],
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="upload it to this repository of the hub, private if new")
    ] = None,
) -> None:
    """Write a student as a self-contained Hugging Face folder: weights, code, tokenizer, reports and model card."""
    # Imported here, so that `gendistill --help` need not wait for it.
    from gendistill.console import Console
    from gendistill.export.folder import export_student
    from gendistill.export.push import check_push
    from gendistill.export.push import push as push_folder

    # A name that the hub would refuse, before minutes of writing.
    if push is not None:
        check_push(push)
    written = export_student(student, folder)
    console = Console()
    console.print(f"{written}: {sum(path.stat().st_size for path in written.iterdir()):,} bytes")
    load = f'AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)'
    console.print(f"load it with {load}; its card: README.md")
    if push is not None:
        console.print(f"on the hub: {push_folder(written, push)}")
