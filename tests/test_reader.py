"""Safetensors by hand: good files give their tensors, bad ones an error, and nothing anything else."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from sdjax.checkpoint import reader
from sdjax.checkpoint.reader import ALIGNMENT, SafetensorsFile, ShardedFile, write_safetensors
from sdjax.errors import InputError

BF16 = np.dtype(ml_dtypes.bfloat16)
A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F16", "shape": [2, 2], "data_offsets": [8, 16]}
ZEROS = bytes(16)


def layout(header, data=ZEROS):
    """The bytes of a file, sound or not: header length, header (a text, or what becomes JSON), tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def put(path, data):
    path.write_bytes(data)
    return path


@pytest.fixture
def opened(tmp_path):
    return lambda header, data=ZEROS: SafetensorsFile(put(tmp_path / "m.safetensors", layout(header, data)))


# Good files


def test_a_file_laid_out_by_hand(opened):
    data = struct.pack("<2f", 1.5, -2.0) + struct.pack("<4e", 1, 2, 3, 4)
    file = opened({"__metadata__": {"format": "pt"}, "b": B, "a": A}, data)
    assert file.names() == ["a", "b"]  # by place in the file, whatever the header's order
    assert (file.shape("a"), file.dtype("a")) == ((2,), np.float32)
    assert (file.shape("b"), file.dtype("b")) == ((2, 2), np.float16)
    assert file.read("a").tolist() == [1.5, -2.0]
    assert file.read("b").tolist() == [[1, 2], [3, 4]]
    assert file.metadata == {"format": "pt"}


@pytest.mark.parametrize("dtype", reader.DTYPES.values(), ids=str)
def test_each_dtype_crosses_to_the_formats_own_library_and_back(tmp_path, dtype):
    tensors = {
        "matrix": np.arange(6).reshape(2, 3).astype(dtype),
        "scalar": np.array(1).astype(dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "theirs.safetensors")
    write_safetensors(tmp_path / "ours.safetensors", tensors)
    # Raw bytes, since their NumPy reader knows no bfloat16.
    ours = safetensors.deserialize((tmp_path / "ours.safetensors").read_bytes())
    theirs = safetensors.deserialize((tmp_path / "theirs.safetensors").read_bytes())
    assert sorted(ours, key=str) == sorted(theirs, key=str)
    file = SafetensorsFile(tmp_path / "theirs.safetensors")
    for name, tensor in tensors.items():
        assert (file.read(name).dtype, file.shape(name)) == (dtype, tensor.shape)
        np.testing.assert_array_equal(file.read(name), tensor)


def test_our_files_are_read_by_the_formats_own_library(tmp_path):
    tensors = {"x": np.eye(3, dtype=np.float16), "a longer name": np.arange(5)}
    write_safetensors(tmp_path / "m.safetensors", tensors, {"made by": "sdjax"})
    theirs = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert theirs.keys() == tensors.keys()
    np.testing.assert_array_equal(theirs["x"], np.eye(3))
    assert SafetensorsFile(tmp_path / "m.safetensors").metadata == {"made by": "sdjax"}


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, BF16], ids=str)
@pytest.mark.parametrize("wanted", [np.float32, np.float16, BF16], ids=str)
def test_tensors_are_cast_while_they_are_read(tmp_path, stored, wanted):
    tensor = np.random.default_rng(0).normal(size=(300, 700)).astype(stored)  # several chunks of any dtype
    write_safetensors(tmp_path / "m.safetensors", {"x": tensor})
    read = SafetensorsFile(tmp_path / "m.safetensors").read("x", wanted)
    assert read.dtype == wanted
    np.testing.assert_array_equal(read, tensor.astype(wanted))


def test_reading_needs_the_memory_of_one_result(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"x": np.ones((1024, 2048), np.float16)})
    file = SafetensorsFile(tmp_path / "m.safetensors")
    tracemalloc.start()
    assert file.read("x", np.float32).nbytes == 8 * 2**20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9.5 * 2**20


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 7, 11), (1000, 1000)])
def test_tensors_begin_where_jax_can_take_them_as_they_are(tmp_path, shape):
    write_safetensors(tmp_path / "x.safetensors", {"x": np.ones(shape, np.float32)})
    read = SafetensorsFile(tmp_path / "x.safetensors").read("x")
    assert read.shape == shape and (read.size == 0 or read.ctypes.data % ALIGNMENT == 0)


