"""Commands that draw: txt2img, img2img, inpaint, upscale, depth2img, and depth, which draws what MiDaS sees."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from sdjax.cli import common
from sdjax.cli.common import Dtype
from sdjax.errors import InputError

app = typer.Typer(rich_markup_mode=None)

OUT = Path("outputs")
# What a picture remembers, for --like: the settings of every command, and each command's own. `fit` is the size
# [height, width] to which the pictures that a command was given were cropped and resized.
DEFAULTS: dict[str, Any] = {
    "negative_prompt": "", "steps": 50, "guidance_scale": None, "seed": 0, "first_image": 0, "sampler": "ddim",
    "eta": 0.0,
}
OWN: dict[str, dict[str, Any]] = {
    "txt2img": {"height": None, "width": None},
    "img2img": {"strength": 0.7, "fit": None}, "inpaint": {"strength": 1.0, "paste": True, "fit": None},
    "upscale": {"noise_level": 20, "tile": 128}, "depth2img": {"strength": 0.8, "fit": None},
}
# What else it remembers: what was asked for, by whom, and with which weights it was drawn, in which dtype.
ABOUT: dict[str, Any] = {"prompt": "", "command": "", "dtype": "float32", "model": "", "weights": "", "version": ""}
# Of which type a setting is whose default does not say so.
KINDS = {"guidance_scale": float, "height": int, "width": int, "fit": list}


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
Precision = Annotated[Dtype | None, typer.Option(help="The dtype of the arithmetic. Default float32.")]
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
    sampler: SamplerName = None, eta: Eta = None, out: Out = OUT, like: Like = None, dtype: Precision = None,
    devices: Devices = 1, no_metadata: NoMetadata = False,
) -> None:
    """Draw pictures of a prompt, or of every line of a file."""
    height, width = common.read_size(size) or (None, None)
    given = {"negative_prompt": negative, "steps": steps, "guidance_scale": guidance, "seed": seed,
             "first_image": first, "height": height, "width": width, "sampler": sampler, "eta": eta, "dtype": dtype}
    if prompts is None:
        if coordinator is not None or (processes, process, batch) != (1, 0, 1):
            raise InputError("--coordinator, --processes, --process, --batch: are of --prompts; give that file too")
        settings = _settings("txt2img", like, prompt=_prompt(prompt), **given)
        return _draw(settings, model, devices, count, out, no_metadata)
    if prompt is not None or like is not None or negative is not None or count != 1 or _is_file(out):
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
    settings = _settings("txt2img", None, prompt="", **given)
    sd = _load(model, settings, devices)
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
    devices: Devices = 1, no_metadata: NoMetadata = False,
) -> None:
    """Draw pictures of a prompt that start from another picture."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file to start from")
    fit = common.read_size(size)
    settings = _settings(
        "img2img", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, fit=fit, sampler=sampler, eta=eta, strength=strength, dtype=dtype,
    )
    _draw(settings, model, devices, count, out, no_metadata, {"image": image})


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
    devices: Devices = 1, no_metadata: NoMetadata = False,
) -> None:
    """Paint a part of a picture anew."""
    for name, path in (("image", image), ("mask", mask)):
        if path is None:
            raise InputError(f"--{name}: missing, expected a PNG, JPEG or WebP file")
    fit = common.read_size(size)
    settings = _settings(
        "inpaint", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, fit=fit, sampler=sampler, eta=eta, strength=strength, dtype=dtype,
        paste=paste,
    )
    _draw(settings, model, devices, count, out, no_metadata, {"image": image, "mask": mask}, preview)


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
    like: Like = None, dtype: Precision = None, devices: Devices = 1, no_metadata: NoMetadata = False,
) -> None:
    """Enlarge a picture four times, with weights of the x4 upscaler."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file")
    settings = _settings(
        "upscale", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, sampler=sampler, eta=eta, noise_level=noise_level, tile=tile, dtype=dtype,
    )
    _draw(settings, model, devices, count, out, no_metadata, {"image": image})


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
    devices: Devices = 1, no_metadata: NoMetadata = False,
) -> None:
    """Draw a prompt in the shape of another picture, with weights for depth-to-image."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file")
    fit = common.read_size(size)
    settings = _settings(
        "depth2img", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, fit=fit, sampler=sampler, eta=eta, strength=strength, dtype=dtype,
    )
    _draw(settings, model, devices, count, out, no_metadata, {"image": image, "depth": depth}, preview)


