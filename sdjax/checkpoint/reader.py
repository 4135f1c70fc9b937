"""Safetensors in and out, strictly, one tensor in memory at a time.

The format (huggingface/safetensors, README.md): 8 bytes little-endian header length, a JSON header
{name: {dtype, shape, data_offsets}, "__metadata__": {str: str}}, then the tensors' bytes without a gap.
What a header claims is checked against the file before any weight is read, so that a damaged download is
an error and never a picture. Pickles (.ckpt, .pt, .bin) can run any code when opened: they are refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from sdjax.errors import InputError
from sdjax.files import DoubledKey, each_once, written_whole

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# A float is NaN or infinite exactly when all its exponent bits are set. On half precision, integer
# instructions see that ten times faster than np.isfinite does.
EXPONENTS = {
    DTYPES["F64"]: np.uint64(0x7FF0_0000_0000_0000),
    DTYPES["F32"]: np.uint32(0x7F80_0000),
    DTYPES["F16"]: np.uint16(0x7C00),
    DTYPES["BF16"]: np.uint16(0x7F80),
}
MAX_HEADER = 100_000_000  # bytes; the limit of the format's own library
MAX_RANK = 32
MAX_ELEMENTS = 2**59  # beyond any file, and times 8 bytes still inside NumPy's 64-bit sizes
CHUNK = 2**18  # bytes read, checked and cast at a time: small enough to stay in a core's cache
ALIGNMENT = 64  # bytes; on a CPU, JAX takes an array that begins at a multiple of this as it is, and copies another

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
CONVERT = (
    "import torch, safetensors.torch as s; d = torch.load('IN.ckpt', map_location='cpu', weights_only=True);"
    " d = d.get('state_dict', d); s.save_file({k: v.contiguous().clone() for k, v in d.items()"
    " if torch.is_tensor(v)}, 'OUT.safetensors')"
)
AGAIN = "the file is damaged or incomplete: download it again"

# What a file claims, as a message can show it: one line, printable, not too long.
_brief = reprlib.Repr()
_brief.maxstring = 120
_show = _brief.repr


@dataclass(frozen=True)
class _Entry:
    """Where one tensor lies: bytes `begin` to `end`, counted from the end of the header."""

    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int
    end: int


class SafetensorsFile:
    """One .safetensors file: its header read and checked, its tensors read when asked for.

    InputError if the header is not in every respect what the format demands. Holds no file open.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header, self._start, size = _read_header(self.path)
        self.metadata: dict[str, str] = _metadata(self.path, header.pop("__metadata__", {}))
        entries = {name: _entry(self.path, name, claim, size - self._start) for name, claim in header.items()}
        # In the order of the file, so that reading every tensor reads the disk from front to back.
        self._entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
        self._check_tiling(size - self._start)

    def _check_tiling(self, length: int) -> None:
        before, end = "the header", 0
        for name, entry in self._entries.items():
            if entry.begin != end:
                what = "overlaps" if entry.begin < end else "leaves a gap after"
                raise InputError(
                    f"{self.path}: tensor {_show(name)} {what} {before}, it begins at byte {entry.begin},"
                    f" expected {end}; {AGAIN}"
                )
            before, end = _show(name), entry.end
        if end != length:
            raise InputError(
                f"{self.path}: holds {length} bytes of tensors, expected {end} by the header; {AGAIN}"
            )

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise InputError(f"{self.path}: has no tensor {_show(name)} among its {len(self._entries)}")
        return self._entries[name]

    def names(self) -> list[str]:
        """The tensors' names, in the order in which they lie in the file."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of tensor `name`; InputError if there is none."""
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        """The dtype in which the file holds tensor `name`; InputError if there is none."""
        return self._entry(name).dtype

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """Tensor `name` as a new array, cast to `dtype` on the way where one is given.

        Never holds more than the result and two chunks. InputError if there is no such tensor, or it holds
        NaN or infinity once cast (so also where float16 is asked for and a value is above 65504).
        """
        entry = self._entry(name)
        result = _empty(entry.shape, np.dtype(entry.dtype if dtype is None else dtype))
        flat = result.reshape(-1)
        step = CHUNK // max(entry.dtype.itemsize, result.itemsize)
        buffer = np.empty(min(step, flat.size), entry.dtype)
        bad = 0
        try:
            with open(self.path, "rb") as file:
                file.seek(self._start + entry.begin)
                for at in range(0, flat.size, step):
                    piece = flat[at : at + step]
                    stored = piece if piece.dtype == entry.dtype else buffer[: piece.size]
                    if file.readinto(stored.view(np.uint8)) != stored.nbytes:
                        raise InputError(f"{self.path}: became shorter while tensor {_show(name)} was read")
                    if stored.dtype == np.bool_ and stored.view(np.uint8).max() > 1:
                        raise InputError(f"{self.path}: tensor {_show(name)} is BOOL, expected bytes 0 and 1")
                    if stored is not piece:
                        with np.errstate(over="ignore", invalid="ignore"):  # counted in the next line
                            piece[:] = stored
                    bad += _count_non_finite(piece if piece.dtype in EXPONENTS else stored)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error
        if bad:
            raise InputError(
                f"{self.path}: tensor {_show(name)} holds {bad} NaN or infinite values of {flat.size} as"
                f" {result.dtype}, expected finite numbers; they are damaged, or too large for this dtype"
            )
        return result


