"""Recipes that come with the package: the repository's folder recipes/, which a wheel carries inside the package."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel has them beside the modules (pyproject.toml, force-include); a checkout has the originals at its root. No copy
# of them lies in the tree, so that the two cannot differ.
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")


_ABLATIONS = "ablation"  # how the names of those begin that are ablations of a recipe


def shipped_recipes() -> dict[str, Path]:
    """Files of the shipped recipes by the names they are called by ("demo"); {} if the installation has lost them."""
    return {name: path for name, path in _shipped().items() if not name.startswith(_ABLATIONS)}


def shipped_ablations() -> dict[str, Path]:
    """The same of ablations."""
    return {name: path for name, path in _shipped().items() if name.startswith(_ABLATIONS)}


def _shipped() -> dict[str, Path]:
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder is not None else {}
