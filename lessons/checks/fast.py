"""Checks of lesson 13; each says what to think about where an answer is wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from lesson import report


def check_repeated(answer) -> bool:
    body = lambda x: 0.5 * x + 1.0
    found = answer(body, jnp.zeros(3), 4)
    if found is ...:
        return report(False, "jax.lax.scan(f, x, None, length=steps), where f(carry, _) gives (carry, None).")
    if isinstance(found, tuple):
        return report(False, "scan gives the last carry and what was collected; return the carry alone.")
    if not jnp.allclose(found, 1.875):
        return report(False, f"from 0, four times x / 2 + 1 is 1.875, found {found[0]}.")
    lengths = [len(str(jax.make_jaxpr(lambda x, n=n: answer(body, x, n))(jnp.zeros(3)))) for n in (10, 90)]
    return report(lengths[1] < 2 * lengths[0],
                  "the numbers are right, but the program grows with the steps: a Python loop is unrolled.")


def check_bytes_of_logits(answer) -> bool:
    found = answer(64, 8, 1)
    if found is ...:
        return report(False, "heads times queries times keys times 4 bytes; how many queries has a side of 64?")
    right = 2 * 8 * 64**4 * 4
    for factor, word in ((2, "guidance asks the network for two predictions of each picture."),
                         (2 * 64**2, "every latent pixel is a query and a key: side^2 of each."),
                         (8, "a float32 has 4 bytes, and guidance doubles the batch."),
                         (4, "a float32 has 4 bytes.")):
        if found * factor == right:
            return report(False, word)
    if found != right:
        return report(False, f"found {found:,}, expected {right:,} for a side of 64, 8 heads and one picture.")
    return report(answer(32, 4, 3) == 3 * 2 * 4 * 32**4 * 4, "right for one picture; logits grow with the batch too.")


def check_programs_needed(answer) -> bool:
    base = {"height": 512, "width": 512, "num_images": 1, "steps": 50, "guidance_scale": 7.5, "seed": 0}
    # So many seeds and scales that no other choice of settings comes to the same number.
    requests = [base | {"seed": i} for i in range(12)] + [base | {"guidance_scale": 1.5 + i} for i in range(12)] + [
        base | {"steps": 20}, base | {"width": 768}, base | {"num_images": 4}, base | {"num_images": 4, "seed": 9},
        base | {"height": 768},
    ]
    found = answer(requests)
    if found is ...:
        return report(False, "count the different sets of those settings that are shapes.")
    return report(found == 5, {
        len(requests): "one for each request; values such as the seed do not compile anew.",
        4: "found 4; is a picture of 512 x 768 the same shape as one of 768 x 512? Does the batch count? And the "
           "number of steps, is there an array of that length?",
        1: "found 1; a program fits one shape only.",
    }.get(found, f"found {found}; which of the settings change the shape of an array in the loop?"))
