"""Where and how the networks run: compilation, dtypes, and the one XLA flag that a CPU wants."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sdjax.errors import InputError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

# What ends in pixels is computed in float32 whatever dtype a model is loaded as: a number in bfloat16 has 8 binary
# digits, and so has a pixel, of which nothing would be left for rounding on the way.
EXACT = ("vae", "depth_estimator")

# On CPU, YNNPACK's fusions are slower for these networks (a whole SD 1.5 step by a fifth, the backward pass
# of a convolution by half) and have known miscompiles, jax-ml/jax#39103.
YNN_FLAG = "--xla_cpu_experimental_ynn_fusion_type="
YNN_KNOWN = ((0, 10, 2), (0, 13, 0))  # jaxlib versions that know the flag; an unknown flag aborts the process


def quiet_cpu() -> None:
    """Turns YNNPACK's fusions off; does nothing where the flag is unknown, or XLA_FLAGS has it.

    Nor where libtpu is installed, which reads the flags too, unless JAX_PLATFORMS is cpu; nor where XLA_FLAGS is the
    name of a file, which XLA would look for under the name with the flag. Must run before JAX first touches a device.
    The user's own XLA_FLAGS are kept.
    """
    version = tuple(int(part) for part in metadata.version("jaxlib").split(".")[:3] if part.isdigit())
    flags = os.environ.get("XLA_FLAGS", "")
    other_parser = importlib.util.find_spec("libtpu") and os.environ.get("JAX_PLATFORMS", "") != "cpu"
    file = flags.strip() and not flags.lstrip().startswith("-")
    if not file and YNN_KNOWN[0] <= version < YNN_KNOWN[1] and "ynn_fusion_type" not in flags and not other_parser:
        os.environ["XLA_FLAGS"] = f"{flags} {YNN_FLAG}".strip()


def prepare() -> None:
    """What the command line sets up before JAX touches a device: `quiet_cpu`, and a cache of compiled programs.

    The cache is in the user's own cache folder, readable by no one else, since what lies there is run as code
    (jax docs, persistent_compilation_cache). JAX_COMPILATION_CACHE_DIR, where set, is left alone.
    """
    quiet_cpu()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdjax"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):
        return  # no home, or one that cannot be written, only costs the time to compile again
    if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o077):
        return  # somebody else may write there, too
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default JAX keeps only what took a second to compile; a cold start is mostly a dozen small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def require_device() -> None:
    """InputError where JAX finds no device to compute on, such as none of the kind that JAX_PLATFORMS asks for."""
    try:
        jax.devices()
    except Exception as error:  # a missing plugin, library or card: each raises its own, one an AssertionError
        asked = os.environ.get("JAX_PLATFORMS") or "not set"
        reason = str(error) or type(error).__name__
        raise InputError(f"JAX_PLATFORMS: is {asked}, and no device is there; cpu always is ({reason})") from error


PICTURES = "pictures"  # the only axis of a mesh: a batch is cut along it


def device_mesh(devices: int) -> Mesh:
    """The first `devices` of this process in a row; InputError where it has fewer."""
    found = jax.local_devices()
    if not (isinstance(devices, (int, np.integer)) and 1 <= devices <= len(found)):
        raise InputError(
            f"devices: found {devices}, expected 1 to {len(found)}, all there are ({found[0].platform}); on a CPU"
            " XLA_FLAGS=--xla_force_host_platform_device_count=8 pretends to have 8"
        )
    return Mesh(np.array(found[:devices]), (PICTURES,), axis_types=(AxisType.Auto,))


def spread_rows(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays with a row for each picture, cut among the devices; the last row is repeated until all have as many."""
    if mesh is None:
        return tree

    def cut(leaf: Any) -> jax.Array:
        rows = np.minimum(np.arange(-(-len(leaf) // mesh.size) * mesh.size), len(leaf) - 1)
        return jax.device_put(leaf[rows], NamedSharding(mesh, PartitionSpec(PICTURES)))

    return jax.tree.map(cut, tree)


def as_dtype(name: Any) -> jnp.dtype:
    """The JAX dtype of "float32", "bfloat16", "float16" or of a dtype itself; InputError for any other."""
    known = {jnp.dtype(value): value for value in DTYPES.values()}
    try:
        return jnp.dtype(known[jnp.dtype(DTYPES.get(name, name) if isinstance(name, str) else name)])
    except (KeyError, TypeError):
        raise InputError(f"dtype: found {name!r}, expected one of {', '.join(DTYPES)}") from None


def dtype_of(part: str, dtype: Any) -> jnp.dtype:
    """The dtype of one network of a model that is loaded as `dtype`."""
    return jnp.dtype(jnp.float32) if part in EXACT else as_dtype(dtype)


def compiled(*static: str) -> Callable[[Callable], Callable]:
    """`jax.jit` in which float32 is float32 on every platform; `static` are the names of static arguments.

    By default a TPU rounds the factors of a float32 product to bfloat16, and a GPU to TF32 where it has that. A CPU
    does not, and products of bfloat16 are the same either way.
    """

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def exact(*args: Any, **kwargs: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return function(*args, **kwargs)

        return jax.jit(exact, static_argnames=static)

    return decorate


@compiled("graph", "method", "static")
def _call(graph: nnx.GraphDef, method: str, static: tuple, state: nnx.State, args: tuple) -> Any:
    return getattr(nnx.merge(graph, state), method)(*args, **dict(static))


@jax.tree_util.register_static
class Structure(nnx.GraphDef):
    """A module's structure with its hash at hand; flax counts that anew for every call, a second in 50 steps."""

    __slots__ = ("_hash",)

    def __init__(self, graph: nnx.GraphDef):
        super().__init__(graph.nodes, graph.attributes, graph.num_leaves)
        object.__setattr__(self, "_hash", hash(graph))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple:
        return Structure, (nnx.GraphDef(self.nodes, self.attributes, self.num_leaves),)


class Network:
    """A module as a compiled function of arrays: its structure apart from its weights.

    Calling it, or calling a method through `run`, compiles once for each shape. Keyword arguments are static.
    """

    def __init__(self, graph: nnx.GraphDef, state: nnx.State, config: Any):
        self.graph, self.state, self.config = Structure(graph), state, config

    @classmethod
    def of(cls, module: nnx.Module) -> Network:
        """The network of a module that holds its weights."""
        return cls(*nnx.split(module), module.config)

    @property
    def module(self) -> nnx.Module:
        """The module itself, uncompiled, for looking inside."""
        return nnx.merge(self.graph, self.state)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state))

    def placed(self, mesh: Mesh, shard: bool = False) -> Network:
        """The same network on every device of a mesh; where `shard` is true, every matrix and kernel cut among them."""

        def place(leaf: jax.Array) -> jax.Array:
            cut = shard and leaf.ndim > 1 and leaf.shape[-1] % mesh.size == 0
            spec = PartitionSpec(*[None] * (leaf.ndim - 1), PICTURES) if cut else PartitionSpec()
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        return type(self)(self.graph, jax.tree.map(place, self.state), self.config)

    def run(self, method: str, *args: Any, **static: Any) -> Any:
        """The result of a method of the module, compiled."""
        return _call(self.graph, method, tuple(sorted(static.items())), self.state, args)

    def __call__(self, *args: Any, **static: Any) -> Any:
        return self.run("__call__", *args, **static)


class TextNetwork(Network):
    """Ids int32 [b, 77] to hidden states [b, 77, d]; `embed` gives the sentences' vectors [b, p]."""

    def embed(self, ids: Any) -> jax.Array:
        return self.run("embed", ids)


class VAENetwork(Network):
    """`encode` pictures [b, H, W, 3] to a posterior, `decode` unscaled latents [b, H/f, W/f, z] to pictures."""

    def encode(self, pictures: Any) -> Any:
        return self.run("encode", pictures)

    def decode(self, latents: Any) -> jax.Array:
        return self.run("decode", latents)
