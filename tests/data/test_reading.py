"""Image files of every kind, byte by byte: both readers and the header's size against the pixels they were made of."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from image_files import SRGB, bmp, chunk, png, profile, tiff
from PIL import Image
from upscaling_models import noise

from andfast.data.images import ImageError, image_size, read_image, read_picture

HEIGHT, WIDTH = 13, 19  # no multiples of what bits or tiles are counted in


def levels(channels, bits, seed=0):
    """Values of so many bits, the least and the largest among them."""
    found = np.random.default_rng(seed).integers(0, 2**bits, (HEIGHT, WIDTH, channels))
    found[0, 0], found[0, 1] = 0, 2**bits - 1
    return found


def whole(values, bits):
    """Values of fewer bits as 8 bits have them."""
    if bits > 8:
        return values.astype(np.uint16)
    return (values * 255 // (2**bits - 1)).astype(np.uint8)


def over_white(pixels):
    """What an image of whatever kind looks like, in 8 bits and RGB, by the formula."""
    most = np.iinfo(pixels.dtype).max
    shown = pixels / most
    if pixels.shape[2] in (2, 4):
        shown = shown[..., :-1] * shown[..., -1:] + 1 - shown[..., -1:]
    return np.broadcast_to(shown * 255, (*pixels.shape[:2], 3))


@pytest.fixture
def check(tmp_path):
    """Compares what is read of a file with what it must show."""

    def compare(data, expected, within=0):
        path = tmp_path / "a.image"
        path.write_bytes(data)
        found = read_picture(path)
        assert (found.pixels.dtype, found.pixels.shape) == (expected.dtype, expected.shape)
        assert np.abs(found.pixels.astype(int) - expected).max() <= within
        assert found.pixels.flags.c_contiguous
        seen = read_image(path)
        assert (seen.dtype, seen.flags.c_contiguous, seen.flags.writeable) == (np.uint8, True, True)
        assert np.abs(seen - over_white(expected)).max() <= 0.51 + within  # laid over white, and rounded to 8 bits
        assert image_size(path) == seen.shape[:2] == expected.shape[:2]
        return found

    return compare


@pytest.fixture
def refuses(tmp_path):
    """Checks that a file is refused by name, by both readers."""

    def refuse(data, cause):
        path = tmp_path / "a.image"
        path.write_bytes(data)
        for read in (read_picture, read_image):
            with pytest.raises(ImageError, match=rf"a\.image: .*{cause}"):
                read(path)

    return refuse


# PNG

PNG_KINDS = [(1, bits) for bits in (1, 2, 4, 8, 16)] + [(channels, bits) for channels in (2, 3, 4) for bits in (8, 16)]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("channels", "bits"), PNG_KINDS)
def test_png(check, channels, bits, interlaced):
    values = levels(channels, bits)
    check(png(values, bits, interlaced=interlaced), whole(values, bits))


@pytest.mark.parametrize(("channels", "bits"), [kind for kind in PNG_KINDS if kind[0] in (1, 3)])
def test_png_with_a_transparent_value(check, channels, bits):
    values = levels(channels, bits)
    for key in (values[2, 3], values[0, 0], values[0, 1]):
        # Only the lower bits of the key count.
        stored = key + (2**bits if bits < 16 else 0)
        data = png(values, bits, before=[chunk(b"tRNS", struct.pack(f">{channels}H", *stored))])
        alpha = np.where((values == key).all(2, keepdims=True), 0, 65535 if bits > 8 else 255)
        check(data, np.concatenate([whole(values, bits), alpha], 2).astype(np.uint8 if bits <= 8 else np.uint16))


@pytest.mark.parametrize("alphas", [None, "one", "some"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_with_a_palette(check, bits, alphas):
    values, colours = levels(1, bits), np.random.default_rng(1).integers(0, 256, (2**bits, 3))
    alpha = np.full(2**bits, 255)
    alpha[: 2 if alphas == "some" else 1] = (0, 100)[: 2 if alphas == "some" else 1]
    before = [chunk(b"PLTE", colours.astype(np.uint8).tobytes())]
    if alphas:
        before.append(chunk(b"tRNS", alpha[: max(2**bits - 1, 2)].astype(np.uint8).tobytes()))
        colours = np.concatenate([colours, alpha[:, None]], 1)
    check(png(values, bits, 3, before), colours[values[..., 0]].astype(np.uint8))


# TIFF

LAYOUTS = [
    {},
    {"order": ">", "rows": 4},
    {"big": True, "rows": 5, "compression": 8},
    {"compression": 5, "rows": 4},
    {"compression": 5, "predictor": 2, "order": ">"},
    {"compression": 8, "predictor": 2, "tile": (16, 16)},
    {"compression": 32946, "tile": (16, 32), "order": ">"},
    {"compression": 32773, "rows": 3},
    {"tile": (16, 16)},
    {"fill": 2, "rows": 6},
    {"fill": 2, "compression": 5, "order": ">"},
    {"compression": 5, "rows": 5, "predictor": 2, "big": True, "order": ">"},
]


def each_layout(channels, bits):
    for layout in LAYOUTS:
        if bits >= 8 or layout.get("predictor") != 2:
            yield layout
            if channels > 1:
                yield layout | {"apart": True}


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_gray_tiff(check, photometric, bits):
    values = levels(1, bits)
    stored = values if photometric else 2**bits - 1 - values
    for layout in each_layout(1, bits):
        check(tiff(stored, photometric, bits, **layout), whole(values, bits))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colours", [1, 3])
def test_tiff_with_alpha_or_without(check, colours, bits):
    kind = 2 if colours == 3 else 1
    values = levels(colours + 1, bits)
    for layout in each_layout(colours + 1, bits):
        if colours == 3:
            check(tiff(values[..., :3], kind, bits, **layout), whole(values[..., :3], bits))
        # No field: alpha. Its values: something, multiplied into the colours (see below), alpha.
        check(tiff(values, kind, bits, **layout), whole(values, bits))
        check(tiff(values, kind, bits, extras=[0], **layout), whole(values[..., :-1], bits))
        check(tiff(values, kind, bits, extras=[2], **layout), whole(values, bits))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colours", [1, 3])
def test_alpha_is_taken_out_of_the_colours_of_tiff(check, colours, bits):
    values, most = levels(colours + 1, bits), 2**bits - 1
    values[..., -1] = np.maximum(values[..., -1], most // 2)  # below that, rounding is all that is left of the colours
    stored = values.copy()
    stored[..., :-1] = np.rint(values[..., :-1] * (values[..., -1:] / most))
    for layout in each_layout(colours + 1, bits):
        check(tiff(stored, 2 if colours == 3 else 1, bits, extras=[1], **layout), whole(values, bits), within=2)


@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_tiff_with_more_channels(check, bits):
    values = levels(5, bits)
    for layout in each_layout(5, bits):
        check(tiff(values, 2, bits, extras=[0, 0], **layout), whole(values[..., :3], bits))
        check(tiff(values, 2, bits, extras=[2, 0], **layout), whole(values[..., :4], bits))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiff_with_a_palette(check, bits):
    values, colours = levels(1, bits), np.random.default_rng(1).integers(0, 256, (2**bits, 3))
    colours[0, 0] = 255
    for layout in each_layout(1, bits):
        for factor in (257, 256, 1):  # 16 bits; as some programs write 8 bits
            data = tiff(values, 3, bits, _320=[int(value) for value in (colours * factor).T.flat], **layout)
            check(data, colours[values[..., 0]].astype(np.uint8))


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_tiff(check, bits):
    values, most = levels(4, bits), 2**bits - 1
    ink = values[..., :3] / most
    expected = np.rint((1 - ink) * (1 - values[..., 3:] / most) * 255).astype(np.uint8)
    for layout in each_layout(4, bits):
        check(tiff(values, 5, bits, **layout), expected, within=1)


@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
def test_tiff_of_brightness_and_colour(check, compression):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([columns * 9, rows * 12, (rows + columns) * 5], 2).astype(np.uint8)
    stored = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    check(tiff(stored, 6, compression=compression, rows=5, _530=[1, 1]), rgb, within=2)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_tiff_compressed_by_jpeg(check, mode):
    image = Image.fromarray(np.linspace(0, 255, 32 * 48 * 3).reshape(32, 48, 3).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF", compression="jpeg", quality=100)
    expected = np.asarray(image.convert("L" if mode == "L" else "RGB"))
    check(file.getvalue(), expected.reshape(32, 48, -1), within=8)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_facsimile(check, compression):
    values, file = levels(1, 1), io.BytesIO()
    Image.fromarray(values[..., 0].astype(bool)).save(file, "TIFF", compression=compression)
    check(file.getvalue(), whole(values, 1))


@pytest.mark.parametrize("turn", range(1, 9))
def test_tiff_is_turned_upright(check, turn):
    """By the places of the first row and column, as the format's specification tells them."""
    rows = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}[turn]
    columns = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[turn]
    for channels, bits in ((1, 1), (1, 16), (3, 8), (3, 16), (4, 8)):
        values = levels(channels, bits)
        upright = values.swapaxes(0, 1) if rows in ("left", "right") else values
        upright = upright[::-1] if "bottom" in (rows, columns) else upright
        upright = upright[:, ::-1] if "right" in (rows, columns) else upright
        for apart in {False, channels > 1}:
            photometric = 2 if channels > 1 else 1
            check(tiff(values, photometric, bits, apart=apart, _274=turn), whole(upright, bits))


