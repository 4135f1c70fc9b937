"""Checks of lesson 3; each says what to think about where an answer is wrong."""

from __future__ import annotations

from lesson import report


def check_count_pairs(answer) -> bool:
    found = answer({"aba": [1, 2, 1], "ab": [1, 2], "b": [2]}, {"aba": 3, "ab": 10, "b": 5})
    if found is ...:
        return report(False, "go over the words, and over each word's neighbours with itertools.pairwise.")
    found = dict(found)
    if found == {(1, 2): 2, (2, 1): 1}:
        return report(False, "each word counts once here; a word that occurs ten times counts ten times.")
    if any(len(set(pair)) == 2 and pair[::-1] not in found for pair in found) or (2, 1) not in found:
        return report(False, f"found {found}. (1, 2) and (2, 1) are different pairs, and both occur.")
    return report(found == {(1, 2): 13, (2, 1): 3}, f"found {found}, expected {{(1, 2): 13, (2, 1): 3}}.")


def check_fit(answer) -> bool:
    found = answer([5, 6], 1, 2, 0, 6)
    if found is ...:
        return report(False, "return a list of exactly `length` ids.")
    if list(found) != [1, 5, 6, 2, 0, 0]:
        return report(False, f"found {list(found)} for ids 5, 6 in 6 places, expected [1, 5, 6, 2, 0, 0].")
    found = list(answer(list(range(10, 20)), 1, 2, 0, 6))
    if len(found) != 6:
        return report(False, f"a prompt of 10 ids gives a row of {len(found)}, expected 6.")
    if found[-1] != 2:
        return report(False, f"found {found}: the end token was cut off. Cut the prompt, then put the end behind it.")
    return report(found == [1, 10, 11, 12, 13, 2], f"found {found}, expected [1, 10, 11, 12, 13, 2].")


def check_lower_turkish(answer) -> bool:
    found = answer("IŞIK İZMİR Küp")
    if found is ...:
        return report(False, "str.replace for the two letters, and str.lower for the rest. In which order?")
    if "\u0307" in found:
        return report(False, "there is a dot left over: str.lower makes two characters of İ, so replace it before.")
    if "işik" in found:
        return report(False, "after str.lower an I cannot be told from an i: replace it before.")
    return report(found == "ışık izmir küp", f"found {found!r}, expected 'ışık izmir küp'.")
