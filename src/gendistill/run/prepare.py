"""Packed data sets for the steps of a run, kept in its folder."""

from gendistill.data.dataset import PackedDataset, prepare
from gendistill.data.held_out import Part
from gendistill.distributed import on_rank_zero
from gendistill.recipe.data import Source
from gendistill.recipe.stage import Stage
from gendistill.run.run import Run
from gendistill.run.synthesize import synthesize_set
from gendistill.synthesize.run import RECORDS


def prepare_mixture(
    run: Run, mixture: str, *, sequence_length: int, tokens: int, loss_on: str = "all", held_out: bool = False
) -> PackedDataset:
    """A mixture of the recipe's data section as packed sequences; made by the first process, read by all.

    Args:
        held_out: of the records that no stage trains on; else of all others.

    Raises:
        UserError: see `prepare` and `synthesize_set`.
    """
    sources = _sources(run, mixture)

    def make() -> PackedDataset:
        return prepare(
            sources,
            run.tokenizer,
            sequence_length=sequence_length,
            tokens=tokens,
            loss_on=loss_on,
            seed=run.recipe.seed,
            part=Part(run.recipe.held_out, held_out),
            cache=run.folder.data,  # found there again by another stage, or by the same one after a kill
        )

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
    tokens = stage.held_out_sequences * stage.sequence_length
    dataset = prepare_mixture(
        run,
        stage.mixture,
        sequence_length=stage.sequence_length,
        tokens=tokens,
        loss_on=stage.loss_on,
        held_out=True,
    )
    return dataset if dataset.stats["loss_tokens"] else None


def _sources(run: Run, mixture: str) -> list[Source]:
    """A mixture's sources; what the teacher is to write is written first, and becomes a file."""
    found = []
    # In the order of the recipe, which the mixture's shares follow.
    for source in run.recipe.data[mixture]:
        if source.synthesis is not None:
            synthesize_set(run, source.synthesis)
            path = run.folder.synthesis(source.synthesis) / RECORDS
            # From here on it is a file like any other, which `prepare` hashes and reads.
            source = source.model_copy(update={"synthesis": None, "path": str(path)})
        found.append(source)
    return found
