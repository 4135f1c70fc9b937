"""Commands that draw: txt2img, img2img, inpaint, upscale, depth2img, and depth, which draws what MiDaS sees."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sdjax.cli import common, drawing
from sdjax.cli.common import Dtype
from sdjax.cli.settings import collected
from sdjax.errors import InputError

app = typer.Typer(rich_markup_mode=None)

OUT = Path("outputs")

Model = Annotated[
    Path | None, typer.Option(help="Weights: a folder or a .safetensors file. Default: the small model that ships.")
]
Negative = Annotated[str | None, typer.Option(help="What the picture should not show.")]
Steps = Annotated[
    int | None, typer.Option(help="Steps of the sampler, 1 to 1000; fewer than 5 show little. Default 50.")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="How far to go towards the prompt; 1: no guidance, 0: no prompt. Default: the model's own (7.5 if released"
        ", upscalers 9)."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Where the noise comes from, 0 to 2^32 - 1. Default 0.")]
First = Annotated[int | None, typer.Option(help="The number of the first picture of the seed. Default 0.")]
Count = Annotated[int, typer.Option(help="How many pictures; each has its own noise.")]
SamplerName = Annotated[str | None, typer.Option(help="ddim, euler, dpmpp_2m or ddpm. Default ddim.")]
Eta = Annotated[float | None, typer.Option(help="Fresh noise in DDIM, 0 to 1. Default 0.")]
Out = Annotated[Path, typer.Option(help="A .png file, or a folder in which pictures are numbered.")]
Like = Annotated[Path | None, typer.Option(help="Repeat a picture that sdjax wrote; other options change it.")]
Precision = Annotated[Dtype | None, typer.Option(help="The dtype of the arithmetic. Default float32.")]
Batch = Annotated[int, typer.Option(help="How many pictures a device draws at a time.")]
Devices = Annotated[int, typer.Option(help="Spread the pictures over so many devices.")]
NoMetadata = Annotated[
    bool,
    typer.Option("--no-metadata", help="Leave prompt and settings out of the files; --prompts then goes by names."),
]


@app.command()
def txt2img(
    prompt: Annotated[str | None, typer.Argument(help="What to draw; - reads it from standard input.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help='Draw the lines {"prompt": "a red cube"} of this file that are not yet in the folder --out.'),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, where hosts must meet first; auto on a TPU pod.")
    ] = None,
    processes: Annotated[int, typer.Option(help="How many processes share --prompts.")] = 1,
    process: Annotated[int, typer.Option(help="Which of them this one is, from 0.")] = 0,
    model: Model = None, negative: Negative = None, steps: Steps = None, guidance: Guidance = None, seed: Seed = None,
    first: First = None, count: Count = 1,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in pixels, multiples of 8. Default: the model's own.")
    ] = None,
    sampler: SamplerName = None, eta: Eta = None, out: Out = OUT, like: Like = None, dtype: Precision = None,
    devices: Devices = 1, batch: Batch = 1, no_metadata: NoMetadata = False,
) -> None:
    """Draw pictures of a prompt, or of every line of a file."""
    height, width = common.read_size(size) or (None, None)
    given = {"negative_prompt": negative, "steps": steps, "guidance_scale": guidance, "seed": seed,
             "first_image": first, "height": height, "width": width, "sampler": sampler, "eta": eta, "dtype": dtype}
    if prompts is None:
        if coordinator is not None or (processes, process) != (1, 0):
            raise InputError("--coordinator, --processes, --process: are of --prompts; give that file too")
        settings = collected("txt2img", like, prompt=_prompt(prompt), **given)
        return drawing.draw(settings, model, devices, batch, count, out, no_metadata)
    if prompt is not None or like is not None or negative is not None or count != 1 or drawing.is_file(out):
        raise InputError("--prompts: takes no other prompt, --negative, --like or --count, and --out must be a folder")
    if batch < 1:
        raise InputError(f"--batch: found {batch}, expected at least 1")
    drawing.require_out(out)
    from sdjax.cli import many

    lines = many.read_lines(prompts)
    many.require_numbers(lines, first or 0)
    if coordinator is None:
        many.require_process(processes, process)
    common.make_folder(out)
    common.prepare(meeting=coordinator is not None)
    if coordinator is not None:
        processes, process = many.join(coordinator, processes, process)
    lines = many.share(lines, processes, process)
    settings = collected("txt2img", None, prompt="", **given)
    sd = drawing.load(model, settings, devices)
    drawn = many.draw_lines(sd, lines, settings, out, devices * batch, no_metadata)
    print(f"{out}: {drawn} drawn")


@app.command()
def img2img(
    prompt: Annotated[str | None, typer.Argument(help="What to draw; - reads it from standard input.")] = None,
    image: Annotated[Path | None, typer.Option(help="The picture to start from: PNG, JPEG or WebP.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much to change, 0 to 1. Default 0.7.")] = None,
    model: Model = None, negative: Negative = None, steps: Steps = None, guidance: Guidance = None, seed: Seed = None,
    first: First = None, count: Count = 1,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH to crop and resize the picture to. Default: its own, cut to multiples of 8."),
    ] = None,
    sampler: SamplerName = None, eta: Eta = None, out: Out = OUT, like: Like = None, dtype: Precision = None,
    devices: Devices = 1, batch: Batch = 1, no_metadata: NoMetadata = False,
) -> None:
    """Draw pictures of a prompt that start from another picture."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file to start from")
    fit = common.read_size(size)
    settings = collected(
        "img2img", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, fit=fit, sampler=sampler, eta=eta, strength=strength, dtype=dtype,
    )
    drawing.draw(settings, model, devices, batch, count, out, no_metadata, {"image": image})