def test_a_file_may_hold_no_tensor_at_all(opened):
    assert opened({}, b"").names() == []


def test_names_and_sizes_may_be_as_odd_as_the_format_allows(opened):
    empty = {"dtype": "F32", "shape": [3, 0], "data_offsets": [8, 8]}
    file = opened({"": A, "ağırlık 重み": empty}, bytes(8))
    assert file.read("").tolist() == [0, 0]
    assert file.read("ağırlık 重み").shape == (3, 0)


# Headers that are refused


def test_a_missing_tensor_is_named(opened):
    for ask in (SafetensorsFile.shape, SafetensorsFile.dtype, SafetensorsFile.read):
        with pytest.raises(InputError, match=r"m.safetensors: has no tensor 'c' among its 2"):
            ask(opened({"a": A, "b": B}), "c")


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ([], r"has \[\], expected exactly the fields"),
        ({"dtype": "F32", "shape": [2]}, "expected exactly the fields"),
        (A | {"stride": 1}, "expected exactly the fields"),
        (A | {"dtype": "F8_E4M3"}, "is stored as F8_E4M3, expected F64, .*; take the release in half"),
        (A | {"dtype": "F31X"}, "has 'F31X', expected a dtype of"),
        (A | {"dtype": ["F32"]}, r"has \['F32'\], expected a dtype of"),
        (A | {"shape": 2}, "has 2, expected a shape"),
        (A | {"shape": [-2]}, r"has \[-2\], expected a shape"),
        (A | {"shape": [2.0]}, r"has \[2.0\], expected a shape"),
        (A | {"shape": [True]}, r"has \[True\], expected a shape"),
        (A | {"shape": [1] * 33}, "expected a shape of at most 32"),
        (A | {"shape": [2**62, 0]}, "expected a shape"),
        (A | {"shape": [10**4000]}, "expected a shape"),
        (A | {"data_offsets": [0, 8, 8]}, "expected offsets"),
        (A | {"data_offsets": [0, "8"]}, "expected offsets"),
        (A | {"data_offsets": [-8, 0]}, "expected offsets"),
        (A | {"data_offsets": [8, 0]}, "expected a begin before the end"),
        (A | {"data_offsets": [8, 2**64]}, "expected offsets up to 16, where the file ends"),
        (A | {"data_offsets": [0, 7]}, r"has \[0, 7\], expected 8 bytes for F32 \[2\]"),
        (A | {"shape": [3]}, r"has \[0, 8\], expected 12 bytes for F32 \[3\]"),
    ],
)
def test_a_tensors_claim_must_fit_its_bytes(opened, claim, message):
    with pytest.raises(InputError, match=r"m.safetensors: tensor 'a' .*" + message):
        opened({"a": claim, "b": B})


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        (
            {"a": A, "b": B | {"data_offsets": [4, 12]}},
            12,
            "'b' overlaps 'a', it begins at byte 4, expected 8",
        ),
        ({"a": A, "b": A}, 8, "'b' overlaps 'a'"),
        ({"b": B}, 16, "'b' leaves a gap after the header, it begins at byte 8, expected 0"),
        ({"a": A, "b": B | {"data_offsets": [10, 18]}}, 18, "'b' leaves a gap after 'a'"),
        ({"a": A}, 9, "holds 9 bytes of tensors, expected 8"),
        ({}, 1, "holds 1 bytes of tensors, expected 0"),
        ({"a": A, "b": B}, 15, "'b' has .8, 16., expected offsets up to 15, where the file ends"),
    ],
)
def test_the_tensors_fill_the_file_without_overlap_or_gap(opened, header, length, message):
    with pytest.raises(InputError, match=message):
        opened(header, bytes(length))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 1}', "has 'a' twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "has 'dtype' twice"),
        (b'{"a": ', "is not JSON"),
        (b'{"\xff": 1}', "is not JSON in UTF-8"),
        (b'{"a": ' + b"[" * 100_000, "is not JSON"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "is not JSON"),
        (b"[{}]", "do not begin as a safetensors file"),
        (b"", "do not begin as a safetensors file"),
        (b'{"__metadata__": []}', r"__metadata__ is \[\], expected an object of strings"),
        (b'{"__metadata__": {"step": 1}}', "expected an object of strings"),
        (b'{"a\\nb": 1}', r"tensor 'a\\nb' has 1"),
    ],
)
def test_the_header_is_one_json_object(opened, text, message):
    with pytest.raises(InputError, match=message) as caught:
        opened(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [3, 100_000_001, 2**63, 2**64 - 1])
