"""gendistill chat: a conversation at the terminal, with a student alone or beside its teacher."""

from typing import Annotated, Literal

import typer

EXAMPLES = (
    "gendistill chat runs/demo/4-instruction_distillation/student --teacher embedded",
    "gendistill chat embedded < questions.txt",
)


def command(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="folder of a student; any model's or hub id, too")],
    teacher: Annotated[
        str | None, typer.Option(metavar="FOLDER_OR_ID", help="answers each question as well, after the student")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens of a reply at most")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1, help="of sampling: the likeliest tokens' share")] = 1.0,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one")] = "auto",
) -> None:
    """Talk to a student: replies are shown while they are written. From a pipe each line is a question.

    /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops a reply.
    """
    # Imported here, so that `gendistill --help` need not wait for it.
    import torch

    from gendistill.chat.conversation import Conversation, Settings
    from gendistill.chat.terminal import chat
    from gendistill.compute import present_device
    from gendistill.console import Console
    from gendistill.models.loading import load_config, load_model, load_tokenizer

    device = present_device(device)
    # As a run evaluates them.
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    settings = Settings(max_new_tokens, temperature, top_p, seed)
    names = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    conversations = []
    for role, name in names.items():
        # The configuration first: it says what is wrong before gigabytes are loaded.
        tokenizer = load_tokenizer(name, load_config(name).get_text_config().vocab_size)
        conversations.append(Conversation(role, load_model(name, dtype, device), tokenizer, settings))
    chat(conversations, Console())
