"""Commands that draw: txt2img, img2img, inpaint, upscale, depth2img, and depth, which draws what MiDaS sees."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from sdjax.cli import common
from sdjax.cli.common import Dtype
from sdjax.errors import InputError

app = typer.Typer(rich_markup_mode=None)

OUT = Path("outputs")
# What a picture remembers, for --like: the settings of every command, and each command's own.
DEFAULTS: dict[str, Any] = {
    "negative_prompt": "", "steps": 50, "guidance_scale": None, "seed": 0, "first_image": 0, "height": None,
    "width": None, "sampler": "ddim", "eta": 0.0,
}
OWN: dict[str, dict[str, Any]] = {
    "img2img": {"strength": 0.7}, "inpaint": {"strength": 1.0, "paste": True},
    "upscale": {"noise_level": 20, "tile": 128}, "depth2img": {"strength": 0.8},
}


Model = Annotated[
    Path | None, typer.Option(help="Weights: a folder or a .safetensors file. Default: the small model that ships.")
]
Negative = Annotated[str | None, typer.Option(help="What the picture should not show.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler, 1 to 1000. Default 50.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="How far to go towards the prompt; 1: no guidance. Default: the model's own, 7.5 if released."),
]
Seed = Annotated[int | None, typer.Option(help="Where the noise comes from, 0 to 2^32 - 1. Default 0.")]
First = Annotated[int | None, typer.Option(help="The number of the first picture of the seed. Default 0.")]
Count = Annotated[int, typer.Option(help="How many pictures; each has its own noise.")]
SamplerName = Annotated[str | None, typer.Option(help="ddim, euler, dpmpp_2m or ddpm. Default ddim.")]
Eta = Annotated[float | None, typer.Option(help="Fresh noise in DDIM, 0 to 1. Default 0.")]
Out = Annotated[Path, typer.Option(help="A .png file, or a folder in which pictures are numbered.")]
Like = Annotated[Path | None, typer.Option(help="Repeat a picture that sdjax wrote; other options change it.")]
Precision = Annotated[Dtype, typer.Option(help="The dtype of the arithmetic.")]
Devices = Annotated[int, typer.Option(help="Spread the pictures over so many devices.")]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Leave prompt and settings out of the files.")]


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
    batch: Annotated[int, typer.Option(help="How many of --prompts a device draws at a time.")] = 1,
    model: Model = None, negative: Negative = None, steps: Steps = None, guidance: Guidance = None, seed: Seed = None,
    first: First = None, count: Count = 1,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in pixels, multiples of 8. Default: the model's own.")
    ] = None,
    sampler: SamplerName = None, eta: Eta = None, out: Out = OUT, like: Like = None, dtype: Precision = Dtype.float32,
    devices: Devices = 1, no_metadata: NoMetadata = False,
) -> None:
    """Draw pictures of a prompt, or of every line of a file."""
    height, width = common.read_size(size)
    given = {"negative_prompt": negative, "steps": steps, "guidance_scale": guidance, "seed": seed,
             "first_image": first, "height": height, "width": width, "sampler": sampler, "eta": eta}
    if prompts is None:
        if coordinator is not None or (processes, process, batch) != (1, 0, 1):
            raise InputError("--coordinator, --processes, --process, --batch: are of --prompts; give that file too")
        settings = _settings("txt2img", like, prompt=_prompt(prompt), **given)
        return _draw(settings, model, dtype, devices, count, out, no_metadata)
    if prompt is not None or like is not None or negative is not None or count != 1 or out.suffix:
        raise InputError("--prompts: takes no other prompt, --negative, --like or --count, and --out must be a folder")
    if batch < 1:
        raise InputError(f"--batch: found {batch}, expected at least 1")
    from sdjax.cli import many

    lines = many.read_lines(prompts)
    common.make_folder(out)
    common.prepare()
    if coordinator is not None:
        processes, process = many.join(coordinator, processes, process)
    lines = many.share(lines, processes, process)
    sd = _load(model, "txt2img", dtype, devices)
    settings = _settings("txt2img", None, prompt="", **given) | {"dtype": dtype.value}
    if settings["guidance_scale"] is None:
        settings["guidance_scale"] = sd.config.guidance
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
    sampler: SamplerName = None, eta: Eta = None, out: Out = OUT, like: Like = None, dtype: Precision = Dtype.float32,
    devices: Devices = 1, no_metadata: NoMetadata = False,
) -> None:
    """Draw pictures of a prompt that start from another picture."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file to start from")
    height, width = common.read_size(size)
    settings = _settings(
        "img2img", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, height=height, width=width, sampler=sampler, eta=eta, strength=strength,
    )
    _draw(settings, model, dtype, devices, count, out, no_metadata, {"image": image})


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
    sampler: SamplerName = None, eta: Eta = None, out: Out = OUT, like: Like = None, dtype: Precision = Dtype.float32,
    devices: Devices = 1, no_metadata: NoMetadata = False,
) -> None:
    """Paint a part of a picture anew."""
    for name, path in (("image", image), ("mask", mask)):
        if path is None:
            raise InputError(f"--{name}: missing, expected a PNG, JPEG or WebP file")
    height, width = common.read_size(size)
    settings = _settings(
        "inpaint", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, height=height, width=width, sampler=sampler, eta=eta, strength=strength,
        paste=paste,
    )
    _draw(settings, model, dtype, devices, count, out, no_metadata, {"image": image, "mask": mask}, preview)


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
    like: Like = None, dtype: Precision = Dtype.float32, devices: Devices = 1, no_metadata: NoMetadata = False,
) -> None:
    """Enlarge a picture four times, with weights of the x4 upscaler."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file")
    settings = _settings(
        "upscale", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, sampler=sampler, eta=eta, noise_level=noise_level, tile=tile,
    )
    _draw(settings, model, dtype, devices, count, out, no_metadata, {"image": image})


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
    sampler: SamplerName = None, eta: Eta = None, out: Out = OUT, like: Like = None, dtype: Precision = Dtype.float32,
    devices: Devices = 1, no_metadata: NoMetadata = False,
) -> None:
    """Draw a prompt in the shape of another picture, with weights for depth-to-image."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file")
    height, width = common.read_size(size)
    settings = _settings(
        "depth2img", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, height=height, width=width, sampler=sampler, eta=eta, strength=strength,
    )
    _draw(settings, model, dtype, devices, count, out, no_metadata, {"image": image, "depth": depth}, preview)


