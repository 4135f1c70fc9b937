"""Checks of lesson 0; each says what to think about where an answer is wrong."""

from __future__ import annotations

from lesson import report


def check_latent_shape(answer) -> bool:
    found = answer(512, 768, 8, 4)
    if found is ...:
        return report(False, "return three numbers: height, width and channels of the latent.")
    found = tuple(found)
    if found == (4, 64, 96):
        return report(False, "that is torch's order; here the channels come last.")
    if found == (96, 64, 4):
        return report(False, "height comes before width.")
    if any(isinstance(n, float) for n in found):
        return report(False, f"found {found}. A shape is made of whole numbers: divide with //.")
    return report(found == (64, 96, 4), f"found {found} for 512 x 768 pixels, a factor of 8 and 4 channels. The factor "
                  "divides each side.")


def check_seen_by_unet(answer) -> bool:
    found = answer(50, 7.5)
    if found is ...:
        return report(False, "return a number; count what one step sees, then the steps.")
    if found == 50:
        return report(False, "with guidance each step sees the latent twice, with the text and without.")
    if found != 100:
        return report(False, f"found {found} for 50 steps with guidance. Each step sees two latents.")
    return report(answer(50, 1.0) == 50, "without guidance (scale 1) each step sees only one.")


def check_order(answer) -> bool:
    found = answer()
    if found is ...:
        return report(False, 'return a list of four names, such as ["unet", ...].')
    found = [name.removesuffix(".py") for name in found]
    right = ["tokenizer", "clip", "unet", "vae"]
    if sorted(found) != sorted(right):
        return report(False, f"found {found}, expected the four names, each once.")
    if found.index("vae") < found.index("unet"):
        return report(False, "the UNet works on latents; what turns the last of them into a picture?")
    if found.index("clip") < found.index("tokenizer"):
        return report(False, "clip.py takes ids. Who makes them?")
    return report(found == right, "the UNet reads the text embedding, so this must be there first.")
