"""The rooms of the package and the arrows between them, checked on every import in src: also those inside functions."""

import ast
import functools
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src/gendistill"
RECIPES = sorted(str(path) for path in set((ROOT / "recipes").glob("*.yaml")) - set(ROOT.glob("recipes/ablation*")))
LONGEST_FILE = 400  # lines
LEAST_COMMENTS = 0.08  # lines with a comment, of all lines

# Every room, and the rooms it may import besides itself. A row names rows above it only, so no circle can be written
# down. A module belongs to the room with the longest name that fits: recipe.data lies below data, recipe.stage above.
GROUND = "errors names files visible console"
ROOMS = {
    "errors": "",
    "names": "errors",
    "files": "errors",
    "visible": "",
    "console": "visible",
    "templates": "errors",
    "ops": GROUND,
    "distributed": GROUND,
    "sandbox": GROUND,
    "embedded": GROUND,
    "analysis": GROUND,  # records in, tables out
    "models": f"{GROUND} ops embedded",
    "compute": f"{GROUND} ops distributed models",
    "inference": f"{GROUND} templates ops distributed models compute",
    "recipe.fields": GROUND,
    "recipe.data": f"{GROUND} recipe.fields",
    "data": f"{GROUND} templates distributed embedded recipe.fields recipe.data",
    # The recipe's tasks are the union of the settings of all kinds, so the kinds lie below the recipe.
    "evaluate.kinds": f"{GROUND} sandbox recipe.fields recipe.data data",
    "recipe": f"{GROUND} recipe.fields recipe.data evaluate.kinds",
    "distill": f"{GROUND} ops distributed analysis models compute inference recipe.fields recipe.data data recipe",
    "evaluate": f"{GROUND} distributed sandbox analysis models compute inference recipe.data data evaluate.kinds"
    " recipe",
    "synthesize": f"{GROUND} distributed sandbox analysis models inference recipe.data data evaluate.kinds recipe"
    " evaluate",
    "ablation.result": f"{GROUND} recipe.fields",  # below what reads it: reports
    "placement": f"{GROUND} ops distributed models recipe.fields recipe.data data evaluate.kinds recipe",
    "plan": f"{GROUND} ops models compute inference recipe.data data recipe distill",
    "bench": f"{GROUND} models compute inference recipe.data recipe placement",
    "report": f"{GROUND} analysis recipe.data data evaluate.kinds recipe distill evaluate ablation.result",
    "doctor": f"{GROUND} ops models compute",
    "export": f"{GROUND} analysis models",
    "vllm": f"{GROUND} models ops inference",
    "chat": f"{GROUND} models inference recipe.data data",
    "serve": f"{GROUND} models compute inference recipe.data data",
    "run": f"{GROUND} ops distributed sandbox analysis models compute inference recipe.fields recipe.data data"
    " evaluate.kinds recipe distill evaluate synthesize placement plan report",
    "ablation": f"{GROUND} analysis models compute recipe.fields recipe.data recipe ablation.result plan report run",
    "cli": f"{GROUND} ops distributed analysis models compute inference recipe.fields recipe.data data evaluate.kinds"
    " recipe distill evaluate synthesize placement bench plan report doctor export chat serve run"
    " ablation.result ablation",
}
# Said twice because it matters most, and followed through other rooms: a student is loaded, run and exported without
# the recipe, and whatever generates knows nothing of evaluation.
FAR_APART = [
    ("ops", "recipe"),
    ("models", "recipe"),
    ("export", "recipe"),
    ("inference", "recipe"),
    ("inference", "evaluate"),
]


@functools.cache
def modules(root: Path) -> dict[str, Path]:
    """The modules of the package in a folder by their names below it ("ops.decay"); the package itself is "".

    A package's `__init__.py` is the module of the package's name.
    """
    named = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