def test_the_headers_length_stays_inside_the_file_and_the_limit(tmp_path, length):
    with pytest.raises(InputError, match=f"a header of {length} bytes, expected at most 2;"):
        SafetensorsFile(put(tmp_path / "m.safetensors", struct.pack("<Q", length) + b"{}"))


def test_a_header_above_the_limit_is_refused_even_if_it_is_there(opened, monkeypatch):
    monkeypatch.setattr(reader, "MAX_HEADER", 50)
    with pytest.raises(InputError, match="expected at most 50"):
        opened({"a": A, "b": B})


# Files that are something else


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".CKPT"])
def test_a_checkpoint_by_name_is_never_unpickled(tmp_path, suffix):
    path = put(tmp_path / f"model{suffix}", layout({"a": A, "b": B}))
    with pytest.raises(InputError, match="never unpickled; take the .safetensors file .* weights_only=True"):
        SafetensorsFile(path)


class Bomb:
    """Ends the test run if anybody unpickles it."""

    def __reduce__(self):
        return exit, ("unpickled!",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_checkpoint_by_content_is_never_unpickled(tmp_path, protocol):
    bare = pickle.dumps(Bomb(), protocol)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", bare)
    for data in (bare, zipped.getvalue()):
        with pytest.raises(InputError, match="never unpickled"):
            SafetensorsFile(put(tmp_path / "renamed.safetensors", data))


def test_a_header_of_640_bytes_is_not_taken_for_a_pickle(opened):
    # Its length begins with the bytes 80 02, as a pickle of protocol 2 does.
    text = json.dumps({"a": A, "b": B}).encode().ljust(640)
    assert layout(text)[:2] == b"\x80\x02"
    assert opened(text).names() == ["a", "b"]


def test_a_git_lfs_pointer_says_so(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:6ce0\nsize 4265146304\n"
    with pytest.raises(InputError, match="is a Git LFS pointer, expected the weights; .* git lfs pull"):
        SafetensorsFile(put(tmp_path / "m.safetensors", pointer))


def test_places_without_a_file_are_named(tmp_path):
    for place, message in {
        "none": "does not exist",
        ".": "is not a file",
        "x" * 300: "does not exist",
    }.items():
        with pytest.raises(InputError, match=message):
            SafetensorsFile(tmp_path / place)


def test_any_damage_is_an_error_or_harmless(tmp_path):
    tensors = {"w": np.ones((2, 3), np.float32), "h": np.ones(4, np.float16), "i": np.arange(3)}
    safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    sound = (tmp_path / "m.safetensors").read_bytes()
    place = st.integers(0, len(sound) - 1)

    @given(st.lists(st.tuples(place, st.integers(0, 255)), max_size=4), st.none() | place)
    def damaged(changes, length):
        data = bytearray(sound)
        for at, byte in changes:
            data[at] = byte
        path = put(tmp_path / "damaged.safetensors", bytes(data[:length]))
        try:
            file = SafetensorsFile(path)
            for name in file.names():
                assert file.read(name).shape == file.shape(name)
        except InputError as error:
            assert "\n" not in str(error)

    damaged()


# Values that are refused


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, BF16], ids=str)
@pytest.mark.parametrize("wanted", [None, np.float32, np.float16], ids=str)
def test_nan_and_infinity_are_counted_wherever_they_are(tmp_path, stored, wanted):
    tensor = np.zeros(200_001, stored)
    tensor[[0, 99_999, 200_000]] = np.nan, np.inf, -np.inf
    safetensors.numpy.save_file({"ok": np.ones(2), "w": tensor}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert file.read("ok").sum() == 2
    with pytest.raises(InputError, match="tensor 'w' holds 3 NaN or infinite values of 200001"):
        file.read("w", wanted)


def test_the_largest_and_smallest_finite_numbers_are_fine(tmp_path):
    for dtype in (np.float64, np.float32, np.float16, BF16):
        limits = ml_dtypes.finfo(dtype)
        tensor = np.array([limits.max, limits.min, limits.smallest_subnormal, -0.0], dtype)
        write_safetensors(tmp_path / "m.safetensors", {"x": tensor})
        np.testing.assert_array_equal(SafetensorsFile(tmp_path / "m.safetensors").read("x"), tensor)


def test_a_value_too_large_for_the_wanted_dtype_is_not_made_infinite(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"x": np.array([1.0, 70_000.0], np.float32)})
    with pytest.raises(InputError, match="holds 1 NaN or infinite values of 2 as float16"):
        SafetensorsFile(tmp_path / "m.safetensors").read("x", np.float16)


