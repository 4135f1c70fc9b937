"""Attention: softmax(q k^T / sqrt(d)) v, the whole at once, a block of keys at a time, or by the GPU's own kernel.

"Attention Is All You Need", arXiv:1706.03762, equation 1. All ways give the same numbers; they
differ in memory. At 64x64 latents the logits of SD 1.5's finest level are 8 heads x 4096 x 4096
floats, 0.5 GB a picture, of which the blockwise way holds 8 MB. `paths` says which is taken.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from sdjax import paths
from sdjax.layers import Linear

BLOCK = 512  # keys; 256 took a CPU 1.04 times as long, 1,024 no less


def split_heads(x: Float[Array, "b n c"], heads: int) -> Float[Array, "b h n d"]:
    """Cuts the channels into heads, c = h d."""
    b, n, c = x.shape
    return x.reshape(b, n, heads, c // heads).transpose(0, 2, 1, 3)


def merge_heads(x: Float[Array, "b h n d"]) -> Float[Array, "b n c"]:
    """Puts the heads side by side again."""
    b, h, n, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, h * d)


def probabilities(
    q: Float[Array, "b h n d"], k: Float[Array, "b h m d"], mask: Bool[Array, "n m"] | None = None
) -> Float[Array, "b h n m"]:
    """How much each query looks at each key, each row summing to 1; always float32.

    SD 2.1 overflows in half precision here (Stability-AI/stablediffusion README, `_ATTN_PRECISION`),
    so logits accumulate in float32 whatever the inputs are. `mask` is True where looking is allowed.
    """
    logits = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def attend_plain(
    q: Float[Array, "b h n d"], k: Float[Array, "b h m d"], v: Float[Array, "b h m e"],
    mask: Bool[Array, "n m"] | None = None,
) -> Float[Array, "b h n e"]:
    """The formula as it stands: every logit at once."""
    return jnp.einsum("bhnm,bhmd->bhnd", probabilities(q, k, mask).astype(v.dtype), v)


def attend_blockwise(
    q: Float[Array, "b h n d"], k: Float[Array, "b h m d"], v: Float[Array, "b h m e"], block: int = BLOCK
) -> Float[Array, "b h n e"]:
    """The same, one head and at most `block` keys at a time, so that no more than n * block logits are held.

    A row needs its largest logit m and the sum of its exponentials before it can be divided by that sum. The largest
    so far is kept, and beside the mixed values o, as one column more, the sum; both shrink when a larger logit turns
    up: m' = max(m, max l), o' = e^(m - m') o + e^(l - m') [v, 1] (arXiv:1805.02867, algorithm 3; FlashAttention,
    arXiv:2205.14135). The pictures of a batch go side by side, not in turns, so that it can be spread over devices.
    """
    return jax.vmap(partial(_one_picture, block=block))(q, k, v)


def _one_picture(
    q: Float[Array, "h n d"], k: Float[Array, "h m d"], v: Float[Array, "h m e"], block: int
) -> Float[Array, "h n e"]:
    (h, n, d), (_, m, e) = q.shape, v.shape
    count = -(-m // block)
    block = -(-m // count)  # as even as they come: 300 keys are two times 150, not 256 and 44 that are filled up
    filled = ((0, 0), (0, count * block - m), (0, 0))
    values = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    keys, values = (jnp.pad(x, filled).reshape(h, count, block, -1) for x in (k, values))
    there, scale = (jnp.arange(count * block) < m).reshape(count, block), 1 / math.sqrt(d)

    def one_head(qkv):
        queries, keys, values = qkv

        def step(carry, blocks):
            largest, mixed = carry
            keys, values, there = blocks
            # Divided by sqrt(d) in the exponent: as a step of its own it would be one more pass over the logits.
            logits = jnp.einsum("nd,md->nm", queries, keys, preferred_element_type=jnp.float32)
            logits = jnp.where(there, logits, -jnp.inf) if count * block > m else logits
            new = jnp.maximum(largest, _largest(logits))
            shrink, weights = jnp.exp((largest - new) * scale), jnp.exp((logits - new) * scale)
            added = jnp.einsum("nm,me->ne", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
            return (new, shrink * mixed + added), None

        start = jnp.full((n, 1), -jnp.inf), jnp.zeros((n, e + 1))
        (_, mixed), _ = jax.lax.scan(step, start, (keys, values, there))
        return (mixed[:, :e] / mixed[:, e:]).astype(v.dtype)

    return jax.lax.map(one_head, (q, keys, values))


def _largest(logits: Float[Array, "n m"]) -> Float[Array, "n 1"]:
    """The largest of each row, which has no gradient: whatever it is, the softmax is the same.

    Of two numbers the larger, and not `max`, whose care for NaN a CPU's compiler turns into a number at a time: by
    it the whole of attention took 1.3 times as long with AVX-512. A NaN comes out by its exponential all the same.
    Halves are compared down to 64 columns, four registers of AVX-512, since the numbers of a row take a CPU longer.
    """
    larger = lambda a, b: jnp.where(a > b, a, b)
    logits = jax.lax.stop_gradient(logits)
    while logits.shape[1] > 64 and logits.shape[1] % 2 == 0:
        logits = larger(*jnp.split(logits, 2, axis=1))
    return jax.lax.reduce(logits, np.float32(-np.inf), larger, (1,))[:, None]


def attend_cudnn(q: Array, k: Array, v: Array) -> Float[Array, "b h n d"]:
    """The same by cuDNN's fused attention, in half precision with float32 logits; its heads stand behind its rows."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn").swapaxes(1, 2)


def attend(
    q: Float[Array, "b h n d"], k: Float[Array, "b h m d"], v: Float[Array, "b h m e"],
    mask: Bool[Array, "n m"] | None = None,
) -> Float[Array, "b h n e"]:
    """Attention by the way that `paths` gives for this shape and dtype; the kernel where it is compiled for a GPU."""
    if mask is not None:
        return attend_plain(q, k, v, mask)
    own = attend_blockwise if paths.blockwise(q.shape, k.shape[2]) else attend_plain
    if paths.cudnn(q.shape[-1], q.dtype):
        return jax.lax.platform_dependent(q, k, v, cuda=attend_cudnn, default=own)
    return own(q, k, v)


class Attention(nnx.Module):
    """Self-attention, or cross-attention where a context is given: queries from x, keys and values from it.

    [b, n, c] and context [b, m, context_width] to [b, n, c]. diffusers' names; q, k and v have a bias
    in the VAE and none in the UNet (ldm/modules/attention.py CrossAttention).
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None, *, bias: bool = False, rngs):
        self.heads = heads
        context_width = context_width or width
        self.to_q = Linear(width, width, use_bias=bias, rngs=rngs)
        self.to_k = Linear(context_width, width, use_bias=bias, rngs=rngs)
        self.to_v = Linear(context_width, width, use_bias=bias, rngs=rngs)
        self.to_out = nnx.List([Linear(width, width, rngs=rngs)])

    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b m e"] | None = None, probs: bool = False
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b h n m"] | None]:
        """The mixed values, and the probabilities where `probs` asks for them, else None."""
        context = x if context is None else context
        q, k, v = (split_heads(y, self.heads) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        if not probs:
            return self.to_out[0](merge_heads(attend(q, k, v))), None
        p = probabilities(q, k)
        mixed = jnp.einsum("bhnm,bhmd->bhnd", p.astype(v.dtype), v)
        return self.to_out[0](merge_heads(mixed)), p
