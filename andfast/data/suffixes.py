"""Which files are images, by their names, and which of them are read."""

from __future__ import annotations

from andfast.data.heif import avif_problem, heif_problem


def _suffixes(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


HEIF_SUFFIXES, AVIF_SUFFIXES = _suffixes("heic heif hif"), _suffixes("avif avifs")

_ALWAYS = _suffixes("apng bmp dib jfi jfif jif jpe jpeg jpg mpo pbm pgm png pnm ppm tif tiff webp")
IMAGE_SUFFIXES = _ALWAYS | HEIF_SUFFIXES | AVIF_SUFFIXES
"""The suffixes of the images that are read, in lower case; upper case counts, too."""

RAW_SUFFIXES = _suffixes(
    "3fr arw cr2 cr3 crw dcr dng erf fff iiq k25 kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
)
"""Those of what cameras record, before it is developed to an image."""

# Other files (.txt, .db) are ignored silently.
UNREAD_SUFFIXES = RAW_SUFFIXES | _suffixes(
    "dds eps exr flif gif hdr heics heifs icns ico j2c j2k jp2 jpc jpf jpx jxl jxr pam pcx pfm psb psd qoi ras sgi svg "
    "svgz tga wdp xbm xcf xpm"
)

RAW = "of a camera's raw format, which is not read: develop to TIFF or PNG first"


def why_unread(suffix: str) -> str | None:
    """Why images with this suffix, in lower case, are not read here; None if they are, or are no images."""
    if suffix in RAW_SUFFIXES:
        return RAW
    if suffix in HEIF_SUFFIXES:
        return heif_problem()
    if suffix in AVIF_SUFFIXES:
        return avif_problem()
    return "of a format that is not read" if suffix in UNREAD_SUFFIXES else None
