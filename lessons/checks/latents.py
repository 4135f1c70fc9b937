"""Checks of lesson 1; each says what to think about where an answer is wrong."""

from __future__ import annotations

import math

from lesson import report


def check_looks(answer) -> bool:
    found = answer(512, 8)
    if found is ...:
        return report(False, "return a number: places looking, times places looked at.")
    if found == 64**2:
        return report(False, "that is the number of places; each of them looks at all of them.")
    if found == 512**4:
        return report(False, "that is without the VAE: a place stands for f x f pixels.")
    return report(found == 64**4 and answer(64, 1) == 64**4,
                  f"found {found:,} for 512 px at a factor of 8, expected {64**4:,}.")


def check_fewer_numbers(answer) -> bool:
    found = answer(8, 4)
    if found is ...:
        return report(False, "return a ratio: what f x f pixels hold, by what one place of the latent holds.")
    if math.isclose(found, 64):
        return report(False, "that counts places; a pixel has 3 numbers and a place of the latent z.")
    if math.isclose(found, 6):
        return report(False, "f divides the height and the width, so it counts twice.")
    return report(math.isclose(found, 48) and math.isclose(answer(4, 4), 12),
                  f"found {found} for f = 8, z = 4. A block of f x f x 3 numbers becomes z numbers.")


def check_largest_side(answer) -> bool:
    found = answer(1.0)
    if found is ...:
        return report(False, "8 heads, 4 bytes a number: solve 8 * 4 * (side / 8) ** 4 <= bytes, then round down.")
    if found % 64:
        return report(False, f"found {found}, which is not a multiple of 64.")
    size = lambda side: 8 * 4 * (side // 8) ** 4
    for gigabytes in (1.0, 10.0, 80.0):
        found = answer(gigabytes)
        if size(found) > gigabytes * 1e9:
            return report(False, f"{found} px need {size(found) / 1e9:.2f} GB, more than the {gigabytes:g} allowed.")
        if size(found + 64) <= gigabytes * 1e9:
            return report(False, f"{gigabytes:g} GB: found {found}, but {found + 64} px fit as well.")
    return report(True, "")
