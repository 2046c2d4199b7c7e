"""The command line itself: a verb is a module in one list, and an unknown one is answered with those there are."""

import json
import re
import shlex
import subprocess
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from cli_tools import command, environment, in_process
from gendistill import __version__, cli
from gendistill.errors import UserError

NAMES = "init plan run ablate place synthesize show-batch convert distill evaluate bench chat serve export".split()
NAMES += ["status", "inspect", "report", "doctor"]  # as --help lists them


def test_a_verb_is_a_module_in_the_list():
    """What a new verb takes: a file with `command`, and its line in the list."""
    count_layers = ModuleType("gendistill.cli.count_layers")

    def command(recipe: str, keep: int = 2) -> None:
        """Count what is kept."""
        print(f"{recipe}: {keep} layers")

    count_layers.command = command
    app = cli.make_app([*cli.VERBS, count_layers])
    done = CliRunner().invoke(app, ["count-layers", "tiny.yaml", "--keep", "3"])
    assert (done.exit_code, done.output) == (0, "tiny.yaml: 3 layers\n")
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert all(name in shown for name in [*NAMES, "count-layers", "Count what is kept."])


@pytest.mark.parametrize("verb", ["evalute", "server"])
def test_an_unknown_verb_is_answered_with_all_there_are(verb):
    with pytest.raises(UserError) as caught:
        cli.app([verb], standalone_mode=False)
    assert str(caught.value) == f"unknown verb '{verb}'; known: {', '.join(NAMES)}"


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.__name__.rpartition(".")[-1])
def test_examples_are_shown_and_can_be_typed(verb):
    name = verb.__name__.rpartition(".")[-1].replace("_", "-")
    shown = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"}).output
    for example in verb.EXAMPLES:
        assert example in shown
        program, called, *arguments = shlex.split(re.split(" [<>] ", example)[0])  # the rest is the shell's
        assert (program, called) == ("gendistill", name)
        typer.main.get_command(cli.app).commands[name].make_context(name, arguments)  # raises where one is unknown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_verbs(shell, monkeypatch):
    # Else that of the process that runs the tests.
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    script = CliRunner().invoke(cli.app, ["--show-completion"], prog_name="gendistill")
    assert script.exit_code == 0 and "_GENDISTILL_COMPLETE" in script.output, script.output
    monkeypatch.setenv("_GENDISTILL_COMPLETE", f"complete_{shell}")
    for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS"):
        monkeypatch.setenv(name, "gendistill sta")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    done = CliRunner().invoke(cli.app, [], prog_name="gendistill")
    assert "status" in done.output and "doctor" not in done.output, done.output


def test_a_folder_that_is_gone_is_one_line_for_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    code, output = in_process("status", "run")
    assert code == 2 and output.startswith("gendistill: the folder that this shell stands in was deleted"), output


def test_an_unknown_verb_is_one_line_for_the_user():
    done = subprocess.run(command("evalute"), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2
    assert done.stderr == f"gendistill: unknown verb 'evalute'; known: {', '.join(NAMES)}\n"


def test_the_version_is_printed():
    done = CliRunner().invoke(cli.app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"gendistill {__version__}\n")


def test_status_says_how_far_a_run_is(gendistill, recipe, converted_run):
    overrides = [f"stages.{stage}.tokens=256" for stage in ("qk_alignment",)]
    code, output = gendistill("distill", recipe, *overrides, "--stage", "qk_alignment", "--output", converted_run)
    assert code == 0, output
    # Off a terminal: plain lines, with what is left, and no bars.
    assert re.search(
        r"^qk_alignment: 2 of 2 steps, loss \d\.\d+, held out \d\.\d+, [\d,]+ tokens/s, 0:00:00 left$", output, re.M
    ), output
    code, output = gendistill("status", converted_run)
    lines = output.splitlines()
    assert code == 0 and lines[:2] == [f"{converted_run}: no process works there", "0-conversion: done"]
    assert lines[2].startswith("1-qk_alignment: done, step 2, loss ") and lines[3] == "2-block_alignment: not begun"
    code, output = gendistill("status", converted_run, "--json")
    told = json.loads(output)
    assert (code, told["process"]) == (0, None)
    assert [(stage["stage"], stage["done"], stage["step"]) for stage in told["stages"]][:3] == [
        ("0-conversion", True, None),
        ("1-qk_alignment", True, 2),
        ("2-block_alignment", False, None),
    ]
    assert f"loss {told['stages'][1]['loss']:.4f}, held out {told['stages'][1]['held_out_loss']:.4f}" in lines[2]
    assert gendistill("status", converted_run.parent)[0] == 2
    # What a kill left behind the student goes, and one changed byte of what status reads is said.
    left = converted_run / "1-qk_alignment/checkpoints/step-00000002"
    left.mkdir(parents=True)
    code, output = gendistill("distill", recipe, *overrides, "--stage", "qk_alignment", "--output", converted_run)
    assert code == 0 and not left.parent.exists(), output
    for name, byte in (("recipe.yaml", b"qk_alig"), ("1-qk_alignment/metrics.jsonl", b'"loss": ')):
        path = converted_run / name
        whole = path.read_bytes()
        path.write_bytes(whole.replace(byte, byte[:-1] + b"x"))
        code, output = gendistill("status", converted_run)
        assert code == 2 and "changed since" in output and "Traceback" not in output, output
        path.write_bytes(whole)
    assert gendistill("status", converted_run)[0] == 0


def test_what_is_printed_goes_nowhere_or_into_a_file(gendistill, converted_run, tmp_path):
    _, shown = gendistill("status", converted_run)
    assert gendistill("--quiet", "status", converted_run) == (0, "")
    log = tmp_path / "log.txt"
    for _ in range(2):
        assert gendistill("--log-file", log, "status", converted_run) == (0, "")
    assert log.read_text() == 2 * shown
    code, output = gendistill("--quiet", "status", tmp_path)
    assert code == 2 and "is no run folder" in output
    assert gendistill("--log-file", tmp_path, "status", converted_run)[0] == 2
