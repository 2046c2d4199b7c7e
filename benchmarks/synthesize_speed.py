"""How many tokens a second a real teacher writes, and what the checks leave of them; needs a CUDA device.

    python benchmarks/synthesize_speed.py RECIPE --out results/gpu/synthesize.json [--sample FILE --records 5000]
    python benchmarks/synthesize_speed.py RECIPE --out results/gpu/synthesize.json --record    # into figures.json

Writes all sets of the recipe's synthesis section as `gendistill synthesize` does. Tokens are those of replies, ends
included; seconds run from the first prompt to the last reply, compiling and all. The sample is the first records of
every set in equal parts.
"""

import argparse
import json
import tempfile
from itertools import islice
from pathlib import Path

from figures import gpu_machine, record_from_gpu, synthesize_figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", type=Path, required=True, help="file for the results")
    parser.add_argument("--sample", type=Path, help="file for a sample of the records")
    parser.add_argument("--records", type=int, default=5000, help="in the sample")
    parser.add_argument("--record", action="store_true", help="put the results in --out into results/figures.json")
    arguments = parser.parse_args()
    if arguments.record:
        return record_from_gpu(arguments.out, synthesize_figures, "python benchmarks/synthesize_speed.py")

    from rich.console import Console

    from gendistill.pipeline import Run
    from gendistill.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    results = {"machine": gpu_machine(), "sets": {}}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, Path(folder) / "run", Console(stderr=True), trains=())
        sample = []
        for name in recipe.synthesis:
            results["sets"][name] = run.synthesize(name)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
            with open(run.folder.synthesis(name) / "records.jsonl") as lines:
                sample += islice(lines, arguments.records // len(recipe.synthesis))
    if arguments.sample:
        arguments.sample.write_text("".join(sample))


if __name__ == "__main__":
    main()
