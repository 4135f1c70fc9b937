"""Draws the grid of README.md: fixed prompts, seed 0, the first sample of each.

    .venv/bin/python weights/grid.py        (the virtual environment that make has set up)
"""

from pathlib import Path

import sdjax
from sdjax import hardware
from sdjax.images import grid

PROMPTS = [
    "a red cube", "a large blue sphere", "a small green cone", "a yellow cylinder",
    "an orange ring", "a purple sphere at night", "büyük kırmızı bir küp", "küçük mavi bir küre",
    "a red cube left of a blue sphere", "a green cone right of a yellow cube",
    "a white sphere in front of a black cylinder", "mor bir halkanın solunda sarı bir koni",
]

hardware.prepare()
here = Path(__file__).parent
sd = sdjax.load(here / "tiny")
pictures = sd.txt2img(PROMPTS, steps=50, seed=0)
settings = {"prompt": "; ".join(PROMPTS), "steps": 50, "seed": 0, "guidance_scale": sd.config.guidance,
            "sampler": "ddim"}
sdjax.write_png(here / "grid.png", grid(sdjax.to_uint8(pictures), columns=6), settings)
