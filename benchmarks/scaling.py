"""What a second GPU, and a fourth and an eighth, give: torchrun is started for each number of processes in turn.

    python benchmarks/scaling.py --out results/gpu/scaling_two_gpus.json           # on 1, 2, 4, ... as there are GPUs
    python benchmarks/scaling.py --out results/gpu/scaling_two_gpus.json --record  # into results/figures.json
    python benchmarks/scaling.py --out rehearsal.json --tiny --processes 1 2       # on CPUs, in a minute or two

    --data PREPARED    what benchmarks/real_teacher/prepare.py made

Pairs have random weights. Steps are of one size whatever the number of GPUs, so that a speed-up is that of a run:

kd, kd_1p5b     logit distillation of Qwen3-0.6B's and Qwen2.5-1.5B's shape, as replicas
align           alignment of the former's mixers
kd_16           kd in micro-batches of 16 sequences in place of 4, on one GPU
fsdp, fsdp_1p5b kd and kd_1p5b sharded by FSDP2, also on one GPU, in micro-batches of 16: without CUDA graphs the host
                gives out what a micro-batch of 4 needs more slowly than the GPU does it
zero2           kd with the student's layers gathered once a step, in micro-batches of 16
exchange        kd by one process that exchanges with itself: what the path of replicas costs where nothing is exchanged
fsdp_8b         of Llama-3.1-8B's shape; only if named by --only
evaluation      GSM8K (with --data; otherwise embedded problems, which are shorter) and 500 items of multiple choice, by
                both protocols
synthesis       16 batches of replies

Of a stage: tokens a second of each steady step, losses, MFU, memory at its peak beside plan's, and of the last two
steps the share of the time in NCCL's kernels, where a process waits for the others as well.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

from launching import environment, torchrun
from ledger import ROOT, changed, commit, gpu_machine, record
from scaling_worker import ASKED, PARTS, TRAINED
from speed_figures import scaling_figures


def start(out: Path, parts: list[str], processes: int, tiny: bool, data: Path | None) -> None:
    worker = [str(ROOT / "benchmarks/scaling_worker.py"), "--out", str(out), "--parts", *parts]
    worker += ["--tiny"] if tiny else []
    worker += ["--data", str(data)] if data is not None else []
    done = subprocess.run(torchrun(processes, *worker), env=environment(OMP_NUM_THREADS="1"))
    if done.returncode:
        raise SystemExit(f"{processes} processes: torchrun ended with {done.returncode}; what is done is in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file for results; those of other parts in it stay")
    parser.add_argument("--processes", type=int, nargs="+", help="numbers to try; 1, 2, 4, ... GPUs if left out")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=[*TRAINED, *ASKED])
    parser.add_argument("--data", type=Path, help="folder with GSM8K's files, to be asked")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on CPUs: a rehearsal")
    parser.add_argument("--record", action="store_true", help="put the results in --out into results/figures.json")
    arguments = parser.parse_args()
    if arguments.record:
        return record_each(arguments.out)
    results = without(json.loads(arguments.out.read_text()) if arguments.out.exists() else {}, arguments.only)
    if not arguments.tiny:
        results["machine"] = gpu_machine()
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    for processes in arguments.processes or _powers_of_two():
        start(arguments.out, arguments.only, processes, arguments.tiny, arguments.data)


def without(results: dict, parts: list[str]) -> dict:
    """Results of other parts alone: cut off, a run would leave one side of a ratio beside an older one's other."""
    return {
        number: {name: x for name, x in each.items() if name not in parts} if number.isdigit() else each
        for number, each in results.items()
    }


def record_each(path: Path) -> None:
    """Puts the figures into the ledger, each with the number of GPUs that it is of."""
    machine = json.loads(path.read_text())["machine"]
    versions = {"gendistill": commit()} | machine["versions"]
    for name, figure in changed(scaling_figures(path)).items():
        of_several = re.match(r"gpu(\d+)_", name)
        hardware = f"{of_several[1] if of_several else 1}x {machine['gpu']}"
        measured = figure.pop("measured", machine["measured"])  # a part has a day of its own
        elsewhere = {"hardware": hardware, "versions": versions, "measured": measured}
        record({name: figure}, "python benchmarks/scaling.py", **elsewhere)


def _powers_of_two() -> list[int]:
    import torch

    return [2**n for n in range(torch.cuda.device_count().bit_length()) if 2**n <= torch.cuda.device_count()]


if __name__ == "__main__":
    main()