@app.command("depth")
def draw_depth(
    image: Annotated[Path, typer.Argument(help="The picture: PNG, JPEG or WebP.")],
    model: Annotated[Path | None, typer.Option(help="Weights for depth-to-image: a folder or a file.")] = None,
    out: Annotated[Path, typer.Option(help="The .png file to write.")] = OUT / "depth.png",
    dtype: Precision = Dtype.float32,
) -> None:
    """Draw how near everything in a picture is: white is nearest."""
    if out.suffix.lower() != ".png":
        raise InputError(f"--out: found {out}, expected a .png file")
    common.prepare()
    import sdjax
    from sdjax.images import of_depth, read_picture

    picture = read_picture(image)
    seen = sdjax.load(model or common.default_model("depth"), dtype=dtype.value).midas(picture)
    out.parent.mkdir(parents=True, exist_ok=True)
    sdjax.write_png(out, sdjax.to_uint8(of_depth(seen[0])), None)
    print(out)


def _prompt(prompt: str | None) -> str | None:
    return sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt


def _settings(command: str, like: Path | None, **given: Any) -> dict[str, Any]:
    """Defaults, then the settings of the picture to be repeated, then what was given."""
    settings = DEFAULTS | OWN.get(command, {})
    if like:
        from sdjax.images import read_settings

        stored = read_settings(like)
        if stored.get("command") != command:
            made_by = stored.get("command")
            raise InputError(f"{like}: was made by {made_by!r}; repeat it with `sdjax {made_by}`")
        unknown = set(stored) - set(settings) - {"prompt", "command", "model", "version", "dtype"}
        if unknown:
            raise InputError(f"{like}: has settings that this version does not know: {', '.join(sorted(unknown))}")
        settings |= stored
    settings |= {name: value for name, value in given.items() if value is not None}
    if settings.get("prompt") is None:
        raise InputError('prompt: missing, expected a text such as "a red cube"; an empty one is written ""')
    return settings | {"command": command}


