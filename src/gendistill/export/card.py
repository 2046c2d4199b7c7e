"""The model card of an exported student: what it is, how good, how it was made, and how to load it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from gendistill import __version__
from gendistill.analysis.scores import MEAN
from gendistill.analysis.tables import (
    PAIRED_HEADER,
    SIGNIFICANCE_HEADER,
    paired_cells,
    significance_cells,
    to_markdown,
)
from gendistill.export.origin import CONVERSION_REPORT, RECIPE, SCORES, Origin
from gendistill.models import GendistillConfig
from gendistill.names import MIXERS, look_up

TAGS = ["gendistill", "linear-attention", "distillation", "custom_code"]
NEEDS = "torch>=2.11, transformers>=5.17,<6"  # as in pyproject.toml


def model_card(origin: Origin, config: GendistillConfig, parameters: int) -> str:
    """README.md: metadata of the hub, then a section for each question that a reader has."""
    sections = [
        _metadata(origin),
        f"# A {'pure' if config.is_pure else 'hybrid'} student of {origin.teacher or 'an unnamed teacher'}",
        _about(origin, config, parameters),
        "## Load it",
        _LOADING,
        "## Results",
        *_results(origin),
        "## Known weaknesses",
        "\n".join(f"- {line}" for line in _weaknesses(origin, config)),
        "## How it was made",
        *_recipe(origin),
        "## Licence",
        _licence(origin),
        "## Cite",
        _CITATION,
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(origin: Origin) -> str:
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": TAGS}
    if origin.is_on_hub:  # the hub takes no names of folders
        fields["base_model"] = origin.teacher
    fields |= origin.licence.fields
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _about(origin: Origin, config: GendistillConfig, parameters: int) -> str:
    kept = config.layers_of_type("full_attention")
    listed = f" (layers {', '.join(map(str, kept))}, from 0)" if kept else ""
    lines = [
        f"Converted from {origin.teacher or 'its teacher'} and distilled with gendistill {__version__}. "
        f"{parameters:,} parameters in {config.num_hidden_layers} layers.",
        f"- {len(kept)} of them keep the teacher's softmax attention{listed}.",
    ]
    # In the order of their first layers; a window's own layers are a mixer like the others.
    for mixer, count in Counter(mixer for mixer in config.mixers if mixer is not None).items():
        label = look_up(MIXERS, mixer, "mixer").label
        if config.window is not None:
            seen = f"the last {config.window} tokens and the first {config.sinks}"
            label += f" over {seen}" if mixer == "window" else f" beside attention over {seen}"
        lines.append(f"- {count}: {label}.")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


_LOADING = f"""Where gendistill is not installed ({NEEDS}):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = "."  # this folder, or its name on the hub
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)  # reads config.json, too
```

The code is the `gendistill_*.py` here, in plain PyTorch; on CUDA it takes the kernels of flash-linear-attention where
they are installed (`pip install "fla-core>=0.6,<0.7"`), and is slow without them. Where gendistill is installed,
`import gendistill.models` first: then its own classes load the folder, and no code of it is run."""

_NOTE = (
    "In percent, on the same items as the teacher; retention = student / teacher, with 95 % intervals of a paired "
    "bootstrap over items; gap = retention by ranking minus by generation, in points; p by McNemar's exact test on the "
    f"replies. All figures are in `{SCORES}`."
)


def _results(origin: Origin) -> Iterator[str]:
    """Tables of the student's own scores, with intervals, and of the control."""
    paired = (origin.scores or {}).get("paired", {})
    label = _label(paired, origin.stage)
    if label is None:
        # Said, since a card without figures reads as if there were nothing to say.
        yield "This student was not evaluated, or its run folder was not at hand when it was exported."
        return
    yield to_markdown(PAIRED_HEADER, paired_cells(paired[label]))
    # Of a run's last student only: of every stage they would be many tests, some of them significant by chance.
    if label in origin.scores["significance"]:
        yield to_markdown(SIGNIFICANCE_HEADER, significance_cells(origin.scores["significance"][label]))
    yield _NOTE
    # The control that every run has: what training added to copying the teacher's weights.
    untrained = _label(paired, "conversion")
    if untrained is not None and untrained != label:
        rows = {"this student": label, "control: the same student, untrained": untrained}
        means = [next(row for row in paired[name] if row["task"] == MEAN) | {"task": who} for who, name in rows.items()]
        yield "Means over tasks, beside what conversion alone gives:"
        yield to_markdown(["model", *PAIRED_HEADER[1:]], paired_cells(means))


def _label(labels: Mapping[str, Any] | Sequence[str], stage: str | None) -> str | None:
    """ "4-instruction_distillation" of "instruction_distillation"."""
    return next((label for label in labels if label.partition("-")[2] == stage), None)


def _weaknesses(origin: Origin, config: GendistillConfig) -> Iterator[str]:
    """What the diagnostics of its replies found, then what follows from its architecture."""
    if origin.stage == "conversion":
        yield "It was converted and never trained: it is a control, and no model to use."
    # "No diagnosis" and "not diagnosed" are two things, and a card that mixes them up praises what nobody looked at.
    diagnosed = False
    for task, models in (origin.scores or {}).get("diagnostics", {}).items():
        label = _label(models, origin.stage)
        if label is None:
            continue
        diagnosed = True
        for found in models[label]["diagnoses"]:
            yield f"{task}: **{found['name']}.** {found['sentence']}"
    if not diagnosed:
        yield "Its replies were not diagnosed: what goes wrong in them is not known."
    fixed = len(config.layers_of_type("linear_attention"))
    yield (
        f"{fixed} of {config.num_hidden_layers} layers keep a state of fixed size instead of all keys and values, so "
        "recall of single facts from long texts is where such models fall behind their teachers first."
    )
    yield "Whatever the teacher gets wrong, and its biases, it was taught as well."


def _recipe(origin: Origin) -> Iterator[str]:
    if (report := origin.reports.get(CONVERSION_REPORT)) is not None:
        losses = "teacher {teacher_loss:.3f}, untrained student {student_loss:.3f}, uniform guess {uniform_loss:.3f}"
        yield f"Next-token loss at conversion, nats a token: {losses.format_map(report)} (`{CONVERSION_REPORT}`)."
    # A student that was moved out of its run folder.
    if origin.recipe is None:
        yield "The recipe was not at hand when it was exported."
        return
    cells = []
    for name in _stages_until(list(origin.recipe["stages"]), origin.stage):
        stage = origin.recipe["stages"][name]
        terms = _terms(stage["objective"])
        cells.append([name, terms, ", ".join(stage["train"]), stage["data"], f"{stage['tokens']:,}"])
    if cells:
        yield to_markdown(["stage", "objective", "trains", "data", "tokens"], cells)
    yield f"All settings and data sources: `{RECIPE}`, a recipe of gendistill."


def _stages_until(stages: list[str], last: str | None) -> list[str]:
    """The stages that this student has gone through; none, where its own is not among them."""
    return stages[: stages.index(last) + 1] if last in stages else []


def _terms(objective: str | Mapping[str, float]) -> str:
    if isinstance(objective, str):
        return objective
    return " + ".join(f"{weight:g} {term}" for term, weight in objective.items())


def _licence(origin: Origin) -> str:
    code = "The code in this folder is gendistill's, under Apache-2.0."
    fields = origin.licence.fields
    if fields:
        stated = fields.get("license_name") or fields.get("license")
        link = f" ({fields['license_link']})" if "license_link" in fields else ""
        weights = f"The weights come from {origin.teacher}, whose licence they are under: {stated}{link}."
    elif origin.licence.text is None:
        weights = (
            "No licence was found in the teacher's folder. The weights are under the one that the teacher came "
            "with: read it before you pass them on."
        )
    else:
        weights = f"The weights come from {origin.teacher}, whose licence they are under: the file `LICENSE`."
    return f"{weights} {code}"


_CITATION = f"""```bibtex
@software{{gendistill,
  title = {{gendistill: turn a pretrained Transformer language model into a fast hybrid that still answers}},
  version = {{{__version__}}},
}}
```

Cite the teacher as its own card asks, and the papers of the mixers that it holds."""
