"""gendistill serve: a student, or a teacher, behind an OpenAI-compatible HTTP endpoint."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gendistill.errors import Stopped, UserError

EXAMPLES = (
    "gendistill serve runs/demo/4-instruction_distillation/student",
    "gendistill serve runs/demo/4-instruction_distillation/student --host 0.0.0.0 --api-key-file key.txt",
)


def command(
    student: Annotated[
        str, typer.Argument(metavar="STUDENT", help="a student's folder; or a teacher, by folder or id")
    ],
    host: Annotated[
        str, typer.Option(help="address to serve on; any but this machine's own needs a key")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="what clients call the model; the folder's name if not given")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="its first line is the key; else $GENDISTILL_API_KEY, if set")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=2, help="tokens of prompt and reply together; all the model has if not given")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="most replies decoded at a time")] = 64,
    queue: Annotated[int, typer.Option(min=0, help="requests that may wait beside them; more get status 429")] = 256,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="what it runs on")] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="auto: bfloat16 on CUDA, float32 on a CPU")
    ] = "auto",
) -> None:
    """Serve a student by OpenAI's API: chat, completions, streaming, continuous batching."""
    try:
        from gendistill.serve.server import Server, bind, check_host, read_key
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UserError("serving needs Starlette and uvicorn: pip install 'gendistill[serve]'") from None

    # What is wrong with the address shows before the model is loaded.
    key = read_key(api_key_file)
    check_host(host, key)
    bound = bind(host, port)

    # Slow to import, so behind what is quick to refuse.
    import asyncio

    from gendistill.console import Console
    from gendistill.serve.service import load_service

    service = load_service(
        student, name=name, key=key, context=context, rows=rows, queue=queue, device=device, dtype=dtype
    )
    server = Server(service, Console().print)
    # Ends by itself with status 0 when a signal was obeyed.
    if not asyncio.run(server.run_until_ended(bound)):
        raise Stopped("stopped before all replies had ended", 1)
