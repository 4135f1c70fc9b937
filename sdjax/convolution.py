"""The 3x3 convolution by Winograd's minimal filtering, with four times fewer multiplications.

A tile of 4 x 4 outputs of a 3x3 kernel takes 9 * 16 multiplications for each pair of channels. As polynomials,
evaluated at 6 points a side, multiplied point by point and interpolated, it takes 6 * 6. The price: some additions for
each number of the picture and of the kernel, and rounding: about 1e-5 of the largest output in float32.
"Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, F(4x4, 3x3) of section 4.3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

M = 4  # outputs a side of a tile
SPAN = M + 2  # inputs a side
# B^T, G and A^T of section 4.3: Y = A^T [(G g G^T) * (B^T d B)] A for a tile d and a kernel g.
DATA = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1))
KERNEL = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
          (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def direct(x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "b h w o"]:
    """The convolution at stride 1, padded by 1 on all sides, as XLA has it."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def winograd(x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "b h w o"]:
    """The same, by tiles."""
    b, h, w, c = x.shape
    rows, columns = -(-h // M), -(-w // M)
    x = jnp.pad(x, ((0, 0), (1, M * rows - h + 1), (1, M * columns - w + 1), (0, 0)))

    def corner(i: int, j: int) -> Float[Array, "tiles c"]:
        """Of every tile the number in its row i and column j."""
        return x[:, i : i + M * (rows - 1) + 1 : M, j : j + M * (columns - 1) + 1 : M].reshape(-1, c)

    tiles = [[corner(i, j) for j in range(SPAN)] for i in range(SPAN)]
    down = [[_sum(row, [line[j] for line in tiles]) for j in range(SPAN)] for row in DATA]
    data = jnp.stack([_sum(row, line) for line in down for row in DATA])  # B^T d B, [36, tiles, i]

    # The others are products of matrices over both axes at once, which for these shapes is faster than sums.
    def multiplied(data: Float[Array, "p n i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "p n o"]:
        weights = (_kron(KERNEL) @ kernel.reshape(9, -1)).reshape(SPAN**2, c, -1)  # G g G^T, [36, i, o]
        return jnp.einsum("pnc,pco->pno", data, weights)

    # Without a condition, which the compiler cannot know to be always false, XLA would transform the kernels of all
    # layers first and hold them all: for SD 1.5 1.2 GB, which a step alone asks the system for each time.
    nothing = lambda data, kernel: jnp.zeros((*data.shape[:2], kernel.shape[-1]), data.dtype)
    product = jax.lax.cond(kernel[0, 0, 0, 0] > jnp.inf, nothing, multiplied, data, kernel)
    y = _kron(OUTPUT) @ product.reshape(SPAN**2, -1)  # A^T (...) A
    y = y.reshape(M, M, b, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(b, M * rows, M * columns, -1)[:, :h, :w]


def winograd_on_cpu(x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "b h w o"]:
    """`winograd` where the program is compiled for a CPU, `direct` elsewhere.

    Only the compiler knows for which platform it is: `make tpu-check` compiles for a TPU on a CPU.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=winograd, default=direct)


def _kron(matrix: tuple) -> Array:
    """The matrix that does to a flattened square what `matrix` does to its columns and then to its rows."""
    return jnp.asarray(np.kron(matrix, matrix), jnp.float32)


def _sum(factors: tuple, arrays: list[Array]) -> Array:
    """The sum of factor * array, where zeros and ones cost nothing."""
    terms = [array if f == 1 else -array if f == -1 else f * array for f, array in zip(factors, arrays) if f]
    return sum(terms[1:], terms[0])
