"""The tests compile hundreds of programs and run each once, so that how long compiling takes is what counts here.

What one file has compiled, the next ones find, in whichever worker they run. And they run on a processor that pretends
to be eight devices, so that pictures can be spread over them.
"""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from importlib import metadata

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if metadata.version("jaxlib") == "0.10.2":  # a flag that another one does not know would abort the process
    # By LLVM alone and in one piece: half the time that the training step of a small UNet takes to compile.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the processes that tests start, too
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the workers have it from the process that starts them
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sdjax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import pytest
from jaxtyping import install_import_hook

# Tracing makes hundreds of thousands of small objects that live on: looking for cycles among them every 700 is a tenth
# of the time.
gc.set_threshold(100_000, 20, 20)

# The shapes and dtypes in the signatures of the networks are checked, here alone.
NETWORKS = ("attention", "clip", "convolution", "layers", "midas", "unet", "vae")
install_import_hook([f"sdjax.{name}" for name in NETWORKS], "beartype.beartype")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs `sdjax ARGUMENTS` in an empty folder: (exit code, stdout, stderr)."""
    from sdjax import cli  # after the hook above

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.common, "prepare", lambda **options: None)

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
