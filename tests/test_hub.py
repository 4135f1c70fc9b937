"""Released models: the right bytes or none. No network: a stand-in for huggingface_hub writes the files."""

import hashlib
import inspect
import sys
import types
from pathlib import Path

import pytest

from sdjax.checkpoint.hub import RELEASED, Release, download
from sdjax.errors import InputError

WEIGHTS = b"these are the weights"


@pytest.fixture
def tiny(monkeypatch):
    """A release of 21 bytes, called tiny."""
    release = Release("somebody/model", "tiny.safetensors", 21, hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setitem(RELEASED, "tiny", release)


@pytest.fixture
def serve(monkeypatch):
    """serve(bytes) makes the stand-in deliver them, serve(exception) makes it fail; calls are recorded."""
    calls = []

    def serve(answer):
        def hf_hub_download(repo_id, filename, local_dir):
            calls.append((repo_id, filename))
            if isinstance(answer, Exception):
                raise answer
            Path(local_dir).mkdir(parents=True, exist_ok=True)
            (Path(local_dir) / filename).write_bytes(answer)

        module = types.ModuleType("huggingface_hub")
        module.hf_hub_download = hf_hub_download
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        return calls

    return serve


def test_a_download_lands_in_the_folder(tiny, serve, tmp_path):
    calls = serve(WEIGHTS)
    path = download("tiny", tmp_path / "new")
    assert path == tmp_path / "new" / "tiny.safetensors"
    assert path.read_bytes() == WEIGHTS
    assert calls == [("somebody/model", "tiny.safetensors")]


def test_what_is_there_and_right_is_not_fetched_again(tiny, serve, tmp_path):
    calls = serve(WEIGHTS)
    assert download("tiny", tmp_path) == download("tiny", tmp_path)
    assert len(calls) == 1


def test_what_is_there_needs_no_huggingface_hub(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # None makes the import fail
    (tmp_path / "tiny.safetensors").write_bytes(WEIGHTS)
    assert download("tiny", tmp_path).exists()


def test_without_huggingface_hub_the_error_says_how_to_get_it(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r'pip install "\.\[hub\]"'):
        download("tiny", tmp_path)


@pytest.mark.parametrize(
    ("served", "message"),
    [
        (b"these are", "has 9 bytes, expected 21"),
        (b"those are the weights", "has the sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"),
    ],
)
def test_a_download_of_other_bytes_is_deleted(tiny, serve, tmp_path, served, message):
    serve(served)
    with pytest.raises(InputError, match=message):
        download("tiny", tmp_path)
    assert not (tmp_path / "tiny.safetensors").exists()


def test_a_file_of_the_users_is_never_deleted(tiny, serve, tmp_path):
    calls = serve(WEIGHTS)
    mine = tmp_path / "tiny.safetensors"
    mine.write_bytes(b"my own fine-tuned one")
    with pytest.raises(InputError, match="move it away"):
        download("tiny", tmp_path)
    assert mine.read_bytes() == b"my own fine-tuned one"
    assert calls == []


def test_a_failing_network_is_one_line(tiny, serve, tmp_path):
    serve(ConnectionError("no route\nto host"))
    with pytest.raises(InputError, match=r"tiny.safetensors: not downloaded to .*\(no route to host\)"):
        download("tiny", tmp_path)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="'sd3' is not known, expected one of: sd15, sd21-base, sd21"):
        download("sd3", tmp_path)


def test_only_safetensors_are_fetched():
    assert {Path(release.file).suffix for release in RELEASED.values()} == {".safetensors"}
    assert {len(bytes.fromhex(release.sha256)) for release in RELEASED.values()} == {32}


def test_the_stand_in_takes_what_the_real_one_takes():
    real = pytest.importorskip("huggingface_hub")
    inspect.signature(real.hf_hub_download).bind(repo_id="a/b", filename="c", local_dir="d")
