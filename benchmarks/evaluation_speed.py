"""How fast models are evaluated, and how fast lm-evaluation-harness does the same on this machine; for a CUDA device.

    python benchmarks/evaluation_speed.py MODEL DATA --out results/gpu/evaluation_speed.json [--only PART ...]
    python benchmarks/evaluation_speed.py MODEL DATA --out results/gpu/evaluation_speed.json --record   # figures.json
    python benchmarks/evaluation_speed.py MODEL DATA --out results/gpu/gsm8k_speed.json --only ask_gsm8k [--record]

DATA holds arc_easy/, gsm8k/ and humaneval/ with test.jsonl.gz and, but for the last, train.jsonl.gz. Parts:

- ask_*: seconds of `evaluate_model` from the loaded model to the scores, records written: both protocols, all items.
- rank_*, generate_*: our `rank` and `generate` against HFLM's `loglikelihood` and `generate_until`, in turns, on the
  same items, prompts and batch size, after a batch to warm up. Both are given the prompts as text, template and all.
  "same" is the share of items on which the two agree; lm_eval takes log-softmax in bfloat16, which makes ties.

Each part's results are written at once, beside those of parts that are there; one that fails is reported and left.
"""

import argparse
import gc
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ledger import gpu_machine, record_from_gpu
from speed_figures import evaluation_speed_figures, gsm8k_speed_figures

BATCH_SIZE = 64
FIGURES = {"evaluation_speed.json": evaluation_speed_figures, "gsm8k_speed.json": gsm8k_speed_figures}  # by results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a Hugging Face model")
    parser.add_argument("data", type=Path, help="folder of question sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--turns", type=int, default=2, help="measurements of each side, where two are compared")
    parser.add_argument("--items", type=int, help="items of each part, for a rehearsal")
    parser.add_argument("--tokens", type=int, help="most tokens of a reply, for a rehearsal")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--record", action="store_true", help="put the results in --out into results/figures.json")
    arguments = parser.parse_args()
    if arguments.record and arguments.out.name not in FIGURES:
        parser.error(f"--record: there are no figures of {arguments.out.name}; there are of {', '.join(FIGURES)}")
    if arguments.record:
        return record_from_gpu(arguments.out, FIGURES[arguments.out.name], "python benchmarks/evaluation_speed.py")

    import torch

    from gendistill.models.loading import load_model, load_tokenizer

    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    model = load_model(arguments.model, dtype, arguments.device)
    tokenizer = load_tokenizer(arguments.model, model.config.vocab_size)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if arguments.device == "cuda":
        beside_lm_eval = any(not name.startswith("ask_") for name in arguments.only)
        results["machine"] = gpu_machine(*(["lm_eval"] if beside_lm_eval else []))
    results["model"] = getattr(model.config, "_model_name_or_path", None) or Path(arguments.model).name
    for name in arguments.only:
        began = time.perf_counter()
        gc.collect()
        torch.cuda.empty_cache()  # a part finds no room that another has cut up
        try:
            results[name] = PARTS[name](Bench(model, tokenizer, arguments))
        except Exception:  # whatever went wrong, the other parts are worth having
            print(f"{name} failed:\n{traceback.format_exc()}", flush=True)
            continue
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name} ({time.perf_counter() - began:.0f} s): {json.dumps(results[name])}", flush=True)


class Bench:
    """The model with its tokenizer, and the settings all parts share."""

    def __init__(self, model, tokenizer, arguments):
        self.model, self.tokenizer, self.arguments = model, tokenizer, arguments

    def settings(self, name: str, items: int | None = None, **others) -> dict:
        """A task as a recipe has it, on the local files."""
        folder = self.arguments.data / name
        settings = {"task": name, "path": str(folder / "test.jsonl.gz")} | others
        if name != "humaneval":
            settings["shots_path"] = str(folder / "train.jsonl.gz")
        limits = {"items": self.arguments.items or items, "max_new_tokens": self.arguments.tokens}
        return settings | {key: value for key, value in limits.items() if value is not None}

    def load(self, name: str, **others):
        """The task and its items."""
        from gendistill.evaluate.items import load_items
        from gendistill.recipe.evaluation import make_task

        task = make_task(**self.settings(name, **others))
        return task, load_items(name, task, 0, self.tokenizer)

    def lm(self):
        """lm_eval's model around ours; prompts hold all their control tokens, so the tokenizer is to add none."""
        from lm_eval.models.huggingface import HFLM

        return HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=BATCH_SIZE, add_bos_token=False)

    def seconds(self, action: Callable[[], object]) -> tuple[float, object]:
        """Of one call, and what it returned."""
        import torch

        wait = torch.cuda.synchronize if self.arguments.device == "cuda" else lambda: None
        wait()
        began = time.perf_counter()
        returned = action()
        wait()
        return time.perf_counter() - began, returned

    def in_turns(self, ours: Callable[[int | None], list], theirs: Callable[[int | None], list]) -> dict:
        """Seconds of both sides, a batch of each first to warm up; and the share of items they agree on."""
        sides = {"ours": ours, "lm_eval": theirs}
        found: dict = {"batch_size": BATCH_SIZE, "ours": [], "lm_eval": []}
        for side in sides.values():
            side(BATCH_SIZE)
        for turn in range(self.arguments.turns):
            answers = {}
            for side in sorted(sides, reverse=turn % 2 == 0):
                seconds, answers[side] = self.seconds(partial(sides[side], None))
                found[side].append(seconds)
        agree = [a == b for a, b in zip(answers["ours"], answers["lm_eval"], strict=True)]
        return found | {"items": len(agree), "same": sum(agree) / len(agree)}


