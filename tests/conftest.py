"""The tests compile hundreds of programs and run each once: compiling without optimising halves their time.

And they run on a processor that pretends to be eight devices, so that pictures can be spread over them.
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_disable_most_optimizations", True)
