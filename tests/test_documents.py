"""Every shipped recipe loads, and every command, setting and line of code that README and docs show is true.

A block is dealt with by its language. Shell commands of gendistill are parsed by the command line itself, and their
recipe and overrides are loaded; those that a CPU answers at once with the embedded teacher run for real, in a folder
with a finished run. What is of no known kind fails, so that nothing is passed over.
"""

import itertools
import json
import re
import shlex
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import TypeAdapter
from readme import MARK, PAGES, filled

from cli_tools import RECIPE, STAGE, in_process
from gendistill.ablation.file import AblationFile, as_written, read_ablation_file
from gendistill.cli import app
from gendistill.cli.run import is_model
from gendistill.recipe.evaluation import Evaluation
from gendistill.recipe.loading import Recipe, load_recipe
from gendistill.recipe.shipped import shipped_recipes
from gendistill.recipe.stage import Stage

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "ARCHITECTURE.md", ROOT / "AGENTS.md", ROOT / "CHANGELOG.md", *PAGES]
ABLATIONS = sorted((ROOT / "recipes").glob("ablation*.yaml"))
RECIPES = [*sorted(set((ROOT / "recipes").glob("*.yaml")) - set(ABLATIONS)), ROOT / "benchmarks/synthesize_sample.yaml"]
LEDGER = json.loads((ROOT / "results/figures.json").read_text())
CLI = typer.main.get_command(app)
EXTRAS = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

FENCED = re.compile(r"^ *(`{3,})(\w*)\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}\S.*\n)+")
LINK = re.compile(r"(?<!`)\[[^\]]*\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# A file or folder of the repository, named in the text.
NAMED = re.compile(r"(?:src|tests|docs|scripts|recipes|results|benchmarks)/[\w./-]+")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
# A number with one of these units behind it was measured, and stands in the ledger.
MEASURED = re.compile(r"\d[\d,.]*\s+(?:tokens\s+(?:a|per)\s+second|tokens/s|GiB|s|seconds|times\s+as\s+fast)\b")
PROGRAMS = ("gendistill", "make", "pip", "python", "torchrun", "vllm")
# They stand for the reader's own files.
PLACEHOLDERS = {"FILE", "FOLDER_OR_ID", "MODEL", "RECIPE", "recipe.yaml", "RUN", "runs/NAME.yaml"}
# Verbs that answer in seconds; the others train, and have tests of their own.
QUICK = {"show-batch", "inspect", "evaluate"}


def blocks():
    """Every block of code as (page, line, language, text); an indented one is a shell's."""
    for page in DOCUMENTS:
        text = page.read_text(encoding="utf-8")
        for match in FENCED.finditer(text):
            yield page.name, 1 + text[: match.start()].count("\n"), match[2], match[3]
        for match in INDENTED.finditer(FENCED.sub(lambda block: "\n" * block[0].count("\n"), text)):
            yield page.name, 1 + text[: match.start()].count("\n"), "sh", match[0]


def spans():
    """Commands in the running text: brackets around what may be left out are taken away."""
    for page in DOCUMENTS:
        for span in SPAN.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
            if span.split()[0] in PROGRAMS and len(span.split()) > 1:
                yield page.name, re.sub(r"\[(--[^\]]*)\]", r"\1", span)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the documents have it: the repository's recipes, and runs/demo of a tiny recipe, finished."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    short = {"tokens": 2 * 2 * STAGE["sequence_length"]}  # two steps
    stages = {name: stage | short for name, stage in RECIPE["stages"].items()}
    evaluation = {"batch_size": 8, "tasks": {name: RECIPE["evaluation"]["tasks"][name] for name in ("facts", "choice")}}
    settings = RECIPE | {"stages": stages, "evaluation": evaluation}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))  # stages have an order
    code, output = in_process("run", folder / "tiny.yaml", "--output", folder / "runs/demo")
    assert code == 0, output
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_load(path):
    assert load_recipe(path).stages is not None


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.name)
def test_shipped_ablations_load(path):
    """Every value fits the base's settings; what only its teacher and its data can tell is left out."""
    file = read_ablation_file(path)
    common = as_written(file.settings)
    assert len(file.axes) == 6 and len(file.seeds) == 2
    for values in file.axes.values():
        for overrides in values.values():
            assert load_recipe(file.base, [*common, *as_written(overrides)]) != load_recipe(file.base, common)


@pytest.mark.parametrize(("page", "line", "language", "text"), list(blocks()), ids=lambda value: str(value)[:20])
def test_block(page, line, language, text, folder, monkeypatch):
    monkeypatch.chdir(folder)
    # Of the tutorial only what commands say: tests/test_tutorial.py runs them, in their order.
    shell = partial(check_shell, run=page != "tutorial.md")
    check = {"sh": shell, "yaml": check_yaml, "python": check_python, "json": check_json}
    check |= {"text": check_text, "": check_text}
    assert language in check, f"{page}:{line}: no check for blocks of '{language}'"
    check[language](text)


