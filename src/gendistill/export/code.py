"""The student's code as flat files with relative imports, made from the library's own source.

transformers copies from a model's folder the file that `auto_map` names and, over and over, what is imported as
`from .FILE import`. It finds those with a regular expression, in one folder, and before that asks for every other
package that is imported outside of a `try`. So each module becomes one file beside the others, its imports rewritten.
"""

import ast
import sys
from importlib import resources

from gendistill import __version__

PACKAGE = "gendistill"
ENTRY = f"{PACKAGE}.models.standalone"
# What comes with transformers, and Python's own; anything else may be missing where the folder is loaded.
ALWAYS_THERE = {"torch", "transformers", "huggingface_hub", "packaging", "safetensors", *sys.stdlib_module_names}


def standalone_code() -> dict[str, str]:
    """Text by file name: the entry, and every module of the package that it needs."""
    files: dict[str, str] = {}
    ahead = [ENTRY]  # modules whose imports are still to be followed
    while ahead:
        module = ahead.pop()
        if file_name(module) not in files:
            files[file_name(module)], imported = flattened(module, source_of(module))
            ahead += imported
    return dict(sorted(files.items()))


def flat_name(module: str) -> str:
    """'gendistill.ops.decay' -> 'gendistill_ops_decay', a module beside all others."""
    return module.replace(".", "_")


def file_name(module: str) -> str:
    return f"{flat_name(module)}.py"


def source_of(module: str) -> str:
    """The text of a module of the package, or of a package's `__init__`."""
    path = resources.files(PACKAGE).joinpath(*module.split(".")[1:])
    # A package's names are in its `__init__`, which becomes a module like any other.
    path = path / "__init__.py" if path.is_dir() else path.parent / f"{path.name}.py"
    return path.read_text(encoding="utf-8")


def flattened(module: str, source: str) -> tuple[str, list[str]]:
    """A module's text with its imports rewritten, line by line as it was otherwise; and the modules of the package
    that it imports.

    Raises:
        ValueError: it imports a module as a name (`import gendistill.ops`, `from gendistill import ops`), of which
            transformers would not copy the file.
    """
    lines, imported = source.splitlines(), []
    tree = ast.parse(source)
    # A `try` of the library's own is passed over by transformers already.
    tried = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    # From the end on, so that lines put in do not move those to come.
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: -node.lineno):
        names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        packages = {name.split(".")[0] for name in names}
        if PACKAGE in packages:
            if isinstance(node, ast.Import) or node.module == PACKAGE:
                raise ValueError(f"{module}, line {node.lineno}: import names from a module, for the export's sake")
            # In its first line, which has the name even where the names imported go on below.
            old, new = f"from {node.module} import", f"from .{flat_name(node.module)} import"
            lines[node.lineno - 1] = lines[node.lineno - 1].replace(old, new)
            imported.append(node.module)
        elif packages - ALWAYS_THERE and id(node) not in tried:
            lines[node.lineno - 1 : node.end_lineno] = _within_try(lines[node.lineno - 1 : node.end_lineno])
    head = f"# {module} of gendistill {__version__} (Apache-2.0), made by `gendistill export`."
    return "\n".join([head, *lines]) + "\n", imported


def _within_try(lines: list[str]) -> list[str]:
    """A statement that fails as before, and that transformers does not take for a package all must have."""
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return [f"{indent}try:", *(f"    {line}" for line in lines), f"{indent}except ImportError:", f"{indent}    raise"]
