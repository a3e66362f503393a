"""Files of public data sets: fetched from where they are published, and compared with their published checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from lightning_alws.errors import UserError


def fetch(folder: Path, file: str, addresses: Sequence[str], md5: str) -> str | None:
    """Download one file from the first address that has it, checked by its MD5.

    Returns None if it is there now, otherwise why it is not: each address's failure.
    """
    import torchvision  # takes seconds to import, and only a download needs it

    failures = []
    for address in addresses:
        # Under another name until it is whole: a broken connection must not leave a file to be read later.
        part = folder / f"{file}.{os.getpid()}.part"
        try:
            torchvision.datasets.utils.download_url(address, folder, filename=part.name, md5=md5)
            part.replace(folder / file)
            return None
        except (RuntimeError, OSError, HTTPException) as error:
            failures.append(str(error))
            if part.is_file():
                part.unlink()
    return "; ".join(dict.fromkeys(failures))


def require_md5(path: Path, content: bytes | None, md5: str) -> None:
    """Compare a file, or its content if that is at hand, with its published MD5; raises a UserError that names it."""
    if content is None:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
    else:
        found = hashlib.md5(content).hexdigest()
    if found != md5:
        raise UserError(
            f"{path} is not the published file: its MD5 is {found}, not {md5}; fetch it anew, or set "
            "data.verify_checksum=false if it is changed on purpose."
        )