@functools.cache
def syntax_of(path: Path) -> ast.Module:
    """A source file's syntax; no test changes a file that was looked at."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(root: Path) -> dict[str, set[str]]:
    """For each module, the modules of the package that it imports anywhere: at its top, in functions, for types."""
    known = modules(root)
    return {name: set(_imported(path, known)) - {name} for name, path in known.items()}


def _imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(syntax_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "gendistill":
                    yield _below(alias.name, "", known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module.split(".")[0] == "gendistill":
                for alias in node.names:
                    yield _below(node.module, alias.name, known)


def _below(module: str, name: str, known: dict[str, Path]) -> str:
    """`from MODULE import NAME` imports the module of that name where there is one, else MODULE, which defines it."""
    module = module.removeprefix("gendistill").removeprefix(".")
    whole = f"{module}.{name}".strip(".")
    found = whole if name and whole in known else module
    return found if found in known else f"{found} (no such module)"


def room_of(module: str) -> str:
    """The longest room whose name the module's begins with; the module's first part if there is none."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        room = ".".join(parts[:length])
        if room in ROOMS:
            return room
    return parts[0]


def upward(root: Path) -> list[str]:
    """Imports that the table of rooms does not allow."""
    wrong = []
    for module, imported in imports(root).items():
        room = room_of(module)
        allowed = {room, "", *ROOMS.get(room, "").split()}  # "" is the package, which holds its version only
        wrong += [f"{module} -> {other}" for other in sorted(imported) if room_of(other) not in allowed]
    return wrong


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Groups of names that reach each other, as "a <-> b <-> c"."""
    reach = {name: reached(graph, name) for name in graph}
    groups = {frozenset({name} | {other for other in reach[name] if name in reach.get(other, ())}) for name in graph}
    return sorted(" <-> ".join(sorted(group)) for group in groups if len(group) > 1)


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """All names that can be come to from one, itself only by a way back."""
    found: set[str] = set()
    ahead = list(graph.get(start, ()))
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += graph.get(name, ())
    return found


def between_rooms(root: Path) -> dict[str, set[str]]:
    """Which rooms' modules import which other rooms."""
    graph: dict[str, set[str]] = {}
    for module, imported in imports(root).items():
        graph.setdefault(room_of(module), set()).update(room_of(other) for other in imported)
    return {room: others - {room} for room, others in graph.items()}


def too_near(root: Path) -> list[str]:
    """Rooms that are to be far apart and are not, by whatever way."""
    graph = imports(root)
    wrong = []
    for room, other in FAR_APART:
        # Settings are the recipe's too, though fields and sources lie lower than the rest of it.
        ends = [module for module in graph if module.split(".")[0] == room]
        for module in ends:
            wrong += [f"{module} -> {end}" for end in reached(graph, module) if end.split(".")[0] == other]
    return sorted(set(wrong))


def strangers(root: Path) -> list[str]:
    """Files and folders at the root of the package that the table of rooms does not have."""
    expected = {room.split(".")[0] for room in ROOMS} | {"__init__", "__pycache__"}
    return sorted(path.name for path in root.iterdir() if path.stem not in expected)


