"""What the command line sets up before JAX starts: one flag beside the user's own, and a cache nobody else can fill."""

from __future__ import annotations

import os

import jax
import pytest

from sdjax import hardware
from sdjax.errors import InputError


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """What `prepare` tells JAX, with a cache folder in an empty home."""
    told = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.update({name: value}))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "--xla_of_the_user")
    return told


def test_the_cache_is_the_users_own_and_their_flags_are_kept(settings, tmp_path):
    hardware.prepare()
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "sdjax")
    assert (tmp_path / "sdjax").stat().st_mode & 0o777 == 0o700
    hardware.prepare()  # a second time changes nothing
    assert os.environ["XLA_FLAGS"].split().count("--xla_of_the_user") == 1
    assert os.environ["XLA_FLAGS"].count("ynn_fusion_type") <= 1


@pytest.mark.parametrize(
    ("version", "flags", "libtpu", "platforms", "expected"),
    [("0.10.2", "", False, "", hardware.YNN_FLAG), ("0.12.1", "--a", False, "", f"--a {hardware.YNN_FLAG}"),
     ("0.10.1", "--a", False, "", "--a"), ("0.13.0", "", False, "", ""),  # an unknown flag would end the process
     ("0.10.2", f"{hardware.YNN_FLAG}of_the_user", False, "", f"{hardware.YNN_FLAG}of_the_user"),
     ("0.10.2", "flags.txt", False, "", "flags.txt"),  # XLA reads flags from a file, too
     ("0.10.2", "--a", True, "", "--a"),  # libtpu reads the flags too, and does not know this one
     ("0.10.2", "--a", True, "cpu", f"--a {hardware.YNN_FLAG}")],
)
def test_the_flag_is_set_only_where_it_is_known_and_never_over_the_users_own(
    monkeypatch, version, flags, libtpu, platforms, expected
):
    monkeypatch.setattr(hardware.metadata, "version", lambda name: version)
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: libtpu or None)
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    hardware.quiet_cpu()
    assert os.environ["XLA_FLAGS"] == expected


def test_a_device_that_is_not_there_is_named(monkeypatch):
    def devices():
        raise AssertionError  # what jax 0.10.2 raises without its CUDA plugin

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(InputError, match="JAX_PLATFORMS: is cuda, and no device is there"):
        hardware.require_device()


def test_where_there_is_no_home_programs_are_compiled_each_time(settings, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(hardware.Path, "home", home)
    hardware.prepare()
    assert not settings


def test_programs_that_others_can_write_are_not_run(settings, tmp_path):
    (tmp_path / "sdjax").mkdir()
    (tmp_path / "sdjax").chmod(0o777)
    hardware.prepare()
    assert not settings


def test_a_cache_of_the_users_choice_is_left_alone(settings, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    hardware.prepare()
    assert not settings