def _draw(
    settings: dict[str, Any], model: Path | None, dtype: Dtype, devices: int, count: int, out: Path, no_metadata: bool,
    files: dict[str, Path | None] | None = None, preview: bool = False,
) -> None:
    """Loads, draws with a progress bar, writes each picture with its own number, and prints where.

    `files` are the arguments of the method that are pictures: image, mask, depth.
    """
    if count < 1:
        raise InputError(f"--count: found {count}, expected at least 1")
    command, paths = settings["command"], _paths(out, str(settings["prompt"]), count)
    common.prepare()
    import sdjax

    sd = _load(model, command, dtype, devices)
    if settings.get("model") not in (None, sd.config.name):
        raise InputError(
            f"--like: made with {settings['model']!r}, but these weights are {sd.config.name!r}; give its --model"
        )
    if settings["guidance_scale"] is None:
        settings["guidance_scale"] = sd.config.guidance
    options = {name: settings[name] for name in DEFAULTS | OWN.get(command, {})} | {"num_images": count}
    given = {}
    if files:
        size = options.pop("height"), options.pop("width")
        given = {name: _read(name, path, size, whole=command == "upscale") for name, path in files.items() if path}
    pictures = _with_bar(sd, settings["prompt"], command, given | options)
    for i, path in enumerate(paths):
        own = settings | {"first_image": settings["first_image"] + i, "dtype": dtype.value}
        common.save(path, pictures[i], sd, None if no_metadata else own)
        print(path)
    if preview:
        name, picture = _preview(sd, given)
        path = paths[0].with_name(f"{paths[0].stem}-{name}.png")
        sdjax.write_png(path, sdjax.to_uint8(picture), None)
        print(path)


def _load(model: Path | None, command: str, dtype: Dtype, devices: int) -> Any:
    import sdjax

    sd = sdjax.load(model or common.default_model(command), dtype=dtype.value)
    return sd if devices == 1 else sd.spread(devices)


def _with_bar(sd: Any, prompt: str, command: str, options: dict[str, Any]) -> Any:
    """The pictures of a method of the model, drawn step by step with a progress bar."""
    tile = options.pop("tile", None)
    if tile and max(options["image"].shape) > tile:
        return getattr(sd, command)(prompt, tile=tile, **options)  # many loops, one a tile
    last = None
    with tqdm(total=None, unit="step", desc="drawing", dynamic_ncols=True, disable=None) as bar:
        for last in getattr(sd, f"{command}_steps")(prompt, **options):
            bar.total = last.steps
            bar.set_postfix(t=last.t)
            bar.update()
    # A strength near 0 leaves no step to take.
    return last.pictures() if last else getattr(sd, command)(prompt, **options)


def _read(name: str, path: Path, size: tuple[int | None, int | None], whole: bool) -> Any:
    """A picture [H, W, 3], or a mask or depth [H, W]; cut to multiples of 8 in the middle, but for `whole`."""
    from sdjax.images import read_mask, read_picture

    array = (read_picture if name == "image" else read_mask)(path, size if all(size) else None)
    if whole:
        return array
    top, left = (side % 8 // 2 for side in array.shape[:2])
    height, width = (side // 8 * 8 for side in array.shape[:2])
    return array[top : top + height, left : left + width]


def _preview(sd: Any, given: dict[str, Any]) -> tuple[str, Any]:
    """What the network was shown beside the noise, [H, W, 3]: the picture with its hole, or the depth."""
    from sdjax.images import as_mask, of_depth

    image = given["image"]
    if "mask" in given:
        return "mask", image * (1.0 - as_mask(given["mask"], image.shape[:2])[0])
    return "depth", of_depth(given["depth"] if "depth" in given else sd.midas(image)[0])


def _paths(out: Path, prompt: str, count: int) -> list[Path]:
    """Where the pictures will go: `out` itself if it is a .png, else the next free numbers in a folder."""
    if out.suffix.lower() == ".png":
        return [out] if count == 1 else [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(count)]
    if out.suffix:
        raise InputError(f"--out: found {out}, expected a .png file or a folder")
    names = common.make_folder(out)
    taken = [int(match[1]) for name in names if (match := re.match(r"(\d{4,})-", name))]
    slug = re.sub(r"[^\w]+", "-", prompt[:200].lower()).strip("-")[:60].rstrip("-") or "picture"
    return [out / f"{max(taken, default=0) + 1 + i:04}-{slug}.png" for i in range(count)]
