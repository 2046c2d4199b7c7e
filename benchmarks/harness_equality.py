"""Our ranking against lm-evaluation-harness on the same items and prompts, item by item; needs the extra `harness`.

    python benchmarks/harness_equality.py --model NAME=FOLDER ... --task NAME=FILE ... --out FILE

Every model ranks the items of every task by letter and by the options' texts, in float32: here, and in lm_eval (its
HFLM, fed by `write_harness_task`). lm_eval moves the white space at a prompt's end to each candidate; what the white
space adds to a score, by lm_eval itself, is taken off again. The output holds ids, scores and predictions, no text.
"""

import argparse
import datetime
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

TASK = dict(kind="multiple_choice", max_new_tokens=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="NAME=FOLDER of a Hugging Face model")
    parser.add_argument("--task", action="append", required=True, help="NAME=FILE of question, choices and answer")
    parser.add_argument("--items", type=int, default=200, help="of each task, drawn by seed 0")
    parser.add_argument("--text-items", type=int, default=200, help="of those, ranked by text too; 0 for none")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    from torch import float32

    from gendistill.evaluate.items import load_items
    from gendistill.evaluate.ranking import render_prompts
    from gendistill.models.loading import load_model, load_tokenizer
    from gendistill.recipe.evaluation import make_task

    versions = {package: version(package) for package in ("torch", "transformers", "lm_eval")}
    machine = {
        "device": arguments.device,
        "processor": platform.machine(),
        "versions": versions,
        "measured": datetime.date.today().isoformat(),
    }
    results = {"machine": machine, "comparisons": []}
    for name, folder in (each.split("=", 1) for each in arguments.model):
        model = load_model(folder, float32, arguments.device)
        tokenizer = load_tokenizer(folder, model.config.vocab_size)
        for task, path in (each.split("=", 1) for each in arguments.task):
            items = load_items(task, make_task(path=path, items=arguments.items, **TASK), seed=0)
            for form, count in (("letter", arguments.items), ("text", arguments.text_items)):
                about = {"model": name, "task": task, "form": form, "items": count}
                if count == 0:
                    continue
                asked = items[:count]
                prompts = render_prompts(tokenizer, asked)
                records = compare(model, tokenizer, asked, prompts, form, arguments.batch_size)
                results["comparisons"].append(about | summary(records) | {"records": records})
                arguments.out.write_text(to_json(results))
                print(about | summary(records), flush=True)


def compare(model, tokenizer, items, prompts, form: str, batch_size: int) -> list[dict]:
    """A record an item: gold, and for both sides the scores, the predicted candidate and the verdict."""
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from gendistill.evaluate.harness import write_harness_task
    from gendistill.evaluate.ranking import candidate_ids, rank

    ours = rank(model, items, prompts, candidate_ids(tokenizer, items, texts=form == "text"), batch_size)
    # The prompts hold all their control tokens, so the tokenizer is to add none.
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False)
    with tempfile.TemporaryDirectory() as folder:
        task = write_harness_task("compared", items, prompts, tokenizer, folder, texts=form == "text")
        found = lm_eval.evaluate(lm, TaskManager(include_defaults=False).load([str(task)]), bootstrap_iters=0)
    samples = sorted(found["samples"]["compared"], key=lambda sample: sample["doc_id"])
    ends = [split_end(sample["doc"]["prompt"]) for sample in samples]
    requests = [Instance("loglikelihood", {}, end, 0) for end in ends if end[1]]
    values = iter(lm.loglikelihood(requests, disable_tqdm=True) if requests else [])
    white = [next(values)[0] if end[1] else 0.0 for end in ends]

    records = []
    for item, ranking, sample, moved in zip(items, ours, samples, white, strict=True):
        assert sample["doc"]["id"] == item.id
        theirs = [response[0] for response in sample["filtered_resps"]]
        mine = ranking.text_scores if form == "text" else ranking.scores
        record = {"id": item.id, "gold": list(item.gold)}
        prediction = ranking.by["text"] if form == "text" else ranking.prediction
        record["ours"] = {"scores": list(mine), "prediction": prediction, "correct": prediction in item.gold}
        record["lm_eval"] = {"scores": [score - moved for score in theirs], "prediction": int(np.argmax(theirs))}
        record["lm_eval"]["correct"] = bool(sample["acc"])
        records.append(record)
    return records


def split_end(prompt: str) -> tuple[str, str]:
    """The prompt, and the white space at its end that lm_eval moves to the candidates."""
    kept = prompt.rstrip()
    return kept, prompt[len(kept) :]


def summary(records: list[dict]) -> dict:
    """Accuracies of both sides, items they disagree on, and the largest difference of a score, in nats."""
    sides = {side: [record[side] for record in records] for side in ("ours", "lm_eval")}
    gaps = [np.subtract(a["scores"], b["scores"]) for a, b in zip(sides["ours"], sides["lm_eval"], strict=True)]
    return {
        **{f"{side}_accuracy": float(np.mean([one["correct"] for one in each])) for side, each in sides.items()},
        "items_that_differ": sum(
            a["prediction"] != b["prediction"] or a["correct"] != b["correct"]
            for a, b in zip(sides["ours"], sides["lm_eval"], strict=True)
        ),
        "largest_score_difference": float(max(np.abs(gap).max() for gap in gaps)),
    }


def to_json(results: dict) -> str:
    """Readable, with a line a record."""
    lines = []
    for comparison in results["comparisons"]:
        about = json.dumps({key: value for key, value in comparison.items() if key != "records"})
        records = ",\n  ".join(json.dumps(rounded(record)) for record in comparison["records"])
        lines.append(f'{about[:-1]}, "records": [\n  {records}\n ]}}')
    comparisons = ",\n ".join(lines)
    return f'{{"machine": {json.dumps(results["machine"])},\n"comparisons": [\n {comparisons}\n]}}\n'


def rounded(value):
    """The same with numbers to six digits behind the point."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