@app.command("depth")
def draw_depth(
    image: Annotated[Path, typer.Argument(help="The picture: PNG, JPEG or WebP.")],
    model: Annotated[Path | None, typer.Option(help="Weights for depth-to-image: a folder or a file.")] = None,
    out: Annotated[Path, typer.Option(help="The .png file to write.")] = OUT / "depth.png",
    dtype: Precision = None,
) -> None:
    """Draw how near everything in a picture is: white is nearest."""
    if out.suffix.lower() != ".png":
        raise InputError(f"--out: found {out}, expected a .png file")
    common.prepare()
    import sdjax
    from sdjax.images import of_depth, read_picture

    picture = read_picture(image)
    common.make_folder(out.parent)
    seen = sdjax.load(model or common.default_model("depth"), dtype=dtype or "float32").midas(picture)
    sdjax.write_png(out, sdjax.to_uint8(of_depth(seen[0])), None)
    print(out)


def _prompt(prompt: str | None) -> str | None:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"prompt: what comes in is no text in {error.encoding}; save it as that first") from None


def _settings(command: str, like: Path | None, **given: Any) -> dict[str, Any]:
    """Defaults, then the settings of the picture to be repeated, then what was given."""
    settings = {"prompt": None} | DEFAULTS | OWN[command] | {"dtype": ABOUT["dtype"]}
    if like:
        settings |= _remembered(like, command)
    settings |= {name: value for name, value in given.items() if value is not None}
    if settings["prompt"] is None:
        raise InputError('prompt: missing, expected a text such as "a red cube"; an empty one is written ""')
    return settings | {"command": command}


def _remembered(path: Path, command: str) -> dict[str, Any]:
    """The settings of a picture that `command` made; InputError for any that it cannot have."""
    from sdjax.images import read_settings

    stored = read_settings(path)
    if (made_by := stored.get("command")) != command:
        known = f"was made by `sdjax {made_by}`; repeat it with that" if made_by in OWN else "was made by no command"
        raise InputError(f"{path}: {known}")
    examples = DEFAULTS | OWN[command] | ABOUT
    for name in ("height", "width"):  # what came out, which tells txt2img what to ask for, and the others nothing
        if name not in examples:
            stored.pop(name, None)
    unknown = set(stored) - set(examples)
    if unknown:
        raise InputError(f"{path}: has settings that this version does not know: {', '.join(sorted(unknown))}")
    for name, value in stored.items():
        kind = KINDS.get(name, type(examples[name]))
        fits = type(value) is kind or (kind is float and type(value) is int) or (value is None and name in KINDS)
        if not fits or (name == "fit" and value and not (len(value) == 2 and all(type(n) is int for n in value))):
            raise InputError(f"{path}: remembers {name} as {value!r}, which cannot be; give the settings by hand")
    return stored