def test_the_first_of_several_pages(check):
    pages, file = noise(HEIGHT, WIDTH, 6, np.uint16).reshape(2, HEIGHT, WIDTH, 3), io.BytesIO()
    tifffile.imwrite(file, pages, photometric="rgb")
    check(file.getvalue(), pages[0])


def test_a_last_strip_that_is_longer_than_the_image(check):
    """As programs write it that fill all strips."""
    values = levels(3, 8)
    for compression in (1, 5, 8, 32773):
        filled = np.concatenate([values, values[:2] * 0])
        assert len(filled) % 5 == 0
        check(tiff(filled, 2, compression=compression, rows=5, _257=HEIGHT), whole(values, 8))


def test_tiff_without_the_lengths_of_its_strips(check):
    values = levels(3, 8)
    check(tiff(values, 2, rows=5, _279=None), whole(values, 8))


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"_339": 2}, "signed pixels"),
        ({"_339": 3}, "floating-point pixels"),
        ({"_262": 8}, "photometric interpretation 8; read are gray and RGB"),  # CIELab
        ({"_262": 32803}, "photometric interpretation 32803"),  # a camera's raw data
        ({"_258": 12}, "12 bits"),
        ({"_258": 32}, "32 bits"),
        ({"_258": [8, 16]}, "8 and 16 bits"),
        ({"_277": 2, "_262": 2}, "2 channels of 8 bits, photometric interpretation 2"),
        ({"_277": 4, "_262": 1}, "4 channels of 8 bits, photometric interpretation 1"),
        ({"_277": 4, "_262": 5, "_332": 2}, "4 channels of 8 bits, photometric interpretation 5"),  # other inks
        ({"_259": 8, "_317": 3}, "predictor 3"),
        ({"_259": 34712}, "compressed by"),
        ({"_278": 3}, "more or fewer strips"),
        ({"_279": 20}, "truncated: it holds fewer bytes than its pixels need"),
        ({"_273": 10**6}, "truncated"),
    ],
)
def test_tiff_that_is_not_read(refuses, fields, cause):
    refuses(tiff(levels(1, 8), 1, **fields), cause)


