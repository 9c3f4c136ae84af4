"""Decodes a picture of each format once, where it is imported: a confined process can import nothing any more.

Only the fork server imports this.
"""

from __future__ import annotations

import io

from PIL import Image
from PIL.ExifTags import IFD, Base

from qsplit.media.pillow_backend import formats
from qsplit.media.sandbox.confined import answer

__all__: list[str] = []


def _rehearse() -> None:
    image = Image.new("RGB", (16, 16))
    exif = image.getexif()
    exif[Base.Make] = "none"
    exif.get_ifd(IFD.Exif)[Base.DateTimeOriginal] = "2024:05:06 07:08:09"
    for name in formats():
        if name in Image.SAVE:
            data = io.BytesIO()
            image.save(data, name, exif=exif)
            for asked in ("pixels", "shown", "tags"):
                answer(asked, data.getvalue(), 256)


_rehearse()
