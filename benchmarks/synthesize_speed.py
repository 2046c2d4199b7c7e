"""How many tokens a second a real teacher writes, and what the checks leave of them; needs a CUDA device.

    python benchmarks/synthesize_speed.py RECIPE --out results/gpu/synthesize.json [--sample FILE.jsonl.gz]
    python benchmarks/synthesize_speed.py RECIPE --out results/gpu/synthesize.json --record    # into figures.json

Writes all sets of the recipe's synthesis section as `gendistill synthesize` does. Tokens are those of replies, ends
included; seconds run from the first prompt to the last reply, loading of kernels and all. The sample holds records with
short prompts, as many of each set as there are up to an equal share, without the fields that say a thing twice.
"""

import argparse
import gzip
import json
import tempfile
from pathlib import Path

from ledger import gpu_machine, record_from_gpu
from speed_figures import synthesize_figures

SHORT = 700  # characters of a sample's prompt


def sample(folders: list[Path], count: int) -> list[str]:
    """Lines of `count` records, the sets with the fewest giving all they have."""
    pools = []
    for folder in folders:
        records = map(json.loads, (folder / "records.jsonl").open(encoding="utf-8"))
        pools.append([record for record in records if len(record["prompt"]) <= SHORT])
    chosen = []
    for left, pool in zip(range(len(pools), 0, -1), sorted(pools, key=len), strict=True):
        chosen += pool[: (count - len(chosen)) // left]
    for record in chosen:
        del record["messages"], record["teacher"]
    return [json.dumps(record, ensure_ascii=False) + "\n" for record in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", type=Path, required=True, help="file for the results")
    parser.add_argument("--sample", type=Path, help="file for a sample of the records")
    parser.add_argument("--replies", type=Path, help="folder for all replies as they came")
    parser.add_argument("--records", type=int, default=5000, help="in the sample")
    parser.add_argument("--record", action="store_true", help="put the results in --out into results/figures.json")
    arguments = parser.parse_args()
    if arguments.record:
        return record_from_gpu(arguments.out, synthesize_figures, "python benchmarks/synthesize_speed.py")

    from rich.console import Console

    from gendistill.errors import UserError
    from gendistill.recipe.loading import load_recipe
    from gendistill.run.run import Run
    from gendistill.run.synthesize import synthesize_set

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    results = {"machine": gpu_machine(), "sets": {}}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, Path(folder) / "run", Console(stderr=True), trains=())
        folders = []
        for name in recipe.synthesis:
            try:
                results["sets"][name] = synthesize_set(run, name)
            except UserError as error:  # not one reply passed
                print(f"{name}: {error}")
                continue
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
            folders.append(run.folder.synthesis(name))
            if arguments.replies:  # to look at
                with gzip.open(arguments.replies / f"{name}.replies.jsonl.gz", "wt", encoding="utf-8") as file:
                    file.write((folders[-1] / "replies.jsonl").read_text(encoding="utf-8"))
        if arguments.sample:
            with gzip.open(arguments.sample, "wt", encoding="utf-8") as file:
                file.writelines(sample(folders, arguments.records))


if __name__ == "__main__":
    main()
