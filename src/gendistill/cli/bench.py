"""gendistill bench: how fast a teacher and its student are, beside what the machine could do."""

import json
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from gendistill.errors import UserError

EXAMPLES = (
    "gendistill bench runs/demo/4-instruction_distillation/student --teacher embedded",
    "gendistill bench --shape qwen3-0.6b --contexts 1024,8192 --batches 1",
)


def command(
    student: Annotated[Path | None, typer.Argument(help="folder of a student; none with --shape")] = None,
    teacher: Annotated[str | None, typer.Option(help="folder or hub id of its teacher")] = None,
    shape: Annotated[str | None, typer.Option(help="a published shape with random weights, e.g. qwen3-0.6b")] = None,
    keep: Annotated[int, typer.Option(help="with --shape: layers of the student that keep attention")] = 7,
    mixer: Annotated[str, typer.Option(help="with --shape: what the other layers hold")] = "kda",
    contexts: Annotated[str, typer.Option(help="tokens, separated by commas")] = "1024,2048,8192,32768,131072",
    batches: Annotated[str, typer.Option(help="sizes, separated by commas; what does not fit is said")] = "1,8",
    repeats: Annotated[int, typer.Option(min=1, help="of each measurement; medians count")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    output: Annotated[Path, typer.Option(help="folder for bench.json, bench.md and bench.svg")] = Path("bench"),
) -> None:
    """Measure time to first token, time per output token, throughput, memory and cache of teacher and student."""
    sizes = {name: _numbers(name, text) for name, text in (("contexts", contexts), ("batches", batches))}
    if (student is None) == (shape is None):
        raise UserError("give a STUDENT folder (with --teacher), or --shape NAME")

    import torch

    from gendistill.analysis.tables import to_markdown, to_rich
    from gendistill.bench.machine import measure_rates
    from gendistill.bench.models import student_of_shape, teacher_of_shape
    from gendistill.bench.sweep import check_contexts, sweep, wins_from
    from gendistill.bench.tables import HEADER, cells, plot
    from gendistill.compute import present_device
    from gendistill.console import Console
    from gendistill.files import make_folder, write_atomically
    from gendistill.models.loading import load_model

    device = present_device(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if shape is not None:
        of_teacher = teacher_of_shape(shape, max(sizes["contexts"]), device, dtype)
        bounded = {"log_decay_bound": -5.0} if mixer == "kda" else {}
        pair = {"teacher": of_teacher, "student": student_of_shape(of_teacher, keep, mixer=mixer, **bounded)}
    else:
        pair = {} if teacher is None else {"teacher": load_model(teacher, dtype, device)}
        pair["student"] = load_model(str(student), dtype, device)
    check_contexts(pair, sizes["contexts"])
    console = Console()
    rates = measure_rates(device, dtype)
    console.print(f"{rates.device}: copies {rates.copy / 1e12:.3g} TB/s, products {rates.product / 1e12:.3g} TFLOP/s")
    make_folder(output)
    rows: list[dict] = []
    today = date.today().isoformat()

    def keep_row(row: dict) -> None:
        rows.append(row)
        # After each, so that a sweep that is cut off keeps what it has.
        kept = {"machine": rates.to_dict(), "measured": today, "shape": shape, "rows": rows}
        write_atomically(output / "bench.json", json.dumps(kept, indent=1) + "\n")
        console.print("  ".join(cells([row])[0]))

    for _ in sweep(pair, sizes["contexts"], sizes["batches"], rates, repeats, keep_row):
        pass
    console.print(to_rich("speed", HEADER, cells(rows)))
    lines = [to_markdown(HEADER, cells(rows))]
    batch = min(sizes["batches"])
    for key, what in (("first_median", "the first token"), ("token_median", "each further token")):
        for form in ("default", "best"):
            context = wins_from(rows, key, form)
            found = "never" if context is None else f"from {context:,} tokens on"
            lines.append(f"Student faster than teacher to {what}, both in their {form} form, batch {batch}: {found}.")
    write_atomically(output / "bench.md", "\n\n".join(lines) + "\n")
    files = "bench.json, bench.md" + (", bench.svg" if plot(rows, output / "bench.svg") else "")
    console.print("\n".join(lines[1:]) + f"\n{output}: {files}")


def _numbers(name: str, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UserError(f"--{name} {text}: give numbers of at least 1, separated by commas")
    return sorted(found)
