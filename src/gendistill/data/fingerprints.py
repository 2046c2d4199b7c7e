"""Of what prepared data is made, as hashes: sources by their content, tokenizers by all that makes ids of a text."""

import hashlib
import json
from pathlib import Path

from gendistill import __version__
from gendistill.data.readers import local_suffix
from gendistill.data.sources import EMBEDDED, local_files
from gendistill.errors import UserError
from gendistill.recipe.data import Source


def source_fingerprint(source: Source) -> dict:
    """What a source will yield, whatever it is called: fields and content, not the path."""
    # How many may be bad changes no good record; a setting that is added later keeps the keys of those without it.
    fields = source.model_dump(exclude={"path", "skip_malformed"}, exclude_defaults=True)
    if source.path is None:  # of the hub: by name, as asking for its content would mean reading all of it
        return fields
    if source.path.startswith(EMBEDDED):  # made by this package's code, for which its version stands
        return fields | {"embedded": source.path, "version": __version__}
    return fields | {"files": [_file_fingerprint(file) for file in local_files(source)]}


def _file_fingerprint(path: Path) -> tuple[str, str | None]:
    # The suffix says how it is read, and the same bytes may be read in more than one way.
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), local_suffix(path.name)


def tokenizer_hash(tokenizer) -> str:
    """Hash of all that makes token ids of text and conversations.

    Raises:
        UserError: this is no fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; give the teacher a tokenizer.json")
    backend.no_truncation()  # left over from earlier calls, and set anew by every call
    backend.no_padding()
    # `to_str` is tokenizer.json, the vocabulary and all merges in it; the template and these ids lie outside.
    ids = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)  # end documents, fill padding
    digest = hashlib.sha256(backend.to_str().encode())
    digest.update(json.dumps([tokenizer.chat_template, *ids]).encode())
    return digest.hexdigest()[:20]
