"""Image files, byte by byte, of pixels that are known."""

import struct
import zlib

import numpy as np
from PIL import ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile(space):
    """What looks like a colour profile: sRGB's, whose header names another space of colours."""
    return SRGB[:16] + space + SRGB[20:]


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def packed(rows, bits):
    """Values (H, N) of 1 to 16 bits as bytes (H, bytes of a row), the first in the upper bits, rows padded."""
    if bits == 16:
        return rows.astype(">u2").view(np.uint8).reshape(len(rows), -1)
    places = np.arange(bits - 1, -1, -1)
    return np.packbits((rows[..., None].astype(np.int64) >> places & 1).reshape(len(rows), -1).astype(np.uint8), axis=1)


_PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def png(values, bits=8, kind=None, before=(), after=(), interlaced=False):
    """A PNG file of values (H, W, C); `kind` is its colour type, `before` and `after` its chunks around the pixels."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if kind is None else kind
    images = [values[top::down, left::right] for top, left, down, right in _PASSES] if interlaced else [values]
    rows = b"".join(
        b"\0" + bytes(row) for image in images if image.size for row in packed(image.reshape(len(image), -1), bits)
    )
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(rows)), *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(size, bits, rows, *, packing=0, palette=b"", masks=b"", header=40, top_down=False):
    """A BMP file of packed rows."""
    height, width = size
    info = struct.pack("<IiiHHIIiiII", header, width, -height if top_down else height, 1, bits, packing, 0, 0, 0, 0, 0)
    info = (info + masks).ljust(header, b"\0") if header > 40 else info + masks
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(info) + len(palette)) + info + palette + rows


def _packbits(data):
    """Nothing but runs of different bytes."""
    parts = [data[place : place + 128] for place in range(0, len(data), 128)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def _lzw(data):
    """Nothing but single bytes, with a new table before codes become longer than 9 bits."""
    codes = []
    for place in range(0, len(data), 200):
        codes += [256, *data[place : place + 200]]
    return bytes(packed(np.array([[*codes, 257]]), 9)[0])


_COMPRESSIONS = {1: bytes, 5: _lzw, 8: zlib.compress, 32946: zlib.compress, 32773: _packbits}
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def tiff(
    values, photometric, bits=8, *, order="<", big=False, compression=1, predictor=1, apart=False, tile=None, rows=None,
    extras=None, fill=1, **fields,
):  # fmt: skip
    """A TIFF file of values (H, W, C), in strips of `rows` or in tiles (high, wide); `fields` are more: `_274=6`."""
    height, width, channels = values.shape
    planes = [values[..., index : index + 1] for index in range(channels)] if apart else [values]
    high, wide = tile or (rows or height, width)
    parts = []
    for plane in planes:
        for top in range(0, height, high):
            for left in range(0, width, wide):
                part = plane[top : top + high, left : left + wide]
                if tile:
                    part = np.pad(part, ((0, high - part.shape[0]), (0, wide - part.shape[1]), (0, 0)))
                if predictor == 2:
                    part = np.diff(part, axis=1, prepend=part[:, :1] * 0)
                row = part.reshape(len(part), -1)
                data = row.astype(f"{order}u2").tobytes() if bits == 16 else packed(row, bits).tobytes()
                data = _COMPRESSIONS[compression](data)
                parts.append(data.translate(_REVERSED) if fill == 2 else data)
    place, places = 16 if big else 8, []
    for part in parts:
        places.append(place)
        place += len(part)
    lengths = [len(part) for part in parts]
    found = {
        256: width, 257: height, 258: [bits] * channels, 259: compression, 262: photometric, 266: fill, 277: channels,
        284: 2 if apart else 1, 317: predictor, 338: extras,
    }  # fmt: skip
    found |= {322: wide, 323: high, 324: places, 325: lengths} if tile else {273: places, 278: high, 279: lengths}
    found |= {int(name[1:]): value for name, value in fields.items()}
    return _tiff_file(b"".join(parts), found, order, big)


def _tiff_file(data, fields, order, big):
    word, size = ("Q", 8) if big else ("I", 4)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    start += struct.pack(f"{order}HH", 8, 0) if big else b""
    begin = len(start) + size + len(data)
    fields = {code: value for code, value in sorted(fields.items()) if value is not None}
    behind = begin + (8 if big else 2) + len(fields) * (20 if big else 12) + size
    entries, lists = b"", b""
    for code, value in fields.items():
        if isinstance(value, bytes):
            kind, count, content = 7, len(value), value
        else:
            many = list(value) if isinstance(value, list | tuple) else [value]
            kind, count, content = 4, len(many), struct.pack(f"{order}{len(many)}I", *many)
            if max(many) < 65536:
                kind, content = 3, struct.pack(f"{order}{len(many)}H", *many)
        if len(content) > size:
            lists, content = lists + content, struct.pack(f"{order}{word}", behind + len(lists))
        entries += struct.pack(f"{order}HH{word}", code, kind, count) + content.ljust(size, b"\0")
    head = struct.pack(f"{order}{'Q' if big else 'H'}", len(fields))
    return start + struct.pack(f"{order}{word}", begin) + data + head + entries + bytes(size) + lists
