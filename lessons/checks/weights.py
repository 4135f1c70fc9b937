"""Checks of lesson 16; each says what to think about where an answer is wrong."""

from __future__ import annotations

import json
import struct

import numpy as np
from lesson import report


def check_shapes_in(answer) -> bool:
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "a.bias": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    found = answer(struct.pack("<Q", len(text)) + text + bytes(32))
    if found is ...:
        return report(False, "the first 8 bytes are the header's length; struct.unpack('<Q', ...) or int.from_bytes.")
    if "__metadata__" in found:
        return report(False, "__metadata__ is no tensor: leave it out.")
    if found == {"a.weight": [2, 3], "a.bias": [2]}:
        return report(False, "right, but JSON has lists; make them tuples.")
    return report(found == {"a.weight": (2, 3), "a.bias": (2,)}, f"found {found}, expected (2, 3) and (2,).")


def check_to_jax(answer) -> bool:
    draw = np.random.default_rng(0).standard_normal
    matrix, kernel, thin = draw((5, 4)), draw((5, 4, 3, 2)), draw((5, 4, 1, 1))
    found = answer(matrix)
    if found is ...:
        return report(False, "transpose; for a kernel, which of the four axes comes first, second, ...?")
    if np.shape(found) != (4, 5) or not np.allclose(found, matrix.T):
        return report(False, f"a matrix (5, 4) gave {np.shape(found)}, expected its transpose (4, 5).")
    found = answer(kernel)
    if np.shape(found) == (2, 3, 4, 5):
        return report(False, "all axes were turned round, so height and width have changed places.")
    if np.shape(found) != (3, 2, 4, 5):
        return report(False, f"a kernel (5, 4, 3, 2) gave {np.shape(found)}, expected (3, 2, 4, 5).")
    if not np.allclose(found, kernel.transpose(2, 3, 1, 0)):
        return report(False, "the shape is right, but the numbers are not in their places: transpose, do not reshape.")
    found = answer(matrix, matrix=True)
    if np.shape(found) != (4, 5):
        return report(False, f"a matrix (5, 4) with matrix=True gave {np.shape(found)}, expected (4, 5).")
    if np.shape(answer(thin)) != (1, 1, 4, 5):
        return report(False, "without matrix=True a kernel of 1 x 1 stays a kernel.")
    found = answer(thin, matrix=True)
    return report(np.shape(found) == (4, 5) and np.allclose(found, thin[:, :, 0, 0].T),
                  f"a 1 x 1 kernel (5, 4, 1, 1) with matrix=True gave {np.shape(found)}, expected (4, 5).")


def check_family(answer) -> bool:
    block = "model.diffusion_model.input_blocks.{}.1.transformer_blocks.0.attn2.to_{}.weight"
    proj = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    sd1 = {block.format(1, "q"): (320, 320), block.format(1, "k"): (320, 768), block.format(7, "k"): (1280, 768),
           proj: (320, 320, 1, 1), "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,)}
    sd2 = {block.format(1, "q"): (320, 320), block.format(1, "k"): (320, 1024), block.format(7, "k"): (1280, 1024),
           proj: (320, 320), "cond_stage_model.model.ln_final.weight": (1024,)}
    found = answer(sd1), answer(sd2)
    if ... in found:
        return report(False, "the keys of cross-attention, attn2.to_k, are made from the text; how wide is that?")
    if found == ("sd2", "sd1"):
        return report(False, "the other way round: the text of SD 1.x has 768 numbers a token.")
    return report(found == ("sd1", "sd2"),
                  f"found {found}. In attn2.to_k.weight [out, in] the second number is the width of the text.")
