"""Measures which launch settings of fla's kernels are fastest here, and writes them where gendistill looks for them.

    python scripts/tune_kernels.py --head-size 128 --dtype bfloat16 --out FOLDER

Autotuning tries dozens of settings a kernel and compiles each: minutes on a cold machine. fla reads stored choices, one
JSON file a kernel, from FLA_CONFIG_DIR. Runs of this script add to the files that are there, so several may share --out.
"""

import argparse
import fcntl
import gc
import json
import time
from pathlib import Path

import torch


def run_kernels(head_size: int, dtype: torch.dtype) -> None:
    """Every way the student calls the kernels: plain and packed training, prefill with a state, one step."""
    from gendistill.ops import Documents
    from gendistill.ops.kernels import kernel_gated_delta_rule

    def inputs(batch: int, length: int):
        shape = (batch, length, 8, head_size)
        q, k, v = (torch.randn(shape, device="cuda", dtype=dtype).requires_grad_() for _ in range(3))
        g = -torch.rand(shape, device="cuda").requires_grad_()
        return q, k, v, g, torch.rand(shape[:3], device="cuda").requires_grad_()

    positions = torch.arange(1024, device="cuda").remainder(300).repeat(4, 1)
    for documents in (None, Documents.from_position_ids(positions)):
        began = time.time()
        o, _ = kernel_gated_delta_rule(*inputs(4, 1024), documents=documents)
        o.float().square().sum().backward()
        torch.cuda.synchronize()
        print(f"head size {head_size}, {dtype}, packed {documents is not None}: {time.time() - began:.1f} s", flush=True)
    began = time.time()
    with torch.no_grad():
        _, state = kernel_gated_delta_rule(*inputs(4, 512))
        kernel_gated_delta_rule(*inputs(4, 512), state)
        kernel_gated_delta_rule(*inputs(4, 1), state)
    torch.cuda.synchronize()
    print(f"head size {head_size}, {dtype}, prefill and step: {time.time() - began:.1f} s", flush=True)


def store_choices(folder: Path) -> int:
    """Adds what the autotuners of this process chose to folder/KERNEL.json; returns the number of choices."""
    from fla.ops.utils.cache import AutotuneKey, CachedAutotuner

    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for tuner in (thing for thing in gc.get_objects() if isinstance(thing, CachedAutotuner)):
        if not tuner.cache:
            continue
        path = folder / f"{tuner.kernel_name}.json"
        with open(path, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            data = json.loads(text) if text else {"kernel_name": tuner.kernel_name, "autotune_entries": {}}
            for key, config in tuner.cache.items():
                chosen = {"kwargs": config.kwargs}
                chosen |= {name: getattr(config, name) for name in ("num_warps", "num_stages", "num_ctas", "maxnreg")}
                data["autotune_entries"][AutotuneKey.key_hash(key)] = {"autotune_key": list(key), "config": chosen}
                count += 1
            file.truncate(0)
            file.write(json.dumps(data, indent=1, sort_keys=True) + "\n")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-size", type=int, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run_kernels(arguments.head_size, getattr(torch, arguments.dtype))
    print(f"{store_choices(arguments.out)} choices in {arguments.out}")


if __name__ == "__main__":
    main()
