"""Fixtures: two small random models, and their files in every layout."""

import shutil

import pytest
from safetensors.numpy import load_file, save_file
from small_models import OPENAI, OPENCLIP, model

from sdjax.checkpoint.export import to_diffusers, to_original
from sdjax.checkpoint.native import save
from sdjax.checkpoint.reader import SafetensorsFile


@pytest.fixture(scope="session")
def openai():
    return model(OPENAI)


@pytest.fixture(scope="session")
def openclip():
    return model(OPENCLIP)


@pytest.fixture(scope="session")
def written(openai, openclip, tmp_path_factory):
    """Both models in the three layouts, to be read or copied, never changed."""
    folder = tmp_path_factory.mktemp("written")
    for name, sd in (("openai", openai), ("openclip", openclip)):
        to_original(sd, folder / f"{name}.safetensors")
        to_diffusers(sd, folder / f"{name}-diffusers")
        save(sd, folder / f"{name}-own")
    return folder


@pytest.fixture
def original(written, tmp_path):
    """A file in the original layout that a change made of `tensors` or of `metadata`."""
    def changed(change=None, name="openai", metadata=None):
        source = written / f"{name}.safetensors"
        tensors = load_file(source)
        if change:
            change(tensors)
        file = SafetensorsFile(source)
        save_file(tensors, tmp_path / "model.safetensors", file.metadata if metadata is None else metadata)
        return tmp_path / "model.safetensors"

    return changed


@pytest.fixture
def folder(written, tmp_path):
    def copied(name):
        return shutil.copytree(written / name, tmp_path / name)

    return copied