# PPM


@pytest.mark.parametrize("most", [1, 9, 255, 256, 1000, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_ppm(check, kind, most):
    channels = 3 if kind in (3, 6) else 1
    values = np.random.default_rng(0).integers(0, most + 1, (HEIGHT, WIDTH, channels))
    head = b"P%d # a comment\n%d\n# 5 another\n %d %d\n" % (kind, WIDTH, HEIGHT, most)
    if kind > 3:
        body = values.astype(np.uint8 if most < 256 else ">u2").tobytes()
    else:
        body = "\n".join(" ".join(map(str, row)) + " # 7" for row in values.reshape(HEIGHT, -1)).encode()
    top = 255 if most < 256 else 65535
    check(head + body, np.rint(values / most * top).astype(np.uint8 if most < 256 else np.uint16), within=1)


def test_pbm(check):
    values = levels(1, 1)
    rows = np.packbits(values[..., 0].astype(np.uint8), axis=1).tobytes()
    black = (1 - values).astype(np.uint8) * 255
    check(b"P4 %d %d\n" % (WIDTH, HEIGHT) + rows, black)
    check(b"P1\n%d %d\n" % (WIDTH, HEIGHT) + "".join(map(str, values.flat)).encode(), black)
    check(b"P1\n%d %d\n" % (WIDTH, HEIGHT) + " ".join(map(str, values.flat)).encode(), black)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"P5 3 2 255\n12345", "truncated"),
        (b"P2 3 2 255\n1 2 3 4 5", "truncated"),
        (b"P2 3 2 9\n1 2 3 4 5 10", "values that are not 0 to 9"),
        (b"P5 3 2 9\n\1\2\3\4\5\x0a", "values that are not 0 to 9"),
        (b"P5 3 2 0\n123456", "largest value is 0"),
        (b"P5 3", "header is incomplete"),
        (b"P6 0 2 255\n", "0 x 2 pixels"),
        (b"PF 1 1 -1.0\n" + bytes(12), "floating-point pixels"),
    ],
)
def test_ppm_that_is_damaged(refuses, data, cause):
    refuses(data, cause)


