"""What is published: the source distribution has what it must and nothing else, and a wheel built from it runs."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from gendistill import __version__

ROOT = Path(__file__).resolve().parents[1]
NAME = f"gendistill-{__version__}"
# Folders and files at its root; PKG-INFO is written by the build.
FOLDERS = {"src", "recipes", "docs", "scripts", "tests", "benchmarks", "results"}
FILES = "AGENTS.md ARCHITECTURE.md CHANGELOG.md LICENSE Makefile README.md constraints.txt mkdocs.yml pyproject.toml"
STRAY = (".pyc", ".pyo", ".so", ".log", ".orig", "~", ".partial", ".npy")
FIRST_RUN = """
import gendistill, os, sys
from gendistill.recipe.loading import load_recipe
from gendistill.embedded import teacher_folder
assert gendistill.__file__.startswith(sys.argv[1]), gendistill.__file__
assert load_recipe("demo", ["data.text=[{path: own.txt}]"]).data["text"][0].path == os.path.join(os.getcwd(), "own.txt")
assert str(teacher_folder()).startswith(sys.argv[1]) and list(teacher_folder().glob("*.safetensors"))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the source distribution of this tree, and the wheel that is built from that."""
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_source_distribution_has_what_it_must_and_no_more(built):
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = [member.name.removeprefix(f"{NAME}/") for member in archive.getmembers() if member.isfile()]
    at_root = {name for name in names if "/" not in name}
    assert at_root == {*FILES.split(), "PKG-INFO", ".gitignore"}
    assert {name.split("/")[0] for name in names} - at_root == FOLDERS
    assert [name for name in names if name.endswith(STRAY) or "__pycache__" in name] == []
    # What no file of Python is: a package can lack them and still import.
    for path in (ROOT / "src").rglob("*.*"):
        if path.suffix in (".yaml", ".json", ".safetensors", ".jinja", ".md"):
            assert path.relative_to(ROOT).as_posix() in names, path


def test_the_wheel_holds_the_package_and_the_recipes(built):
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
        recipes = {Path(name).name: wheel.read(name) for name in names if name.startswith("gendistill/recipes/")}
    assert {name.split("/")[0] for name in names} == {"gendistill", f"{NAME}.dist-info"}
    assert recipes == {path.name: path.read_bytes() for path in (ROOT / "recipes").glob("*.yaml")}
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/gendistill").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_wheel_alone_knows_the_demo(built, tmp_path):
    """From an empty folder, with nothing of this tree on the path."""
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        wheel.extractall(installed)
    empty.mkdir()
    # In front of everything else, an editable installation of this tree among it.
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-c", FIRST_RUN, str(installed)]
    done = subprocess.run(
        words, cwd=empty, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_changelog_has_this_version():
    """Under the heading that a release is announced by."""
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("tag", "code"), [(f"v{__version__}", 0), (__version__, 1), ("v99.0.0", 1)])
def test_a_tag_of_another_version_is_not_published(tag, code):
    """The workflow's own check, run here."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))["jobs"]
    check = next(step["run"] for step in jobs["build"]["steps"] if step.get("name") == "The tag names the version")
    done = subprocess.run(["bash", "-e", "-c", check], cwd=ROOT, env=os.environ | {"GITHUB_REF_NAME": tag}, check=False)
    assert done.returncode == code


def test_the_workflow_uses_no_secret_and_what_contributors_type():
    """Trusted publishing: the registry believes the workflow's identity, which only the last job may prove."""
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert "secrets." not in text and workflow["permissions"] == {}
    assert {name for name, job in workflow["jobs"].items() if "id-token" in job["permissions"]} == {"publish"}
    assert workflow["jobs"]["publish"]["needs"] == "build"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for job in workflow["jobs"].values():
        for target in [step["run"].split()[1] for step in job["steps"] if step.get("run", "").startswith("make ")]:
            assert f"\n{target}:" in makefile, target