def ask(name: str, turns: int, bench: Bench) -> dict:
    """Seconds from the loaded model to the scores, by `evaluate_model`."""
    from gendistill.evaluate.run import evaluate_model
    from gendistill.recipe.evaluation import Evaluation

    evaluation = Evaluation.model_validate({"tasks": {name: bench.settings(name)}})
    task, found = evaluation.tasks[name], {"seconds": []}
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            asked = partial(evaluate_model, bench.model, bench.tokenizer, evaluation, seed=0, folder=Path(folder))
            seconds, scores = bench.seconds(partial(asked, label="model", progress=False))
        found["seconds"].append(seconds)
    return found | {
        "shots": task.shots,
        "max_new_tokens": task.max_new_tokens,
        "score": scores.to_dict()["tasks"][name],
    }


def ranking(shots: int, bench: Bench) -> dict:
    """ARC-Easy by letter."""
    from lm_eval.api.instance import Instance

    from gendistill.evaluate.ranking import candidate_ids, rank

    _, items = bench.load("arc_easy", shots=shots)
    lm, texts = bench.lm(), prompt_texts(bench.tokenizer, items)

    def ours(count: int | None) -> list[int]:
        prompts = bench.tokenizer(texts[:count], add_special_tokens=False)["input_ids"]
        candidates = candidate_ids(bench.tokenizer, items[:count])
        return [each.prediction for each in rank(bench.model, items[:count], prompts, candidates, BATCH_SIZE)]

    def theirs(count: int | None) -> list[int]:
        requests = [
            Instance("loglikelihood", {}, (text, candidate), place)
            for text, item in zip(texts[:count], items, strict=False)
            for place, candidate in enumerate(item.candidates)
        ]
        values = iter(lm.loglikelihood(requests, disable_tqdm=True))
        scores = [[next(values)[0] for _ in item.candidates] for item in items[:count]]
        return [each.index(max(each)) for each in scores]

    return bench.in_turns(ours, theirs) | {"shots": shots}


def generation(name: str, items: int, bench: Bench) -> dict:
    """Greedy replies; a reply ends with the model's end of sequence."""
    from lm_eval.api.instance import Instance

    from gendistill.inference.generation import generate

    task, asked = bench.load(name, items=items)
    lm, texts = bench.lm(), prompt_texts(bench.tokenizer, asked)
    lengths = []

    def ours(count: int | None) -> list[str]:
        prompts = bench.tokenizer(texts[:count], add_special_tokens=False)["input_ids"]
        replies = generate(bench.model, bench.tokenizer, prompts, task.max_new_tokens, BATCH_SIZE)
        lengths[:] = [reply.tokens for reply in replies]
        return [reply.text for reply in replies]

    def theirs(count: int | None) -> list[str]:
        settings = {"until": [], "do_sample": False, "max_gen_toks": task.max_new_tokens}
        requests = [Instance("generate_until", {}, (text, dict(settings)), 0) for text in texts[:count]]
        return [reply.strip() for reply in lm.generate_until(requests, disable_tqdm=True)]

    found = bench.in_turns(ours, theirs)
    about = {
        "shots": task.shots,
        "max_new_tokens": task.max_new_tokens,
        "tokens": sum(lengths),
        "longest": max(lengths),
    }
    return found | about


def prompt_texts(tokenizer, items) -> list[str]:
    """Each item's prompt as lm_eval wants it, template and all."""
    from gendistill.evaluate.ranking import render_prompts

    return tokenizer.batch_decode(render_prompts(tokenizer, items), skip_special_tokens=False)


PARTS: dict[str, Callable[[Bench], dict]] = {
    "ask_arc_easy": partial(ask, "arc_easy", 2),
    "ask_humaneval": partial(ask, "humaneval", 2),
    "rank_arc_easy_0_shots": partial(ranking, 0),
    "rank_arc_easy_5_shots": partial(ranking, 5),
    "generate_arc_easy": partial(generation, "arc_easy", 1024),
    "generate_gsm8k": partial(generation, "gsm8k", 256),
    "ask_gsm8k": partial(ask, "gsm8k", 2),
}


if __name__ == "__main__":
    main()
