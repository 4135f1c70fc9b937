"""Picture files: what comes in is checked before it is decoded, what goes out says how it was made."""

import io
import json
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdjax.errors import InputError
from sdjax.images import (
    as_depth,
    as_mask,
    as_pictures,
    grid,
    infotext,
    read_depth,
    read_mask,
    read_picture,
    read_settings,
    to_uint8,
    write_png,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)
SETTINGS = {
    "prompt": "küçük mavi bir kürenin solunda büyük kırmızı bir küp",
    "negative_prompt": "blur, fog",
    "steps": 50,
    "sampler": "ddim",
    "guidance_scale": 7.5,
    "seed": 0,
    "width": 192,
    "height": 128,
    "model": "weights/tiny",
    "eta": 0.0,
    "strength": None,
}


def saved(path, *args, **options):
    Image.new(*args).save(path, **options)
    return path


def png_claiming(width, height):
    """A PNG of 45 bytes whose header claims any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# Pictures in


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_is_rows_by_columns_by_rgb_from_minus_one_to_one(tmp_path, suffix):
    picture = read_picture(saved(tmp_path / f"p.{suffix}", "RGB", (6, 4), "white"))
    assert picture.dtype == np.float32
    np.testing.assert_array_equal(picture, np.ones((4, 6, 3)))


def test_each_of_256_levels_survives_reading_and_writing(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    write_png(tmp_path / "levels.png", levels, None)
    picture = read_picture(tmp_path / "levels.png")
    assert (picture.min(), picture.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(picture), levels)


def test_what_is_transparent_lies_on_white(tmp_path):
    half_red = read_picture(saved(tmp_path / "half.png", "RGBA", (1, 1), (255, 0, 0, 128)))
    np.testing.assert_allclose(half_red, [[[1, 0, 0]]], atol=0.01)


def test_what_is_transparent_in_a_mask_is_not_painted(tmp_path):
    assert read_mask(saved(tmp_path / "half.png", "RGBA", (1, 1), (255, 255, 255, 0))) == 0.0


def test_a_phone_picture_stands_upright(tmp_path):
    image = Image.new("RGB", (2, 1))
    image.putdata([RED, BLUE])
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    assert to_uint8(read_picture(tmp_path / "turned.png")).tolist() == [[[*RED]], [[*BLUE]]]


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    Image.fromarray(np.array([[0, 32896, 65535]], np.uint16)).save(tmp_path / "depth.png")
    assert to_uint8(read_picture(tmp_path / "depth.png"))[0, :, 0].tolist() == [0, 128, 255]


def test_sixteen_bit_grey_can_be_transparent_too(tmp_path):
    Image.fromarray(np.array([[0, 30000, 65535]], np.uint16)).save(tmp_path / "grey.png", transparency=30000)
    assert read_picture(tmp_path / "grey.png")[0, :, 0].tolist() == [-1, 1, 1]
    assert read_mask(tmp_path / "grey.png").tolist() == [[0, 0, 1]]


def test_a_depth_map_is_stretched_to_its_picture_before_both_are_cut(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16)[None].repeat(64, 0)).save(tmp_path / "square.png")
    wide = read_depth(tmp_path / "square.png", picture=(8, 32))
    assert wide.shape == (8, 32) and wide[0, 0] < 2 and wide[0, -1] > 61  # from its first column to its last
    middle = read_depth(tmp_path / "square.png", (8, 8), (8, 32))
    assert np.allclose(middle, wide[:, 12:20], atol=1e-3)


@pytest.mark.parametrize("name", ["picture", "mask", "depth"])
def test_what_is_no_array_of_numbers_is_named(name):
    read = {"picture": as_pictures, "mask": lambda a, name: as_mask(a, (4, 4)), "depth": lambda a, name: as_depth(a)}
    for array in (np.zeros((4, 4), "U2"), np.zeros((4, 4), complex), np.zeros((4, 4), object)):
        with pytest.raises(InputError, match=f"{name}: found an array of .*, expected numbers"):
            read[name](array[..., None].repeat(3, -1) if name == "picture" else array, name)


def test_a_depth_map_keeps_all_its_bits(tmp_path):
    deep = np.arange(1000, 1064, dtype=np.uint16).reshape(8, 8)  # one level in 8 bits
    Image.fromarray(deep).save(tmp_path / "depth.png")
    assert np.array_equal(read_depth(tmp_path / "depth.png"), deep)
    assert len(np.unique(read_depth(tmp_path / "depth.png", (4, 4)))) == 16
    Image.fromarray((deep - 1000).astype(np.uint8)).save(tmp_path / "shallow.png")
    assert np.allclose(255 * read_depth(tmp_path / "shallow.png"), deep - 1000, atol=1e-4)


def test_a_wide_picture_is_cut_equally_on_both_sides(tmp_path):
    image = Image.new("RGB", (40, 10), RED)
    image.paste(BLUE, (15, 0, 25, 10))
    image.save(tmp_path / "wide.png")
    picture = to_uint8(read_picture(tmp_path / "wide.png", size=(10, 10)))
    np.testing.assert_array_equal(picture, np.broadcast_to(BLUE, (10, 10, 3)))


def test_size_is_height_then_width(tmp_path):
    assert read_picture(saved(tmp_path / "p.png", "RGB", (9, 9)), size=(16, 24)).shape == (16, 24, 3)


def test_a_line_of_pixels_is_not_blown_up_on_the_way_to_a_square(tmp_path):
    # Covering 64 x 64 at the full width would take 64 x 2,560,000 pixels.
    assert read_picture(saved(tmp_path / "line.png", "RGB", (40_000, 1)), size=(64, 64)).shape == (64, 64, 3)


@pytest.mark.parametrize("size", [(9_000, 7_500), (10_000, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(tmp_path, size):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_claiming(*size))
    with pytest.raises(InputError, match="more than 64,000,000 pixels"):
        read_picture(bomb)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_half_a_file_is_not_half_a_picture(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="truncated or damaged|is not a PNG"):
        read_picture(path)


def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "fuzzed"
    for kind in ("PNG", "JPEG", "WEBP"):
        sound = io.BytesIO()
        Image.new("RGB", (8, 8), RED).save(sound, kind)
        for _ in range(100):
            data = np.frombuffer(sound.getvalue(), np.uint8).copy()
            data[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
            path.write_bytes(data.tobytes())
            try:
                assert read_picture(path, size=(8, 8)).shape == (8, 8, 3)
            except InputError as error:
                assert "\n" not in str(error)


def test_what_is_not_a_picture_file_is_named(tmp_path):
    saved(tmp_path / "other.gif", "RGB", (1, 1))
    (tmp_path / "text.png").write_text("hello")
    for name, message in {
        "other.gif": "is not a PNG or JPEG or WEBP picture",
        "text.png": "is not a PNG or JPEG or WEBP picture",
        ".": "is not a file",
        "missing.png": "does not exist",
        "x" * 300: "does not exist",
    }.items():
        with pytest.raises(InputError, match=message):
            read_picture(tmp_path / name)


# Pictures out


def test_values_are_clipped_and_rounded():
    assert to_uint8([-7.0, -1.0, 0.0, 0.004, 1.0, 7.0]).tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_an_error_and_not_a_black_picture(bad):
    pictures = np.zeros((2, 4, 4, 3), np.float32)
    pictures[1, 2, 3, 0] = bad
    with pytest.raises(InputError, match="decoded picture holds NaN or infinity in 1 of 96 .* float32"):
        to_uint8(pictures)


def test_the_text_that_other_tools_read():
    assert infotext(SETTINGS).split("\n") == [
        "küçük mavi bir kürenin solunda büyük kırmızı bir küp",
        "Negative prompt: blur, fog",
        "Steps: 50, Sampler: DDIM, CFG scale: 7.5, Seed: 0, Size: 192x128, Model: weights/tiny, Eta: 0.0",
    ]


def test_a_value_with_a_comma_is_quoted_for_the_readers_that_split_at_commas():
    assert infotext({"prompt": "a", "model": "C:\\a, b"}) == 'a\nModel: "C:\\\\a, b"'


def test_a_png_carries_its_settings_in_both_forms(tmp_path):
    path = tmp_path / "cube.png"
    write_png(path, np.zeros((128, 192, 3), np.uint8), SETTINGS)
    with Image.open(path) as image:
        assert image.info["parameters"] == infotext(SETTINGS)
    assert read_settings(path) == SETTINGS


@pytest.mark.parametrize(
    "prompt",
    ["", "two\nlines\nNegative prompt: x", "kırmızı 红色 🟥", "a stray \udcff byte", "çok " * 210_000],
    ids=["empty", "lines", "unicode", "surrogate", "megabyte"],
)
def test_any_prompt_comes_back_exactly(tmp_path, prompt):
    write_png(tmp_path / "p.png", np.zeros((8, 8, 3), np.uint8), {"prompt": prompt, "seed": 1})
    assert read_settings(tmp_path / "p.png") == {"prompt": prompt, "seed": 1}


def test_settings_can_be_left_out(tmp_path):
    write_png(tmp_path / "p.png", np.zeros((8, 8, 3), np.uint8), None)
    with Image.open(tmp_path / "p.png") as image:
        assert image.info == {}
    with pytest.raises(InputError, match="holds no settings"):
        read_settings(tmp_path / "p.png")


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "1" * 5_000])
def test_a_settings_text_of_another_kind_counts_as_none(tmp_path, text):
    chunks = PngInfo()
    chunks.add_text("sdjax", text)
    saved(tmp_path / "p.png", "RGB", (1, 1), pnginfo=chunks)
    with pytest.raises(InputError, match="holds no settings"):
        read_settings(tmp_path / "p.png")


def test_a_compressed_text_bomb_is_refused(tmp_path):
    chunks = PngInfo()
    chunks.add_text("sdjax", json.dumps({"prompt": " " * 10_000_000}), zip=True)
    saved(tmp_path / "p.png", "RGB", (1, 1), pnginfo=chunks)
    assert (tmp_path / "p.png").stat().st_size < 20_000
    with pytest.raises(InputError, match="cannot be decoded"):
        read_settings(tmp_path / "p.png")


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new_one(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))  # no file may grow beyond 4000 bytes
    try:
        with pytest.raises(InputError, match=r"p.png: cannot be written \(File too large\)"):
            write_png(path, noise, SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]
    assert path.read_bytes() == b"old"


def test_places_that_cannot_be_written_are_named(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "no" / "p.png", tmp_path / "folder.png", tmp_path / ("x" * 300 + ".png")):
        with pytest.raises(InputError, match="cannot be written"):
            write_png(path, picture, None)
    with pytest.raises(InputError, match="a name that ends in .png"):
        write_png(tmp_path / "p.jpg", picture, None)
    with pytest.raises(InputError, match="holds float32, expected uint8; to_uint8 makes it"):
        write_png(tmp_path / "p.png", picture.astype(np.float32), None)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.png"]


def test_a_contact_sheet_fills_row_by_row_and_ends_in_white():
    pictures = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(3, axis=3)
    assert grid(pictures, columns=2)[:, :, 0].tolist() == [[0, 1], [2, 255]]


def test_a_contact_sheet_keeps_each_picture_whole():
    pictures = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), np.uint8)
    sheet = grid(pictures, columns=2)
    assert sheet.shape == (10, 14, 3)
    np.testing.assert_array_equal(sheet[5:, :7], pictures[2])
