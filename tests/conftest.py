"""The tests compile hundreds of programs and run each once: compiling without optimising halves their time."""

import jax

jax.config.update("jax_disable_most_optimizations", True)
