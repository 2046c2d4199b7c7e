"""YAML as settings are written in: nothing in it is passed over, and every mistake is one clear error."""

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from gendistill.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML in which a key may stand once, and `1e6` is a number."""

    def __init__(self, text: str):
        super().__init__(text)
        self._checked: set[int] = set()  # nodes, by identity: what an anchor shares is flattened more than once

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Before merge keys (`<<`) are put in, since what is merged may stand in the section as well, and loses.
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            # As read: 3, 0x3 and "3" are one layer. A merge key is read by `flatten_mapping` alone.
            merges = key.tag == "tag:yaml.org,2002:merge"
            name = key.value if merges else str(self.construct_object(key, deep=True))
            line = key.start_mark.line + 1
            if name in lines:
                raise _Twice(f"'{name}' stands twice, in lines {lines[name]} and {line}; keep one of them")
            lines[name] = line


class _Twice(Exception):
    """A key that stands twice: the second would win without a word."""


# YAML 1.1 wants a point and a sign in a number with an exponent; nobody writes `1.0e+6` in a recipe.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The settings of a file; `what` says in errors what the file is ("recipe").

    Raises:
        UserError: the file cannot be read, or is no UTF-8, no valid YAML or no mapping; or a key stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path}: byte {error.start} is not UTF-8; save it in that encoding") from None
    except OSError as error:
        raise UserError(f"{what} {path}: cannot be read ({error.strerror})") from None
    settings = parse_yaml(text, f"{what} {path}")
    if not isinstance(settings, dict):
        raise UserError(f"{what} {path}: a {what} is a mapping of settings, this is a {type(settings).__name__}")
    return settings


_SIGNATURE = re.compile(r"# sha256 of the lines above: ([0-9a-f]{64})\n$")


def signed(text: str) -> str:
    """YAML with its hash as a comment at its end, see `is_as_signed`."""
    return f"{text}# sha256 of the lines above: {_sha256(text)}\n"


def is_as_signed(path: Path) -> bool:
    """Whether a file of YAML is as `signed` wrote it; True where nothing is signed, as in what a person wrote."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = _SIGNATURE.search(text)
    return found is None or found[1] == _sha256(text[: found.start()])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a text; `origin` names it in errors."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except _Twice as error:
        raise UserError(f"{origin}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date like 2026-13-01
        raise UserError(f"{origin}: not valid YAML: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()
