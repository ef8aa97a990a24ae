"""From a file that holds a whole artifact back to the folder: the export format is known by how the file begins."""

from __future__ import annotations

from pathlib import Path

from compress_core.catalog import catalog
from compress_core.errors import ArtifactError
from compress_core.files import refuse_foreign


def unpack_file(file: Path, folder: Path) -> None:
    """Restore the artifact that a file holds; `folder` is new, or an artifact that is replaced whole.

    Raises:
        ArtifactError: the file is missing or damaged, or no installed export format can restore it.
    """
    formats = {kind.name: kind for kind in catalog().exporters.values() if kind.magic}
    try:
        with file.open("rb") as stream:
            head = stream.read(max((len(kind.magic) for kind in formats.values()), default=0))
    except OSError as error:
        raise ArtifactError(
            f"cannot be read: {error.strerror}", where=str(file), mend="name a file that `export` has written"
        ) from error
    fitting = [kind for kind in formats.values() if head.startswith(kind.magic)]
    if not fitting:
        raise ArtifactError(
            "it is no packed file",
            where=str(file),
            mend=f"name a file of one of the formats that can be unpacked: {', '.join(sorted(formats)) or 'none'}",
        )
    refuse_foreign(folder)
    fitting[0]().unpack(file, folder)
