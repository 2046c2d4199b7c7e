"""The chat as a person has it, through a pseudo-terminal, and as a script has it, through pipes."""

import fcntl
import os
import pty
import re
import subprocess
import termios
import time

from cli_tools import command, environment, in_process

QUESTION = "What is the capital of Japan?"


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment() | {"TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
        )
        os.close(slave)
        self.shown = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, pattern, seconds=120):
        """What is shown up to the pattern and with it, which then counts as read."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            assert time.monotonic() < end, self.shown
            try:
                self.shown += os.read(self.master, 4096).decode()
            except OSError:  # the process has ended
                raise AssertionError(f"no {pattern!r} in {self.shown!r}") from None
        self.shown = self.shown[found.end() :]
        return found.string[: found.end()]


def test_a_conversation_on_a_terminal():
    terminal = Terminal("chat", "embedded", "--temperature", "50", "--max-new-tokens", "900")
    try:
        shown = terminal.wait_for("> $")
        assert "/reset, /help, /exit; Ctrl-C stops a reply" in shown
        terminal.type(f"{QUESTION}\n")
        terminal.wait_for(r"student: .{40}")  # it has begun, and at this temperature has no end
        terminal.type("\x03")
        shown = terminal.wait_for("> $")
        assert re.search(r"\d+ tokens, [\d.]+ tokens/s, the first after [\d.]+ s; context \d+ of 1,024; cache", shown)
        assert "cut: stopped" in shown
        terminal.type("\x03")
        terminal.wait_for("/exit or Ctrl-D leaves.*> $")
        terminal.type("/reste\n")
        terminal.wait_for("unknown command /reste; known: /reset, /help, /exit.*> $")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.master)


def ask(questions, *arguments):
    """Questions by a pipe; output, errors, exit code."""
    done = subprocess.run(
        command("chat", *arguments), input=questions, capture_output=True, env=environment(), check=False
    )
    return done.stdout.decode(), done.stderr.decode(), done.returncode


def test_lines_of_a_pipe_are_questions():
    given = f"{QUESTION}\n\n/reset\nWhat is 23 + 58?\n".encode() + b"\xff\xfe?\n"
    output, errors, code = ask(given, "embedded", "--teacher", "embedded", "--max-new-tokens", "12")
    lines = output.splitlines()
    assert code == 0
    assert lines[:2] == ["student: Tokyo", "teacher: Tokyo"]
    assert lines[2].startswith("student: 23 + 58: 3 + 8") and lines[3] == lines[2].replace("student", "teacher")
    assert len(lines) == 6 and "\x1b" not in output
    assert "student: reply cut: --max-new-tokens 12 reached" in errors and "Traceback" not in errors


def test_a_reader_that_has_enough_ends_the_chat_without_a_traceback():
    chat = subprocess.Popen(
        command("chat", "embedded"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    chat.stdin.write(f"{QUESTION}\n")
    chat.stdin.flush()
    assert chat.stdout.readline() == "Tokyo\n"
    chat.stdout.close()
    _, errors = chat.communicate(f"{QUESTION}\n", timeout=60)
    assert (chat.returncode, errors) == (1, "")


def test_mistakes_are_one_line(tmp_path):
    code, output = in_process("chat", tmp_path / "nothing")
    assert code == 2 and output.count("\n") == 1 and "no such folder" in output
