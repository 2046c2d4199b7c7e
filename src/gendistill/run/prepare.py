"""Packed data sets for the steps of a run, kept in its folder."""

from typing import Any

from gendistill.data.dataset import PackedDataset, prepare
from gendistill.data.held_out import EVERYTHING, Part
from gendistill.distributed import on_rank_zero
from gendistill.recipe.data import Source
from gendistill.recipe.stage import Stage
from gendistill.run.distant import distant_records
from gendistill.run.run import Run
from gendistill.run.synthesize import synthesize_set
from gendistill.synthesize.run import RECORDS


def prepare_mixture(
    run: Run, mixture: str, *, sequence_length: int, tokens: int, loss_on: str = "all", held_out: int | None = None
) -> PackedDataset:
    """A mixture of the recipe's data section as packed sequences; made by the first process, read by all.

    Args:
        tokens: that are trained on.
        held_out: so many of the records that no stage trains on, at most, in place of those.

    Raises:
        UserError: see `prepare` and `synthesize_set`.
    """
    with run.times.of("data", mixture):
        return _prepare(
            run,
            _sources(run, mixture, sequence_length, tokens),
            sequence_length=sequence_length,
            tokens=tokens if held_out is None else held_out,
            loss_on=loss_on,
            part=Part(run.recipe.held_out, held_out is not None),
        )


def _prepare(run: Run, sources: list[Source], **request: Any) -> PackedDataset:
    def make() -> PackedDataset:
        # Found there again by another stage, or by the same one after a kill.
        return prepare(sources, run.tokenizer, seed=run.recipe.seed, cache=run.folder.data, **request)

    # Tokenising takes minutes and writes files: once, by one process.
    prepared = on_rank_zero(make)
    return make() if prepared is None else prepared  # the other processes now find it made


def prepare_stage(run: Run, stage: Stage) -> PackedDataset:
    """The packed sequences that a stage consumes."""
    return prepare_mixture(
        run, stage.mixture, sequence_length=stage.sequence_length, tokens=stage.whole_tokens, loss_on=stage.loss_on
    )


def prepare_held_out(run: Run, stage: Stage) -> PackedDataset | None:
    """Packed sequences, of the stage's mixture and length, of records that no stage trains on.

    Returns:
        Fewer than `stage.held_out_sequences` where the sources have no more; None where they have none, or the recipe
        holds none out.
    """
    if not run.recipe.held_out:
        return None
    dataset = prepare_mixture(
        run,
        stage.mixture,
        sequence_length=stage.sequence_length,
        tokens=stage.whole_tokens,
        loss_on=stage.loss_on,
        held_out=stage.held_out_sequences * stage.sequence_length,
    )
    return dataset if dataset.stats["loss_tokens"] else None


def prepare_distant(run: Run, stage: Stage) -> PackedDataset | None:
    """Packed sequences of distant answers that no stage trains on, of which nothing else is learnt.

    Their texts are those of the stage's sources; what is planted and asked for is not.

    Returns:
        None where the stage has no such source, compares single layers, or the recipe holds nothing out.
    """
    sources = [
        (number, source) for number, source in enumerate(run.recipe.data[stage.mixture]) if source.made is not None
    ]
    if not sources or stage.compares != "end_to_end" or not run.recipe.held_out:
        return None
    length, tokens = stage.sequence_length, stage.held_out_sequences * stage.sequence_length
    together = sum(source.weight for _, source in sources)
    with run.times.of("data", stage.mixture):
        made = [
            _made(run, source, number, length, tokens * source.weight / together, measured=True)
            for number, source in sources
        ]
        return _prepare(run, made, sequence_length=length, tokens=tokens, loss_on="completion", part=EVERYTHING)


def _sources(run: Run, mixture: str, sequence_length: int, tokens: int) -> list[Source]:
    """A mixture's sources; what the teacher is to write, or is made of texts, is made first, and becomes a file."""
    found = []
    together = sum(source.weight for source in run.recipe.data[mixture])
    # In the order of the recipe, which the mixture's shares follow.
    for number, source in enumerate(run.recipe.data[mixture]):
        if source.made is not None:
            # Of them some are held out again, as of all files.
            wanted = tokens * source.weight / together / (1 - run.recipe.held_out)
            source = _made(run, source, number, sequence_length, wanted)
        if source.synthesis is not None:
            synthesize_set(run, source.synthesis)
            path = run.folder.synthesis(source.synthesis) / RECORDS
            # From here on it is a file like any other, which `prepare` hashes and reads.
            source = source.model_copy(update={"synthesis": None, "path": str(path)})
        found.append(source)
    return found


def _made(run: Run, source: Source, number: int, sequence_length: int, tokens: float, measured: bool = False) -> Source:
    """Conversations made of a source's texts, which from here on are a file like any other."""
    path = distant_records(
        run, source, number, sequence_length=sequence_length, tokens=round(tokens), measured=measured
    )
    return Source(path=str(path), messages="messages", weight=source.weight)