@pytest.mark.parametrize(("page", "command"), list(spans()), ids=lambda value: str(value)[:60])
def test_command_in_the_text(page, command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    check_command(shlex.split(command), run=False)


def check_shell(text, run):
    """Commands, one a line but for those that a backslash goes on with; comments are ignored."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            check_command(words, run)


def check_command(words, run):
    program, *arguments = words
    if program == "gendistill":
        check_gendistill(arguments, run)
    elif program == "make":
        assert set(arguments) <= set(TARGETS), words
    elif program == "pip":
        verb, *packages = arguments
        assert verb == "install" and packages, words
        for package in packages:
            name, extras = re.fullmatch(r"(\.|gendistill)\[([\w,]+)\]", package).groups()
            assert all(f"\n{extra} = [" in f"\n{EXTRAS}" for extra in extras.split(",")), words
    elif program == "torchrun":
        module = arguments.index("-m")
        assert arguments[module + 1] == "gendistill.cli", words
        check_gendistill(arguments[module + 2 :], run=False)
    elif program == "vllm":
        assert arguments[0] == "serve", words
    elif program == "python" and arguments[0] == "-m":
        assert arguments[1].startswith("gendistill.") and find_spec(arguments[1]), words
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), words
    elif program == ".":
        assert arguments == [".venv/bin/activate"], words  # which `make demo` creates
    else:
        raise AssertionError(f"no check for the command '{program}'")


def check_gendistill(arguments, run):
    """The verb, its options, and the recipe with its overrides; runs what is quick, if its files are there."""
    verb, *rest = itertools.takewhile(lambda word: word not in ("<", ">"), arguments)  # the rest is the shell's
    if verb.startswith("--"):
        return CLI.make_context("gendistill", [verb, *rest], resilient_parsing=True)
    assert verb in CLI.commands, f"gendistill {verb}: no such verb"
    if not rest:
        return  # the verb is only named
    given = CLI.commands[verb].make_context(verb, list(rest)).params
    file = given.get("recipe") or given.get("run") or given.get("file")
    if verb == "run" and file is not None and is_model(str(file)):
        return
    there = file is not None and (file.exists() or str(file) in shipped_recipes())
    assert file is None or there or str(file) in PLACEHOLDERS, f"gendistill {' '.join(arguments)}: {file} is not there"
    if "recipe" in given and there:
        recipe = load_recipe(file, given["overrides"] or ())
        there = recipe.teacher == "embedded"
    if run and there and verb in QUICK:
        # What a recipe says is tried in a folder of its own: runs/demo is the tiny recipe's.
        output = ["--output", "runs/tried"] if "output" in given else []
        code, output = in_process(*arguments, *output)
        assert code == 0, output


def check_yaml(text):
    """A part of a recipe, the settings of a stage, an ablation, or a file with a task."""
    settings = yaml.safe_load(text)
    keys = set(settings)
    if "axes" in keys:
        file = AblationFile.model_validate(settings)
        for overrides in (overrides for values in file.axes.values() for overrides in values.values()):
            load_recipe(ROOT / "recipes" / file.base, [*as_written(file.settings), *as_written(overrides)])
        return
    if keys <= set(Recipe.model_fields):
        for key, value in settings.items():
            TypeAdapter(Recipe.model_fields[key].annotation).validate_python(value)
    elif keys <= set(Stage.model_fields):
        Stage.model_validate(RECIPE["stages"]["logit_distillation"] | settings)
    else:
        # A file with a task names itself in its first comment.
        name = re.match(r"# (\w+\.yaml)", text)
        assert name is not None, f"neither a recipe's settings nor a stage's nor a task's: {sorted(keys)}"
        Path(name[1]).write_text(text)
        Evaluation.model_validate({"tasks": {"named": {"task": name[1]}}})


def check_python(text):
    code = compile(text, "block", "exec")
    if "runs/demo" in text:
        exec(code, {"__name__": "block"})


def check_json(text):
    json.loads(text)


def check_text(text):
    """What a program printed or a model was asked: no commands, which would not be checked."""
    commands = [line for line in text.splitlines() if line.split()[:1] and line.split()[0] in PROGRAMS]
    assert not commands, f"mark the block as sh: {commands}"


def anchors(page):
    """What a heading is linked by: its words in small letters, with hyphens between them."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """To a file of the repository, and to a heading in it; also where the page is read as a file, not on the site."""
    for target, anchor in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        file = page.parent / target if target else page
        assert file.exists(), f"{target}: not there"
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}: no such heading"


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    spans = SPAN.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    assert [span for span in spans if NAMED.fullmatch(span) and not (ROOT / span).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_are_those_of_the_ledger(page):
    """If this fails, results/ has changed: `python scripts/readme.py` writes the numbers and tables anew."""
    text = page.read_text(encoding="utf-8")
    assert set(MARK.findall(text)) <= set(LEDGER)
    assert text == filled(text, LEDGER)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_measured_number_is_unmarked(page):
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    assert [found[0] for found in MEASURED.finditer(text)] == []


def test_a_number_that_is_not_the_ledgers_is_found():
    ledger = {"speed": {"value": 70644, "hardware": "1x NVIDIA H200"}, "error": {"value": 0.0174}}
    text = "On an H100<!-- speed.hardware -->: 63,000<!-- speed --> tokens a second, 2.0 %<!-- error --> off."
    mended = "On an H200<!-- speed.hardware -->: 70,644<!-- speed --> tokens a second, 1.7 %<!-- error --> off."
    assert filled(text, ledger) == mended == filled(mended, ledger)
    with pytest.raises(KeyError):
        filled("63,000<!-- sped --> tokens a second", ledger)
    assert MEASURED.search("at 63,000 tokens a\nsecond") and not MEASURED.search(text)


def test_development_needs_nothing_that_skips_tests():
    """`make test` installs the extra `dev`: a test that is skipped for want of a package is a test that nobody runs."""
    for package in ("lm_eval", "torchao", "tensorboard", "langdetect", "starlette", "uvicorn", "openai"):
        assert find_spec(package) is not None, f"{package} is not installed: pip install '.[dev]'"
