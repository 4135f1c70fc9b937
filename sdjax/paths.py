"""By which of several equal ways attention and convolutions are computed, decided by platform, shape and dtype.

The numbers are the same up to rounding; the memory and the time are not. `SDJAX_PLAIN=1` in the environment takes the
plain way everywhere: every logit at once, every convolution as XLA has it.
"""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

PLAIN = os.environ.get("SDJAX_PLAIN", "") not in ("", "0")

# More logits than this in one call, 16 MB in float32, and the keys are taken in blocks. On 2 cores with AVX2 that took
# 0.4 to 0.7 of the plain way's time for 2^23 logits and more, and as long or longer for 2^21 and fewer.
MAX_LOGITS = 2**22
# A Winograd convolution saves multiplications and costs the transforms, so it wants many channels, and many tiles to
# use a transformed kernel on. On 2 cores with AVX2 it took 0.33 to 0.77 of the direct one's time at 4,096 pixels and
# more of 256 channels and more, 0.7 to 1 at 2,048 pixels, and up to twice as long below.
WINOGRAD_CHANNELS = 256
WINOGRAD_PIXELS = 2048  # of all pictures of the batch
# It also holds 36 numbers for every tile of 16 of its input, and as many of its output: at 512 x 512 pixels of 256
# channels 1.2 GB, at the VAE's finest level more than the rest of it.
WINOGRAD_MOST = 2**16


def blockwise(q: tuple[int, ...], keys: int) -> bool:
    """Whether queries of shape [b, h, n, d] look at so many keys block by block."""
    b, h, n, _ = q
    return b * h * n * keys > MAX_LOGITS and not PLAIN


def cudnn(d: int, dtype: jnp.dtype) -> bool:
    """Whether a GPU, where the program is compiled for one, takes heads of d by its own kernel."""
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return half and d % 8 == 0 and not PLAIN and cudnn_works(d)


def winograd(x: tuple[int, ...], kernel: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether a CPU convolves [b, h, w, i] with [3, 3, i, o] by Winograd's way."""
    many = min(kernel[2:]) >= WINOGRAD_CHANNELS and WINOGRAD_PIXELS <= x[0] * x[1] * x[2] <= WINOGRAD_MOST
    return many and jnp.dtype(dtype) == jnp.float32 and not PLAIN


@functools.cache
def cudnn_works(d: int) -> bool:
    """Whether this GPU and its libraries have cuDNN's fused attention for heads of d, a multiple of 8: asked once.

    How large a head may be depends on the card, 128 or 256 numbers (docs.nvidia.com/deeplearning/cudnn, "Scaled Dot
    Product Attention"), so it is asked, of as many queries and keys as the coarsest level of SD 1.5 has for a text.
    """
    try:
        # The question comes while another program is being traced, of which the small one must not become a part.
        with jax.ensure_compile_time_eval():
            q, k = jnp.ones((1, 64, 1, d), jnp.bfloat16), jnp.ones((1, 77, 1, d), jnp.bfloat16)
            np.asarray(jax.nn.dot_product_attention(q, k, k, implementation="cudnn"))
    except Exception:  # no such card, no such library, too old a one: each raises its own
        return False
    return True
