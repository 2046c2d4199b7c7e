"""Opens files, packed or not, as bytes, and no further than a limit."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gendistill.errors import UserError

BLOCK = 2**20  # bytes read at once
# A packed file may unpack to so much, or to so many times its size: text packs 3 to 20 times, a file without end 1,000.
UNPACKED_BYTES, UNPACKED_TIMES = 2**28, 200
# How a file that is compressed is found to be damaged; pyarrow, which unpacks .zst, raises OSError.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, OSError)


class _Unpacked(io.RawIOBase):
    """A packed file's content in bytes, up to a limit: one of short or blank lines could go on for days."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.left = max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self.file.readinto(buffer)
        self.left -= count
        if self.left < 0:
            raise UserError(
                f"{self.path}: unpacks to more than {UNPACKED_TIMES} times its size; is it text? Unpack it if it is"
            )
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file in bytes, unpacked."""
    try:
        if path.name.endswith(".gz"):
            file = io.BufferedReader(_Unpacked(path, gzip.GzipFile(path)), BLOCK)
        elif path.name.endswith(".zst"):
            import pyarrow  # here: it takes a while, and most files are not packed with it

            file = io.BufferedReader(_Unpacked(path, pyarrow.input_stream(str(path), compression="zstd")), BLOCK)
        else:
            file = open(path, "rb")  # noqa: SIM115 - closed below
        with file:
            yield file
    except DAMAGED as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception, where: str = "") -> Exception:
    """What to raise for it: of a file that is not packed, the error itself."""
    packing = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    if packing is None:
        return error
    return UserError(f"{path}: damaged {packing} file{where} ({error}); fetch or compress it again")