# BMP


def lines(values):
    """Rows of bytes (H, N), each a multiple of four, the last first."""
    return np.pad(values, ((0, 0), (0, -values.shape[1] % 4)))[::-1].tobytes()


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bmp_with_a_palette(check, bits, gray):
    values, colours = levels(1, bits), np.random.default_rng(1).integers(0, 256, (2**bits, 4), np.uint8)
    if gray:
        colours[:] = colours[:, :1]
    rows = lines(np.packbits((values[..., :] >> np.arange(bits - 1, -1, -1) & 1).reshape(HEIGHT, -1), axis=1))
    expected = colours[:, 2::-1][values[..., 0]]
    data = bmp((HEIGHT, WIDTH), bits, rows, palette=colours.tobytes())
    check(data, np.ascontiguousarray(expected[..., :1]) if gray else expected)


@pytest.mark.parametrize("masks", [None, (5, 6, 5), (8, 8, 8, 8), (8, 8, 8), (10, 10, 10, 2)])
def test_bmp_with_masks(check, masks):
    given = masks or (5, 5, 5)
    bits = 16 if sum(given) <= 16 else 32
    values = np.stack([levels(1, count, seed)[..., 0] for seed, count in enumerate(given)], 2)
    shifts = [sum(given[index + 1 : 3]) if index < 3 else sum(given[:3]) for index in range(len(given))]
    words = sum(values[..., index] << shift for index, shift in enumerate(shifts))
    rows = lines(words.astype(f"<u{bits // 8}").view(np.uint8).reshape(HEIGHT, -1))
    tell = b"".join(struct.pack("<I", (2**count - 1) << shift) for count, shift in zip(given, shifts, strict=True))
    data = bmp(
        (HEIGHT, WIDTH), bits, rows, packing=3 if masks else 0, masks=tell if masks else b"",
        header=124 if len(given) == 4 else 40,
    )  # fmt: skip
    check(data, np.rint(values / (2 ** np.array(given) - 1) * 255).astype(np.uint8))


