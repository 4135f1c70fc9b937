"""Solutions of lesson 1."""

from checks import latents as exercise


def looks(side, f):
    return ((side // f) ** 2) ** 2


def fewer_numbers(f, z):
    return f * f * 3 / z


def largest_side(gigabytes):
    side = 8 * (gigabytes * 1e9 / (8 * 4)) ** 0.25
    return int(side // 64) * 64


assert exercise.check_looks(looks)
assert exercise.check_fewer_numbers(fewer_numbers)
assert exercise.check_largest_side(largest_side)
# A wrong answer is told so.
assert not exercise.check_looks(lambda side, f: (side // f) ** 2)
assert not exercise.check_fewer_numbers(lambda f, z: f * f)
assert not exercise.check_largest_side(lambda gigabytes: 1024)