def too_long(root: Path) -> list[str]:
    """Source files with too many lines to be read at one sitting."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(root).values()}
    return [f"{path.relative_to(root)}: {lines} lines" for path, lines in lengths.items() if lines > LONGEST_FILE]


def comment_share(root: Path) -> float:
    """Console that carry a comment, alone or behind code, of all lines; docstrings are no comments."""
    lines = comments = 0
    for path in modules(root).values():
        lines += len(path.read_text(encoding="utf-8").splitlines())
        with path.open("rb") as file:
            comments += sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(file.readline))
    return comments / lines


def missing_names(script: Path, root: Path) -> list[str]:
    """What a script imports from the package and would not find there."""
    known = modules(root)
    wrong = []
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "gendistill":
            for alias in node.names:
                module = _below(node.module, alias.name, known)
                is_module = f"gendistill.{module}" == f"{node.module}.{alias.name}"
                if module not in known or not (is_module or alias.name in names_of(known[module])):
                    wrong.append(f"{script.name}: {node.module}.{alias.name}")
    return wrong


@functools.cache
def names_of(path: Path) -> set[str]:
    """The names that a module has at its top, defined or imported there."""
    names: set[str] = set()
    for node in syntax_of(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        else:  # an assignment, bare or under a condition
            names.update(each.id for each in ast.walk(node) if isinstance(each, ast.Name))
    return names


def test_rows_name_rows_above_them():
    above: set[str] = set()
    for room, allowed in ROOMS.items():
        assert set(allowed.split()) <= above, room
        above.add(room)


def test_no_import_runs_upwards():
    assert upward(SOURCE) == []


def test_nothing_imports_in_a_circle():
    assert circles(imports(SOURCE)) == []
    assert circles(between_rooms(SOURCE)) == []


def test_recipe_and_evaluation_are_out_of_reach():
    assert too_near(SOURCE) == []


def test_nothing_else_lies_at_the_root():
    assert strangers(SOURCE) == []


def test_no_file_is_long():
    assert too_long(SOURCE) == []


def test_comments_stand_where_a_reader_needs_them():
    assert comment_share(SOURCE) >= LEAST_COMMENTS


def test_what_runs_elsewhere_imports_what_there_is():
    """Benchmarks, scripts and tests of GPUs are not run here, and would break unseen when something moves."""
    folders = ["benchmarks", "scripts", "tests/gpu", "tests/vllm_plugin"]
    scripts = [script for folder in folders for script in sorted((ROOT / folder).rglob("*.py"))]
    assert [name for script in scripts for name in missing_names(script, SOURCE)] == []


@pytest.mark.parametrize(
    ("does", "without"),
    [
        # A mistake in a recipe is told at once, and `gendistill --help` does not wait for torch.
        (
            f"from gendistill.recipe.loading import load_recipe\nfor path in {RECIPES}: load_recipe(path)",
            ["torch", "transformers"],
        ),
        ("import gendistill.cli", ["torch", "transformers", "pydantic"]),
    ],
)
def test_what_is_light_stays_light(does, without):
    report = f"import sys\nprint(*(name for name in {without} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{does}\n{report}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


FAULTS = {
    "an arrow up, inside a function": (
        {"ops/decay.py": "def decay():\n    from gendistill.distill import engine\n", "distill/engine.py": ""},
        upward,
        ["ops.decay -> distill.engine"],
    ),
    "an arrow up, for types": (
        {
            "data/sources.py": "import typing\nif typing.TYPE_CHECKING:\n    import gendistill.recipe.stage\n",
            "recipe/stage.py": "",
        },
        upward,
        ["data.sources -> recipe.stage"],
    ),
    "a module that is gone": (
        {"ops/decay.py": "from gendistill.pipeline import Run\n"},
        upward,
        ["ops.decay -> pipeline (no such module)"],
    ),
    "a circle in a room": (
        {
            "evaluate/items.py": "from gendistill.evaluate.records import Record\n",
            "evaluate/records.py": "def load():\n    from gendistill.evaluate import items\n",
        },
        lambda root: circles(imports(root)),
        ["evaluate.items <-> evaluate.records"],
    ),
    "a circle of rooms": (
        {
            "plan/price.py": "from gendistill.report.tables import table\n",
            "report/tables.py": "",
            "report/summary.py": "from gendistill.plan.refusal import refusal\n",
            "plan/refusal.py": "",
        },
        lambda root: circles(between_rooms(root)),
        ["plan <-> report"],
    ),
    "the recipe in reach of the models": (
        {
            "models/loading.py": "from gendistill.names import MIXERS\n",
            "names.py": "from gendistill.recipe.fields import Names\n",
            "recipe/fields.py": "",
        },
        too_near,
        ["models.loading -> recipe.fields"],
    ),
    "evaluation in reach of inference": (
        {"inference/generation.py": "import gendistill.evaluate.parsing\n", "evaluate/parsing.py": ""},
        too_near,
        ["inference.generation -> evaluate.parsing"],
    ),
    "a stranger": (
        {"pipeline.py": "", "errors.py": "", "extras/__init__.py": ""},
        strangers,
        ["extras", "pipeline.py"],
    ),
    "a long file": ({"plan/price.py": "\n" * 401}, too_long, ["plan/price.py: 401 lines"]),
    "few comments": ({"names.py": "A = 1  # one\n\n\n'# none'\n"}, comment_share, 1 / 4),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault, tmp_path):
    files, find, expected = FAULTS[fault]
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert find(tmp_path) == expected
