import subprocess
import sys


def test_analysis_imports_no_torch_and_nothing_that_does():
    """Scores of a run are read on a laptop, where torch may be missing and a second counts."""
    script = """
import pkgutil, sys, importlib
import gendistill.analysis
for module in pkgutil.iter_modules(gendistill.analysis.__path__):
    importlib.import_module(f"gendistill.analysis.{module.name}")
heavy = {"torch", "transformers", "pydantic", "datasets", "matplotlib"} & set(sys.modules)
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("gendistill.")}
print(sorted(heavy), sorted(rooms - {"analysis", "names", "errors", "files"}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "[] []\n", done.stdout + done.stderr
