"""Archives to folders: nothing outside of the folder is touched, and nothing but files and folders is made."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from tta.data.progress import bar


class UnusableError(OSError):
    """What was downloaded is not what it should be, whole as it may be."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, compressed or not, into a folder.

    Raises:
        UnusableError: if the archive is truncated or none, or a member would leave the folder or is neither file nor
            folder.
        OSError: if files cannot be written.
    """
    if not hasattr(tarfile, "data_filter"):
        raise OSError("unpacking safely needs Python 3.11.4 or newer")
    size = archive.stat().st_size
    try:
        with (
            archive.open("rb") as raw,
            tarfile.open(fileobj=raw, mode="r:*") as tar,
            bar(f"unpacking {archive.name.removesuffix('.part')}") as moved,
        ):
            while (member := tar.next()) is not None:
                _refuse(member, archive)
                tar.extract(member, folder, filter="data")
                tar.members = []  # type: ignore[attr-defined]  # a million of them would fill the memory
                moved(raw.tell(), size)
            while tar.fileobj and tar.fileobj.read(1 << 20):
                pass  # the checksum of a compressed file is at its end, behind what tar reads
    except tarfile.FilterError as error:
        raise UnusableError(f"{archive} is not to be trusted: {error}") from error
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = str(error).partition("\n")[0].rstrip(":")
        raise UnusableError(f"{archive} cannot be unpacked: it is truncated or no tar archive ({why})") from error


def _refuse(member: tarfile.TarInfo, archive: Path) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        what = "would leave the folder"
    elif not (member.isreg() or member.isdir()):
        what = f"is a {'link to ' + repr(member.linkname) if member.issym() or member.islnk() else 'device'}"
    else:
        return
    raise UnusableError(
        f"{archive} is not to be trusted: its member {member.name!r} {what}; expected are files and folders that "
        "stay in the folder it is unpacked to"
    )
