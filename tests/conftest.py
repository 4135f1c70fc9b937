"""The tests compile hundreds of programs and run each once: compiling without optimising halves their time.

What one file has compiled, the next ones find, in whichever worker they run. And they run on a processor that pretends
to be eight devices, so that pictures can be spread over them.
"""

import atexit
import os
import shutil
import sys
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

os.environ.setdefault("JAX_PLATFORMS", "cpu")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the workers have it from the process that starts them
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sdjax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# The shapes and dtypes in the signatures of the networks are checked, here alone.
NETWORKS = ("attention", "clip", "convolution", "layers", "midas", "unet", "vae")
install_import_hook([f"sdjax.{name}" for name in NETWORKS], "beartype.beartype")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs `sdjax ARGUMENTS` in an empty folder: (exit code, stdout, stderr)."""
    from sdjax import cli  # after the hook above

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.common, "prepare", lambda: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sdjax", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call