def test_bmp_of_24_and_32_bits(check):
    values = noise(HEIGHT, WIDTH, 4)
    stored = values[..., [2, 1, 0, 3]]
    check(bmp((HEIGHT, WIDTH), 24, lines(stored[..., :3].reshape(HEIGHT, -1))), values[..., :3])
    check(bmp((HEIGHT, WIDTH), 32, lines(stored.reshape(HEIGHT, -1))), values[..., :3])  # the fourth byte says nothing
    upside_down = lines(stored[::-1, :, :3].reshape(HEIGHT, -1))
    check(bmp((HEIGHT, WIDTH), 24, upside_down, top_down=True), values[..., :3])


def test_bmp_of_run_lengths(check):
    colours = np.random.default_rng(1).integers(0, 256, (256, 4), np.uint8)
    expected = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 2, 3, 4, 4], [0, 0, 7, 0, 0]])
    rows = [0, 2, 2, 0, 1, 7, 0, 0, 0, 3, 1, 2, 3, 0, 2, 4, 0, 0, 0, 0, 5, 1, 0, 1]
    data = bmp((4, 5), 8, bytes(rows), packing=1, palette=colours.tobytes())
    check(data, colours[:, 2::-1][expected])
    rows = [0, 2, 2, 0, 1, 0x70, 0, 0, 0, 3, 0x12, 0x30, 2, 0x44, 0, 0, 0, 0, 5, 0x11, 0, 1]
    data = bmp((4, 5), 4, bytes(rows), packing=2, palette=colours[:16].tobytes())
    check(data, colours[:, 2::-1][expected])


# JPEG and WebP


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


SMOOTH = np.linspace(0, 255, 32 * 48 * 3).reshape(32, 48, 3).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg(check, mode, options):
    image = Image.fromarray(SMOOTH).convert(mode)
    expected = np.asarray(image.convert("RGB" if mode == "CMYK" else mode)).reshape(32, 48, -1)
    check(saved(image, "JPEG", quality=100, **options), expected, within=8)


def test_the_first_image_of_several(check):
    first, second = Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)
    many = {"save_all": True, "append_images": [second]}
    check(saved(first, "MPO", quality=100, **many), SMOOTH, within=8)
    check(saved(first, "WEBP", lossless=True, **many), SMOOTH)
    check(saved(first, "PNG", **many), SMOOTH)
    check(saved(first, "PNG", default_image=True, **many), SMOOTH)


@pytest.mark.parametrize("channels", [3, 4])
def test_webp(check, channels):
    values = noise(HEIGHT, WIDTH, channels)
    check(saved(Image.fromarray(values), "WEBP", lossless=True, exact=True), values)


# Metadata, which never costs the image


def test_png_whose_metadata_is_large_or_damaged(check):
    values = noise(HEIGHT, WIDTH, 3)
    large = zlib.compress(bytes(2**25))
    good, junk = chunk(b"pHYs", b"\0"), b"\x12junk\0\0" * 9
    for name in (b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"acTL", b"fcTL", b"tIME"):
        for data in (b"", junk, b"key\0\0" + large, b"key\0\1\0\0\0" + large):
            check(png(values, before=[chunk(name, data)], after=[chunk(name, data)]), values)
    wrong = good[:-1] + bytes([good[-1] ^ 1])
    check(png(values, before=[wrong], after=[wrong]), values)


def test_a_profile_of_more_than_pillow_reads(check):
    values, icc = noise(HEIGHT, WIDTH, 3), SRGB + np.random.default_rng(0).bytes(1_500_000)
    found = check(png(values, before=[chunk(b"iCCP", b"name\0\0" + zlib.compress(icc))]), values)
    assert (found.icc, found.notes) == (icc, ())


