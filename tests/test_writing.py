"""Writing safetensors: whole or not at all, a tensor at a time, nothing that could not be read."""

import json
import resource
import struct
import tracemalloc

import numpy as np
import pytest

from sdjax.checkpoint.reader import SafetensorsFile, write_safetensors
from sdjax.errors import InputError


def test_a_transposed_view_is_written_as_it_looks(tmp_path):
    view = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_safetensors(tmp_path / "m.safetensors", {"x": view})
    assert SafetensorsFile(tmp_path / "m.safetensors").read("x").tolist() == [[0, 3], [1, 4], [2, 5]]


def test_tensors_are_made_one_at_a_time(tmp_path):
    class Lazy:
        shape, dtype = (1024, 1024), np.dtype(np.float32)

        def __array__(self, dtype=None, copy=None):
            return np.ones(self.shape, self.dtype)

    tracemalloc.start()
    write_safetensors(tmp_path / "m.safetensors", {str(i): Lazy() for i in range(8)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "m.safetensors").stat().st_size > 32 * 2**20
    assert peak < 10 * 2**20


def test_each_tensor_begins_at_a_multiple_of_its_item_size(tmp_path):
    tensors = {"a": np.ones(3, np.uint8), "b": np.ones(3, np.float16), "c": np.ones(3, np.float64)}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    data = (tmp_path / "m.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    offsets = {name: entry["data_offsets"] for name, entry in json.loads(data[8 : 8 + length]).items()}
    assert length % 8 == 0
    assert offsets == {"c": [0, 24], "b": [24, 30], "a": [30, 33]}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": np.ones(2, np.complex64)}, "cannot hold tensor 'x' of complex64"),
        ({"__metadata__": np.ones(2)}, "cannot hold tensor '__metadata__'"),
        ({"x": np.array([1, np.nan])}, "not written, 1 of 2 values of tensor 'x' are NaN or infinite"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, tensors, message):
    with pytest.raises(InputError, match=message):
        write_safetensors(tmp_path / "m.safetensors", tensors)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_weights_and_no_part_of_the_new_ones(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no file may grow beyond this
    try:
        with pytest.raises(InputError, match=r"m.safetensors: cannot be written \(File too large\)"):
            write_safetensors(path, {"x": np.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]
    assert path.read_bytes() == b"old"