class ShardedFile:
    """Several .safetensors files that a *.safetensors.index.json ties together, read like one.

    InputError if the index and the files beside it do not agree on every tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        size = _regular_size(self.path)
        if size > MAX_HEADER:
            raise InputError(f"{self.path}: an index of {size} bytes, expected at most {MAX_HEADER}")
        weight_map = _json_object(self.path, "the index", _read_bytes(self.path, size)).get("weight_map")
        if not (isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values())):
            raise InputError(f'{self.path}: expected a "weight_map" from tensor names to file names')
        self.metadata: dict[str, str] = {}
        self._files: dict[str, SafetensorsFile] = {}
        for shard in sorted(set(weight_map.values())):
            # No slash, so no way out of this folder.
            if not re.fullmatch(r"[\w.-]+\.safetensors", shard):
                raise InputError(
                    f"{self.path}: names the file {_show(shard)}, expected a .safetensors file beside it"
                )
            file = SafetensorsFile(self.path.parent / shard)
            mapped = {name for name, target in weight_map.items() if target == shard}
            for name in sorted(mapped.symmetric_difference(file.names())):
                found = "lacks" if name in mapped else "holds, against the index,"
                raise InputError(f"{file.path}: {found} tensor {_show(name)}; expected what {self.path} says")
            self.metadata |= file.metadata
            self._files |= dict.fromkeys(file.names(), file)

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            raise InputError(f"{self.path}: has no tensor {_show(name)} among its {len(self._files)}")
        return self._files[name]

    def names(self) -> list[str]:
        """The tensors' names, file by file."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of tensor `name`; InputError if there is none."""
        return self._file(name).shape(name)

    def dtype(self, name: str) -> np.dtype:
        """The dtype in which tensor `name` is stored; InputError if there is none."""
        return self._file(name).dtype(name)

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """Tensor `name` as a new array, as SafetensorsFile.read gives it."""
        return self._file(name).read(name, dtype)


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a .safetensors file that appears whole or not at all.

    `tensors`: name to anything with `shape` and `dtype` that NumPy can make an array of. Each becomes one
    only in its turn, so device arrays, transposed views and lazy tensors are never in memory all at once
    (the format's own library wants all of them contiguous, together). InputError if the place cannot be
    written, the disk is full, a dtype is not in DTYPES, or a tensor holds NaN or infinity.
    """
    # Widest dtypes first: every tensor then begins at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        shape, dtype = tensors[name].shape, np.dtype(tensors[name].dtype)
        if dtype not in CODES or name == "__metadata__":
            raise InputError(
                f"{path}: cannot hold tensor {_show(name)} of {dtype}, expected one of {list(DTYPES)}"
            )
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as part, open(part, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            array = np.ascontiguousarray(tensors[name]).reshape(-1)
            if bad := _count_non_finite(array):
                raise InputError(
                    f"{path}: not written, {bad} of {array.size} values of tensor {_show(name)} are NaN or"
                    " infinite, expected finite numbers"
                )
            file.write(array.view(np.uint8))


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As np.empty, at a multiple of ALIGNMENT."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
    return raw[begin : begin + size].view(dtype).reshape(shape)


def _regular_size(path: Path) -> int:
    if not os.path.isfile(path):
        found = "is not a file" if os.path.lexists(path) else "does not exist"
        raise InputError(f"{path}: {found}, expected a .safetensors file")
    return os.path.getsize(path)


def _read_bytes(path: Path, count: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _json_object(path: Path, what: str, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=each_once)
    except DoubledKey as error:
        raise InputError(f"{path}: {what} has {_show(error.key)} twice, expected once; {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {what} is not JSON in UTF-8 ({error}); {AGAIN}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: {what} is a JSON {type(value).__name__}, expected an object; {AGAIN}")
    return value


def _pickle_refused(path: Path) -> InputError:
    return InputError(
        f"{path}: is a pickle, which can run any code when opened, so it is never unpickled; take the"
        " .safetensors file that every released Stable Diffusion model also has, or convert this one where"
        f' you trust it, with torch 2.6 or newer: python -c "{CONVERT}"'
    )


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the tensors begin, and the file's size."""
    size = _regular_size(path)
    if path.suffix.lower() in PICKLES:
        raise _pickle_refused(path)
    start = _read_bytes(path, 64)
    # A header begins with a brace at byte 8, which no pickle and no zip has there.
    if start[8:9] != b"{":
        if start.startswith(b"PK") or start[:1] == b"\x80":
            raise _pickle_refused(path)
        if start.startswith(b"version https://git-lfs"):
            raise InputError(
                f"{path}: is a Git LFS pointer, expected the weights; fetch them there with: git lfs pull"
            )
        raise InputError(f"{path}: {size} bytes that do not begin as a safetensors file does; {AGAIN}")
    (length,) = struct.unpack("<Q", start[:8])
    if length > min(MAX_HEADER, size - 8):
        raise InputError(
            f"{path}: a header of {length} bytes, expected at most {min(MAX_HEADER, size - 8)}; {AGAIN}"
        )
    return _json_object(path, "the header", _read_bytes(path, 8 + length)[8:]), 8 + length, size


def _metadata(path: Path, claim: Any) -> dict[str, str]:
    if not (isinstance(claim, dict) and all(isinstance(value, str) for value in claim.values())):
        raise InputError(f"{path}: __metadata__ is {_show(claim)}, expected an object of strings; {AGAIN}")
    return claim


def _entry(path: Path, name: str, claim: Any, length: int) -> _Entry:
    """One tensor's line of the header, checked by itself; `length`: bytes of tensors in the file."""

    def require(true: bool, found: Any, expected: str) -> None:
        if not true:
            raise InputError(f"{path}: tensor {_show(name)} has {_show(found)}, expected {expected}; {AGAIN}")

    def sizes(value: Any) -> bool:
        return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)

    fields = {"dtype", "shape", "data_offsets"}
    require(isinstance(claim, dict) and set(claim) == fields, claim, f"exactly the fields {sorted(fields)}")
    code, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if isinstance(code, str) and re.fullmatch(r"[UF]\d{1,2}(_\w{1,8})?", code) and code not in DTYPES:
        raise InputError(
            f"{path}: tensor {_show(name)} is stored as {code}, expected {', '.join(DTYPES)}; take the release in half"
            " or full precision"
        )
    require(isinstance(code, str) and code in DTYPES, code, f"a dtype of {list(DTYPES)}")
    # The empty dimension of a [0, 2^62, 2^62] must not hide the others from the limit.
    require(
        sizes(shape) and len(shape) <= MAX_RANK and math.prod(max(n, 1) for n in shape) <= MAX_ELEMENTS,
        shape,
        f"a shape of at most {MAX_RANK} sizes from 0 and {MAX_ELEMENTS} elements",
    )
    require(sizes(offsets) and len(offsets) == 2, offsets, "offsets [begin, end]")
    begin, end = offsets
    require(begin <= end, offsets, "a begin before the end")
    require(end <= length, offsets, f"offsets up to {length}, where the file ends")
    count = math.prod(shape) * DTYPES[code].itemsize
    require(end - begin == count, offsets, f"{count} bytes for {code} {shape}")
    return _Entry(tuple(shape), DTYPES[code], begin, end)


def _count_non_finite(values: np.ndarray) -> int:
    """How many elements of a 1-D array are NaN or infinite; 0 for dtypes that have neither."""
    if values.dtype not in EXPONENTS:
        return 0
    mask = EXPONENTS[values.dtype]
    bits = values.view(mask.dtype)
    step = CHUNK // mask.itemsize
    pieces = (bits[at : at + step] for at in range(0, bits.size, step))
    return sum(int(np.count_nonzero((piece & mask) == mask)) for piece in pieces)