@pytest.mark.parametrize(
    ("icc", "said"),
    [(SRGB[:200], "damaged"), (b"junk" * 90, "damaged"), (profile(b"GRAY"), "one of GRAY, its pixels are RGB")],
)
def test_a_profile_of_no_use(check, icc, said):
    values = noise(HEIGHT, WIDTH, 3)
    files = [
        png(values, before=[chunk(b"iCCP", b"name\0\0" + zlib.compress(icc))]),
        tiff(values, 2, _34675=icc),
        saved(Image.fromarray(values), "WEBP", lossless=True, icc_profile=icc),
    ]
    for data in files:
        found = check(data, values)
        assert found.icc is None
        assert len(found.notes) == 1
        assert said in found.notes[0]
    found = check(png(values, before=[chunk(b"iCCP", b"name\0\0" + b"not packed")]), values)
    assert (found.icc, found.notes) == (None, ("its iCCP chunk is damaged, and not used",))


@pytest.mark.parametrize("name", [b"gAMA", b"cICP", b"cHRM", b"iCCP", b"tRNS"])
def test_what_tells_of_colours_but_is_damaged_is_told(check, name):
    values, told = noise(HEIGHT, WIDTH, 3), chunk(name, bytes(5))
    found = check(png(values, before=[told[:-1] + bytes([told[-1] ^ 1])]), values)
    assert (found.colour, found.notes) == ({}, (f"its {name.decode()} chunk is damaged, and not used",))


@pytest.mark.parametrize("icc", [SRGB, SRGB[:200], b"junk" * 90, profile(b"CMYK"), profile(b"GRAY")])
def test_cmyk_with_a_profile_of_no_use(check, icc):
    image = Image.fromarray(SMOOTH).convert("CMYK")
    expected = np.asarray(image.convert("RGB"))
    for data in (saved(image, "JPEG", quality=100, icc_profile=icc), tiff(np.asarray(image), 5, _34675=icc)):
        found = check(data, expected, within=8)
        assert found.icc is None
        assert len(found.notes) == 1
        assert "not used" in found.notes[0]


def test_jpeg_whose_metadata_is_damaged(check):
    data = saved(Image.fromarray(SMOOTH), "JPEG", quality=100)
    for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE):
        for start in (
            b"",
            b"JFIF\0",
            b"Exif\0\0",
            b"Exif\0\0II*\0\xff\xff",
            b"ICC_PROFILE\0",
            b"Adobe",
            b"Photoshop 3.0\0",
        ):
            segment = bytes([0xFF, marker]) + struct.pack(">H", len(start) + 2) + start
            check(data[:2] + segment + data[2:], SMOOTH, within=8)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(("turn", "bits"), [(3, 8), (6, 8), (6, 16)])
def test_where_png_tells_its_orientation(check, turn, bits, place):
    values = whole(levels(3, bits), bits)
    expected = np.ascontiguousarray(np.rot90(values, -1 if turn == 6 else 2))
    exif = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", 0x0112, 3, 1, turn, 0) + bytes(4)
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='%d'/>" % turn
    text = b"Raw profile type exif\0\nexif\n %d\n%s\n" % (len(exif) + 6, (b"Exif\0\0" + exif).hex().encode())
    for told in (chunk(b"eXIf", exif), chunk(b"iTXt", xmp), chunk(b"tEXt", text)):
        check(png(values, bits, **{place: [told]}), expected)


@pytest.mark.parametrize(
    ("end", "first", "more"), [(b"\r\n", 7, b""), (b"\r", 10, b""), (b"\n", 7, b""), (b"\r", 7, b""), (b"\n", 10, b"x")]
)
def test_pnm_whose_lines_end_as_on_windows(check, end, first, more):
    pixels = noise(6, 5, 3)
    pixels[0, 0, 0] = first
    check(b"P6\r\n5 6\r\n255" + end + pixels.tobytes() + more, pixels)