@app.command()
def inpaint(
    prompt: Annotated[str | None, typer.Argument(help="What to draw; - reads it from standard input.")] = None,
    image: Annotated[Path | None, typer.Option(help="The picture to change: PNG, JPEG or WebP.")] = None,
    mask: Annotated[Path | None, typer.Option(help="A picture of the same size, white where to paint anew.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of what was there may change, 0 to 1. Default 1.")
    ] = None,
    paste: Annotated[
        bool | None, typer.Option(help="Keep the picture's own pixels outside the mask.", show_default="paste")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Also save the picture with its hole.")] = False,
    model: Model = None, negative: Negative = None, steps: Steps = None, guidance: Guidance = None, seed: Seed = None,
    first: First = None, count: Count = 1,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH to crop and resize both to. Default: their own, cut to multiples of 8."),
    ] = None,
    sampler: SamplerName = None, eta: Eta = None, out: Out = OUT, like: Like = None, dtype: Precision = None,
    devices: Devices = 1, batch: Batch = 1, no_metadata: NoMetadata = False,
) -> None:
    """Paint a part of a picture anew."""
    for name, path in (("image", image), ("mask", mask)):
        if path is None:
            raise InputError(f"--{name}: missing, expected a PNG, JPEG or WebP file")
    fit = common.read_size(size)
    settings = collected(
        "inpaint", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, fit=fit, sampler=sampler, eta=eta, strength=strength, dtype=dtype,
        paste=paste,
    )
    drawing.draw(settings, model, devices, batch, count, out, no_metadata, {"image": image, "mask": mask}, preview)


@app.command()
def upscale(
    prompt: Annotated[str | None, typer.Argument(help="What it shows; - reads it from standard input.")] = None,
    image: Annotated[Path | None, typer.Option(help="The picture to enlarge: PNG, JPEG or WebP.")] = None,
    noise_level: Annotated[
        int | None, typer.Option(help="How much noise to put on it first, 0 to 350: more keeps less. Default 20.")
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="The largest piece to draw at once, in its pixels. Default 128.")
    ] = None,
    model: Model = None, negative: Negative = None, steps: Steps = None, guidance: Guidance = None, seed: Seed = None,
    first: First = None, count: Count = 1, sampler: SamplerName = None, eta: Eta = None, out: Out = OUT,
    like: Like = None, dtype: Precision = None, devices: Devices = 1, batch: Batch = 1,
    no_metadata: NoMetadata = False,
) -> None:
    """Enlarge a picture four times, with weights of the x4 upscaler."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file")
    settings = collected(
        "upscale", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, sampler=sampler, eta=eta, noise_level=noise_level, tile=tile, dtype=dtype,
    )
    drawing.draw(settings, model, devices, batch, count, out, no_metadata, {"image": image})


@app.command()
def depth2img(
    prompt: Annotated[str | None, typer.Argument(help="What to draw; - reads it from standard input.")] = None,
    image: Annotated[Path | None, typer.Option(help="The picture whose depth to keep: PNG, JPEG or WebP.")] = None,
    depth: Annotated[
        Path | None, typer.Option(help="Its depth, white where near. Default: what the weights' MiDaS sees.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much to change, 0 to 1. Default 0.8.")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Also save the depth.")] = False,
    model: Model = None, negative: Negative = None, steps: Steps = None, guidance: Guidance = None, seed: Seed = None,
    first: First = None, count: Count = 1,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH to crop and resize the picture to. Default: its own, cut to multiples of 8."),
    ] = None,
    sampler: SamplerName = None, eta: Eta = None, out: Out = OUT, like: Like = None, dtype: Precision = None,
    devices: Devices = 1, batch: Batch = 1, no_metadata: NoMetadata = False,
) -> None:
    """Draw a prompt in the shape of another picture, with weights for depth-to-image."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file")
    fit = common.read_size(size)
    settings = collected(
        "depth2img", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, fit=fit, sampler=sampler, eta=eta, strength=strength, dtype=dtype,
    )
    drawing.draw(settings, model, devices, batch, count, out, no_metadata, {"image": image, "depth": depth}, preview)


@app.command("depth")
def draw_depth(
    image: Annotated[Path, typer.Argument(help="The picture: PNG, JPEG or WebP.")],
    model: Annotated[Path | None, typer.Option(help="Weights for depth-to-image: a folder or a file.")] = None,
    out: Annotated[Path, typer.Option(help="The .png file to write.")] = OUT / "depth.png",
) -> None:
    """Draw how near everything in a picture is: white is nearest."""
    if out.suffix.lower() != ".png":
        raise InputError(f"--out: found {out}, expected a .png file")
    common.prepare()
    import sdjax
    from sdjax.images import of_depth, read_picture

    picture = read_picture(image)
    common.make_folder(out.parent)
    seen = sdjax.load(model or common.default_model("depth")).midas(picture)
    sdjax.write_png(out, sdjax.to_uint8(of_depth(seen[0])), None)
    print(out)


def _prompt(prompt: str | None) -> str | None:
    if prompt != "-":
        return prompt
    if sys.stdin is None:
        raise InputError("prompt: nothing comes in, standard input is closed; give the text itself")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"prompt: what comes in is no text in {error.encoding}; save it as that first") from None
