"""Solutions of lesson 13."""

import jax
from checks import fast as exercise


def repeated(body, x, steps):
    return jax.lax.scan(lambda x, _: (body(x), None), x, None, length=steps)[0]


def bytes_of_logits(side, heads, pictures):
    return 2 * pictures * heads * (side * side) ** 2 * 4


def programs_needed(requests):
    return len({(r["num_images"], r["height"], r["width"], r["steps"]) for r in requests})


def unrolled(body, x, steps):
    for _ in range(steps):
        x = body(x)
    return x


assert exercise.check_repeated(repeated)
assert exercise.check_bytes_of_logits(bytes_of_logits)
assert exercise.check_programs_needed(programs_needed)
# A wrong answer is told so.
assert not exercise.check_repeated(unrolled)
assert not exercise.check_bytes_of_logits(lambda side, heads, pictures: pictures * heads * side**4 * 4)
assert not exercise.check_programs_needed(len)
assert not exercise.check_programs_needed(lambda requests: len({tuple(r.values())[:2] for r in requests}))
