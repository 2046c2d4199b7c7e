"""The person's side of a conversation: reads questions, shows replies while they are written, obeys commands.

On a terminal there are a prompt, names and a line of figures behind each reply. From a pipe each line is a question,
and only the replies are printed.
"""

import io
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from rich.text import Text

from gendistill.chat.conversation import Conversation
from gendistill.console import Console
from gendistill.errors import UserError

PROMPT = "> "
COMMANDS = {"/reset": "forget the conversation", "/help": "list the commands", "/exit": "leave, as Ctrl-D does"}
KEYS = "Ctrl-C stops a reply, a second time the chat"


def chat(conversations: Sequence[Conversation], console: Console) -> None:
    """Asks every model each question until the person leaves or the input ends."""
    # Both: a file of questions wants no prompt, and neither does a file of answers.
    is_person = console.is_terminal and sys.stdin.isatty()
    if is_person:
        console.print(f"{', '.join(COMMANDS)}; {KEYS}", style="dim")
    for question in _questions(is_person, console):
        if question == "/exit":
            return
        if question == "/reset":
            for conversation in conversations:
                conversation.reset()
        elif question == "/help":
            console.print("\n".join(f"{command}: {what}" for command, what in COMMANDS.items()))
        elif question.startswith("/") and question.lstrip("/").isalpha():  # a path or a sum is a question
            console.print(f"unknown command {question}; known: {', '.join(COMMANDS)}")
        else:
            # One after the other, so that both can be read as they come in.
            for conversation in conversations:
                _answer(conversation, question, console, named=is_person or len(conversations) > 1, figures=is_person)


def _questions(is_person: bool, console: Console) -> Iterator[str]:
    """Lines that are not empty, without blanks around them."""
    if is_person:
        import readline  # noqa: F401  from now on `input` has a history and can edit the line

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text shall not end the chat
    while True:
        try:
            line = input(PROMPT if is_person else "").strip()
        except EOFError:
            if is_person:
                console.print()  # the shell's prompt shall not stand behind ours
            return
        except KeyboardInterrupt:
            if not is_person:
                raise
            # A person who presses it once too often shall not lose the conversation.
            console.print("\n/exit or Ctrl-D leaves")
            continue
        if line:  # an empty one asks nothing
            yield line


def _answer(conversation: Conversation, question: str, console: Console, *, named: bool, figures: bool) -> None:
    """Shows one model's reply while it is written, then what it took."""
    # A single model's replies to a pipe are printed as they are, for programs to read.
    if named:
        console.print(Text(f"{conversation.name}: ", "bold"), end="")
    try:
        # Closed, so that a reply that is stopped stands in the history as far as it came.
        with _interruptible() as stopped, closing(conversation.ask(question)) as pieces:
            for piece in pieces:
                console.print(piece, end="")
                console.file.flush()  # a line that is not ended would wait in the buffer
                if stopped:
                    conversation.usage.cut = "stopped"
                    break
    except UserError as error:  # of this question: the next may do
        console.print(str(error))
        return
    console.print()
    if figures:
        console.print(_figures(conversation), style="dim")
    elif conversation.usage.cut is not None:
        # Beside the replies, which a program may read.
        Console(stderr=True).print(f"{conversation.name}: reply cut: {conversation.usage.cut}")


def _figures(conversation: Conversation) -> str:
    usage = conversation.usage
    # Not all configurations say how far positions reach.
    limit = "" if conversation.limit is None else f" of {conversation.limit:,}"
    cut = "" if usage.cut is None else f"; cut: {usage.cut}"
    speed = f"{usage.tokens_per_second:.1f} tokens/s, the first after {usage.first_seconds:.2f} s"
    cache = f"cache {conversation.cache_bytes / 2**20:.2f} MiB"
    return f"[{usage.tokens:,} tokens, {speed}; context {usage.context:,}{limit}; {cache}{cut}]"


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Within it the first Ctrl-C fills the list, to be looked at between two tokens, and the second ends the program.

    No exception in the middle of a pass through the model, which could leave its cache half written.
    """
    stopped: list[int] = []

    def stop(number: int, _) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