def test_a_boolean_is_zero_or_one(opened):
    header = {"x": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}
    assert opened(header, b"\0\1\1").read("x").tolist() == [False, True, True]
    with pytest.raises(InputError, match="tensor 'x' is BOOL, expected bytes 0 and 1"):
        opened(header, b"\0\1\2").read("x")


def test_a_file_that_shrinks_while_it_is_read_is_noticed(opened):
    file = opened({"a": A, "b": B})
    put(file.path, file.path.read_bytes()[:-1])
    assert file.read("a").tolist() == [0, 0]
    with pytest.raises(InputError, match="became shorter while tensor 'b' was read"):
        file.read("b")


# Several files and their index


@pytest.fixture
def shards(tmp_path):
    """Two files of one model; call with a change to the weight map to get the index."""
    write_safetensors(tmp_path / "m-00001-of-00002.safetensors", {"a": np.ones(2)}, {"format": "pt"})
    write_safetensors(tmp_path / "m-00002-of-00002.safetensors", {"b": np.full((2, 2), 7, np.float16)})

    def index(**change):
        weight_map = {"b": "m-00002-of-00002.safetensors", "a": "m-00001-of-00002.safetensors"} | change
        text = json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map})
        return put(tmp_path / "m.safetensors.index.json", text.encode())

    return index


def test_shards_read_like_one_file(shards):
    file = ShardedFile(shards())
    assert file.names() == ["a", "b"]
    assert (file.shape("b"), file.dtype("b")) == ((2, 2), np.float16)
    assert file.read("b", np.float32).tolist() == [[7, 7], [7, 7]]
    assert file.metadata == {"format": "pt"}
    with pytest.raises(InputError, match="has no tensor 'c' among its 2"):
        file.read("c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": "m-00001-of-00002.safetensors"}, "00001-of-00002.safetensors: lacks tensor 'c'"),
        ({"b": "m-00001-of-00002.safetensors"}, "00001-of-00002.safetensors: lacks tensor 'b'"),
        ({"c": "m-00003-of-00002.safetensors"}, "00003-of-00002.safetensors: does not exist"),
        ({"c": "../m.safetensors"}, "expected a .safetensors file beside it"),
        ({"c": "/etc/m.safetensors"}, "expected a .safetensors file beside it"),
        ({"c": "..\\m.safetensors"}, "expected a .safetensors file beside it"),
        ({"c": "m.bin"}, "names the file 'm.bin', expected a .safetensors file beside it"),
        ({"c": 3}, '"weight_map" from tensor names to file names'),
    ],
)
def test_an_index_agrees_with_its_files(shards, change, message):
    with pytest.raises(InputError, match=message):
        ShardedFile(shards(**change))


def test_a_shard_holds_nothing_that_the_index_does_not_know(shards, tmp_path):
    write_safetensors(tmp_path / "m-00001-of-00002.safetensors", {"a": np.ones(2), "stray": np.ones(2)})
    with pytest.raises(
        InputError, match="00001-of-00002.safetensors: holds, against the index, tensor 'stray'"
    ):
        ShardedFile(shards())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the index is not JSON"),
        (b"[]", "the index is a JSON list, expected an object"),
        (b"{}", 'expected a "weight_map"'),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "the index has 'a' twice"),
    ],
)
def test_an_index_is_a_json_object_with_a_weight_map(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        ShardedFile(put(tmp_path / "m.safetensors.index.json", text))
