"""The chat as a person has it, through a pseudo-terminal, and as a script has it, through pipes."""

import fcntl
import io
import os
import pty
import re
import select
import signal
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
            preexec_fn=self._take_over,
        )
        os.close(slave)
        self.shown = ""

    @staticmethod
    def _take_over():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches it
        # As a terminal's shell leaves it: tests that run in the background have it ignored, as would their children.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, pattern, seconds=60):
        """What is shown up to the pattern and with it, which then counts as read."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern!r} within {seconds} s: {self.shown!r}"
            try:
                self.shown += os.read(self.master, 4096).decode(errors="replace")
            except OSError:  # the process has ended
                raise AssertionError(f"no {pattern!r} in {self.shown!r}") from None
        self.shown = self.shown[found.end() :]
        return found.string[: found.end()]

    def press_until(self, key, pattern):
        """As a person does whose key did nothing: readline notices no signal between its prompt and its waiting."""
        for _ in range(30):
            self.type(key)
            try:
                return self.wait_for(pattern, seconds=2)
            except AssertionError:
                pass
        raise AssertionError(f"no {pattern!r} after thirty times {key!r}: {self.shown!r}")


def test_a_conversation_on_a_terminal():
    terminal = Terminal("chat", "embedded", "--temperature", "50", "--max-new-tokens", "900")
    try:
        shown = terminal.wait_for("the chat.*> $")
        assert "/reset, /help, /exit; Ctrl-C stops a reply" in shown
        terminal.type(f"{QUESTION}\n")
        terminal.wait_for(r"student: .{40}")  # it has begun, and at this temperature has no end
        terminal.type("\x03")
        shown = terminal.wait_for(r"cut: stopped\].*> $")
        assert re.search(r"\d+ tokens, [\d.]+ tokens/s, the first after [\d.]+ s; context \d+ of 1,024; cache", shown)
        terminal.press_until("\x03", "/exit or Ctrl-D leaves.*> $")
        terminal.type("/reste\n")
        terminal.wait_for("unknown command /reste; known: /reset, /help, /exit.*> $")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.master)


def test_lines_of_a_pipe_are_questions(monkeypatch):
    given = f"{QUESTION}\n\n/reset\nWhat is 23 + 58?\n/reste\n".encode() + b"\xff\xfe?\n/exit\nnot asked\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
    code, output = in_process("chat", "embedded", "--teacher", "embedded", "--max-new-tokens", "12")
    lines = output.splitlines()
    assert code == 0, output
    assert lines[:2] == ["student: Tokyo", "teacher: Tokyo"]
    assert lines[2].startswith("student: 23 + 58: 3 + 8")
    assert lines[3] == "student: reply cut: --max-new-tokens 12 reached"  # goes to stderr
    assert lines[4] == lines[2].replace("student", "teacher")
    assert lines[6] == "unknown command /reste; known: /reset, /help, /exit"
    assert "\x1b" not in output and "Traceback" not in output


def test_replies_of_a_single_model_are_printed_as_they_are(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(QUESTION.encode()), "utf-8"))
    assert in_process("chat", "embedded") == (0, "Tokyo\n")


def test_mistakes_are_one_line(tmp_path):
    code, output = in_process("chat", tmp_path / "nothing")
    assert code == 2 and output.count("\n") == 1 and "no such folder" in output
