"""The embedded teacher: a small chat model that knows some facts and sums, and the data it came from.

It lets every recipe, test and example run without a download.
"""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from gendistill.embedded import corpus
from gendistill.errors import UserError

_STREAMS = {"text": corpus.plain_documents, "chat": corpus.conversations}  # to train on
NAMES = (*_STREAMS, *corpus.EVALUATIONS)
# Records where nobody says how many.
_STREAM_COUNT, _EVALUATION_COUNT = 20_000, 500


def teacher_folder() -> Path:
    """The folder with the teacher's weights and tokenizer.

    Raises:
        UserError: the weights are absent (a source checkout in which they were never made).
    """
    # A path: transformers loads from folders, and the package is always installed as files.
    folder = Path(str(resources.files(__name__) / "model"))
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder}: no embedded teacher here. Make one with: python scripts/make_embedded_teacher.py")
    return folder


def records(name: str, seed: int = 0, count: int | None = None) -> Iterator[dict]:
    """The records behind 'embedded:NAME' in a recipe.

    Args:
        name: "text" ({"text"}), "chat" ({"messages"}), "facts", "choice" or "arithmetic" (evaluation items, see
            `corpus.evaluation_items`).
        seed: other seeds give other records of the same kind.
        count: how many; 20,000 of text and chat, 500 of an evaluation if absent. They are made one by one as they are
            read, so that a large count costs nothing.

    Raises:
        UserError: the name is none of these.
    """
    if name in _STREAMS:
        return _STREAMS[name](seed, _STREAM_COUNT if count is None else count)
    if name in corpus.EVALUATIONS:
        return corpus.evaluation_items(name, seed, _EVALUATION_COUNT if count is None else count)
    raise UserError(f"no embedded data '{name}'; there are: {', '.join(NAMES)}")
