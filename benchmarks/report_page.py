"""Size of report pages, recorded in results/figures.json.

    python benchmarks/report_page.py RUN|ABLATION [RUN|ABLATION ...]

Writes a page of each folder, which stay as they are but for report/ in them, and keeps its bytes, those of the files
beside it, and the seconds it took in results/cpu/report_page.json. The figure is the largest page's.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from figures import report_page_figures
from ledger import ROOT, record, takes_no_arguments

RAW = ROOT / "results/cpu/report_page.json"


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    RAW.write_text(json.dumps({"pages": list(map(measured, map(Path, sys.argv[1:])))}, indent=1) + "\n")
    record(report_page_figures(RAW.parent), "python benchmarks/report_page.py RUN ABLATION")
    print(RAW.read_text())


def measured(folder: Path) -> dict:
    """The page of a folder, by the command line as a user calls it."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gendistill.cli", "report", folder], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    page = folder / "report/report.html"
    beside = sum(path.stat().st_size for path in page.parent.rglob("*") if path.is_file()) - page.stat().st_size
    models = json.loads((page.parent / "tables/accuracy.json").read_text())["rows"]
    return {
        "of": folder.name,
        "models": len({row["model"] for row in models}),
        "bytes": page.stat().st_size,
        "bytes_beside": beside,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main()