def _draw(
    settings: dict[str, Any], model: Path | None, devices: int, count: int, out: Path, no_metadata: bool,
    files: dict[str, Path | None] | None = None, preview: bool = False,
) -> None:
    """Loads, draws with a progress bar, writes each picture with its own number, and prints where.

    `files` are the arguments of the method that are pictures: image, mask, depth.
    """
    if count < 1:
        raise InputError(f"--count: found {count}, expected at least 1")
    if out.suffix and not _is_file(out) and not out.is_dir():
        raise InputError(f"--out: found {out}, expected a .png file or a folder")
    common.make_folder(out.parent if _is_file(out) else out)  # before the work
    command = settings["command"]
    common.prepare()
    import sdjax

    options = {name: settings[name] for name in DEFAULTS | OWN[command]} | {"num_images": count}
    fit = options.pop("fit", None)
    given = {name: _read(name, path, fit, whole=command == "upscale") for name, path in (files or {}).items() if path}
    sd = _load(model, settings, devices)
    options["guidance_scale"] = settings["guidance_scale"]  # the model's own, if none was asked for
    pictures = _with_bar(sd, settings["prompt"], command, given | options)
    paths = []
    for i, picture in enumerate(pictures):
        with _place(out, settings["prompt"], i, count) as path:
            own = settings | {"first_image": settings["first_image"] + i}
            common.save(path, picture, sd, None if no_metadata else own)
        paths.append(path)
        print(path)
    if preview:
        name, picture = _preview(sd, given)
        path = paths[0].with_name(f"{paths[0].stem}-{name}.png")
        sdjax.write_png(path, sdjax.to_uint8(picture), None)
        print(path)


def _load(model: Path | None, settings: dict[str, Any], devices: int) -> Any:
    """The model, whose own guidance scale and name the settings get; InputError where they are another model's."""
    import sdjax

    sd = sdjax.load(model or common.default_model(settings["command"]), dtype=settings["dtype"])
    own = {"model": sd.config.name, "weights": common.weights_id(sd)}
    for name, value in own.items():
        if settings.get(name, value) != value:
            raise InputError(
                f"--like: made with {settings['model']} weights {settings.get('weights')}, but these are"
                f" {own['model']} {own['weights']} in {settings['dtype']}; give its --model and --dtype"
            )
    settings |= own
    if settings["guidance_scale"] is None:
        settings["guidance_scale"] = sd.config.guidance
    return sd if devices == 1 else sd.spread(devices)


def _with_bar(sd: Any, prompt: str, command: str, options: dict[str, Any]) -> Any:
    """The pictures of a method of the model, drawn step by step with a progress bar."""
    tile = options.pop("tile", None)
    if tile is not None and max(options["image"].shape) > tile:
        return getattr(sd, command)(prompt, tile=tile, **options)  # many loops, one a tile
    last = None
    with tqdm(total=None, unit="step", desc="drawing", dynamic_ncols=True, disable=None) as bar:
        for last in getattr(sd, f"{command}_steps")(prompt, **options):
            bar.total = last.steps
            bar.set_postfix(t=last.t)
            bar.update()
    # A strength near 0 leaves no step to take.
    return last.pictures() if last else getattr(sd, command)(prompt, **options)


def _read(name: str, path: Path, fit: list[int] | None, whole: bool) -> Any:
    """A picture [H, W, 3], or a mask or depth [H, W]; cut to multiples of 8 in the middle, but for `whole`."""
    from sdjax import images

    read = {"image": images.read_picture, "mask": images.read_mask, "depth": images.read_depth}[name]
    array = read(path, fit)
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


def _is_file(out: Path) -> bool:
    return out.suffix.lower() == ".png" and not out.is_dir()


@contextlib.contextmanager
def _place(out: Path, prompt: str, i: int, count: int) -> Iterator[Path]:
    """Where picture `i` goes: `out` itself if it is a .png, else the next free number in that folder.

    An empty file takes the number at once, so that another process takes the next; it goes if nothing comes of it.
    """
    if _is_file(out):
        yield out if count == 1 else out.with_name(f"{out.stem}-{i}{out.suffix}")
        return
    slug = re.sub(r"[^\w]+", "-", prompt[:200].lower()).strip("-")[:60].rstrip("-") or "picture"
    taken = [int(match[1]) for name in common.make_folder(out) if (match := re.match(r"(\d{4,})-", name))]
    for number in itertools.count(max(taken, default=0) + 1):
        path = out / f"{number:04}-{slug}.png"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); give another --out") from error
        break
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise
