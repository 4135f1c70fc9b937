"""The command line: reads arguments, calls the package, writes files. JAX is imported by the commands that need it."""

from __future__ import annotations

import json
import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from sdjax.errors import InputError

app = typer.Typer(
    name="sdjax", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Stable Diffusion 1.x and 2.x in JAX: draw, look inside weights, convert them, train a small model.",
)
train = typer.Typer(rich_markup_mode=None, help="Train a part of the small model from nothing.")
app.add_typer(train, name="train")

OUT = Path("outputs")
DEFAULTS: dict[str, Any] = {
    "negative_prompt": "", "steps": 50, "guidance_scale": 7.5, "seed": 0, "first_image": 0, "height": None,
    "width": None, "sampler": "ddim", "eta": 0.0,
}


class Dtype(StrEnum):
    """The dtype of the weights, and so of the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    Path | None, typer.Option(help="Weights: a folder or a .safetensors file. Default: the small model that ships.")
]
Negative = Annotated[str | None, typer.Option(help="What the picture should not show.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler, 1 to 1000. Default 50.")]
Guidance = Annotated[float | None, typer.Option(help="How far to go towards the prompt; 1: no guidance. Default 7.5.")]
Seed = Annotated[int | None, typer.Option(help="Where the noise comes from, 0 to 2^32 - 1. Default 0.")]
First = Annotated[int | None, typer.Option(help="The number of the first picture of the seed. Default 0.")]
Count = Annotated[int, typer.Option(help="How many pictures; each has its own noise.")]
SamplerName = Annotated[str | None, typer.Option(help="ddim, euler, dpmpp_2m or ddpm. Default ddim.")]
Eta = Annotated[float | None, typer.Option(help="Fresh noise in DDIM, 0 to 1. Default 0.")]
Out = Annotated[Path, typer.Option(help="A .png file, or a folder in which pictures are numbered.")]
Like = Annotated[Path | None, typer.Option(help="Repeat a picture that sdjax wrote; other options change it.")]
Precision = Annotated[Dtype, typer.Option(help="The dtype of the arithmetic.")]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Leave prompt and settings out of the files.")]


@app.command()
def txt2img(
    prompt: Annotated[str | None, typer.Argument(help="What to draw; - reads it from standard input.")] = None,
    model: Model = None, negative: Negative = None, steps: Steps = None, guidance: Guidance = None, seed: Seed = None,
    first: First = None, count: Count = 1,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in pixels, multiples of 8. Default: the model's own.")
    ] = None,
    sampler: SamplerName = None, eta: Eta = None, out: Out = OUT, like: Like = None, dtype: Precision = Dtype.float32,
    no_metadata: NoMetadata = False,
) -> None:
    """Draw pictures of a prompt."""
    height, width = _size(size)
    settings = _settings(
        "txt2img", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, height=height, width=width, sampler=sampler, eta=eta,
    )
    _draw(settings, model, dtype, count, out, no_metadata)


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
    no_metadata: NoMetadata = False,
) -> None:
    """Draw pictures of a prompt that start from another picture."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file to start from")
    height, width = _size(size)
    settings = _settings(
        "img2img", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, height=height, width=width, sampler=sampler, eta=eta, strength=strength,
    )
    _draw(settings, model, dtype, count, out, no_metadata, image)


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
    no_metadata: NoMetadata = False,
) -> None:
    """Paint a part of a picture anew."""
    for name, path in (("image", image), ("mask", mask)):
        if path is None:
            raise InputError(f"--{name}: missing, expected a PNG, JPEG or WebP file")
    height, width = _size(size)
    settings = _settings(
        "inpaint", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, height=height, width=width, sampler=sampler, eta=eta, strength=strength,
        paste=paste,
    )
    _draw(settings, model, dtype, count, out, no_metadata, image, mask, preview)


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
    like: Like = None, dtype: Precision = Dtype.float32, no_metadata: NoMetadata = False,
) -> None:
    """Enlarge a picture four times, with weights of the x4 upscaler."""
    if image is None:
        raise InputError("--image: missing, expected a PNG, JPEG or WebP file")
    settings = _settings(
        "upscale", like, prompt=_prompt(prompt), negative_prompt=negative, steps=steps, guidance_scale=guidance,
        seed=seed, first_image=first, sampler=sampler, eta=eta, noise_level=noise_level, tile=tile,
    )
    _draw(settings, model, dtype, count, out, no_metadata, image)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A diffusers folder or a .safetensors file.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; must not exist yet.")],
    dtype: Annotated[Dtype, typer.Option(help="The dtype to store.")] = Dtype.float32,
) -> None:
    """Write weights in sdjax's own layout, which loads as a plain read."""
    from sdjax.checkpoint.load import convert as run

    run(source, target, dtype.value)
    print(target)


@app.command()
def info(path: Annotated[Path, typer.Argument(help="Weights: a folder or a .safetensors file.")]) -> None:
    """Say what weights are: layout, family, prediction type, parameters, and what does not fit."""
    from sdjax.checkpoint.load import describe

    found = describe(path)
    for name in ("layout", "family", "prediction"):
        print(f"{name:<12} {getattr(found, name) or '-'}")
    print(f"{'stored as':<12} {', '.join(found.dtypes) or '-'}")
    for part, size in found.parameters.items():
        print(f"{part:<12} {size:,} parameters")
    for problem in found.problems:
        print(f"does not fit: {problem}")


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="sd15, sd21-base or sd21.")],
    folder: Annotated[Path, typer.Option(help="Where to put it.")] = Path("weights"),
) -> None:
    """Fetch a released model and check its sha256 (needs the `hub` extra)."""
    from sdjax.checkpoint.hub import download as run

    print(run(name, folder))


@app.command()
def evaluate(
    model: Annotated[
        Path | None, typer.Argument(help="Weights of the toy world. Default: the small model that ships.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts a figure.")] = 500,
    steps: Annotated[int, typer.Option(help="DDIM steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 7.5,
    seed: Annotated[int, typer.Option(help="Which scenes of the test split, and which noise.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Only this figure; may be given more than once.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table here, as JSON.")] = None,
) -> None:
    """Measure how well the small model draws what it is asked, by the judge."""
    _prepare()
    import sdjax
    from sdjax import evaluate as figures
    from sdjax.files import written_whole
    from sdjax.toyworld.judge import load_judge

    folder = model or default_model()
    report = figures.evaluate(
        sdjax.load(folder), load_judge(folder), prompts=prompts, steps=steps, guidance_scale=guidance, seed=seed,
        only=only or None,
    )
    print(figures.table(report))
    if out:
        with written_whole(out) as part:
            part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


@app.command()
def sweep(
    model: Annotated[
        Path | None, typer.Argument(help="Weights of the toy world. Default: the small model that ships.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts a scale, half of them with one object.")] = 50,
    images: Annotated[int, typer.Option(help="Pictures a prompt.")] = 4,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 50,
    sampler: Annotated[str, typer.Option(help="ddim, euler, dpmpp_2m or ddpm.")] = "ddim",
    seed: Annotated[int, typer.Option(help="Which scenes of the test split, and which noise.")] = 0,
    scale: Annotated[list[float] | None, typer.Option(help="A guidance scale; may be given more than once.")] = None,
    out: Annotated[Path, typer.Option(help="The .png file of the plot; its figures go beside it as .json.")] = OUT
    / "sweep.png",
) -> None:
    """Measure and plot what guidance does to adherence and diversity (needs the `plots` extra)."""
    _prepare()
    import sdjax
    from sdjax import plots
    from sdjax import sweep as guidance
    from sdjax.files import written_whole
    from sdjax.toyworld.judge import load_judge

    if out.suffix.lower() != ".png":
        raise InputError(f"--out: found {out}, expected a .png file")
    plots.figure()  # without matplotlib there is nothing to wait for
    folder = model or default_model()
    rows = guidance.sweep(
        sdjax.load(folder), load_judge(folder), scales=scale or guidance.SCALES, prompts=prompts, images=images,
        steps=steps, sampler=sampler, seed=seed,
    )
    print(guidance.table(rows))
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.guidance_sweep(rows, out)
    settings = {"prompts": prompts, "images": images, "steps": steps, "sampler": sampler, "seed": seed}
    with written_whole(out.with_suffix(".json")) as part:
        part.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(out)


Run = Annotated[Path, typer.Option(help="The folder of the run; a stopped run goes on from its last checkpoint.")]
StepsOf = Annotated[int | None, typer.Option(help="Training steps; default: the recipe's.")]
Scenes = Annotated[int | None, typer.Option(help="Scenes in the training set; default: the recipe's.")]
RUN = Path("runs/tiny")


@train.command("tokenizer")
def train_tokenizer(run: Run = RUN) -> None:
    """Learn the merges of the byte-pair encoding from captions."""
    _stage("tokenizer", run)


@train.command("clip")
def train_clip(run: Run = RUN, steps: StepsOf = None, scenes: Scenes = None) -> None:
    """Train the text and image encoders: each picture must find its caption."""
    _stage("clip", run, steps, scenes)


@train.command("vae")
def train_vae(run: Run = RUN, steps: StepsOf = None, scenes: Scenes = None) -> None:
    """Train the autoencoder."""
    _stage("vae", run, steps, scenes)


@train.command("unet")
def train_unet(
    run: Run = RUN, steps: StepsOf = None, scenes: Scenes = None,
    start: Annotated[Path | None, typer.Option(help="Begin with the denoiser of this model, not with chance.")] = None,
) -> None:
    """Train the denoiser on what the other parts give, and put the model together in RUN/model."""
    _stage("unet", run, steps, scenes, start)


@train.command("judge")
def train_judge(run: Run = RUN, steps: StepsOf = None) -> None:
    """Train the judge, which reads colour, shape and place back from pictures."""
    _stage("judge", run, steps)


def default_model() -> Path:
    """The small model that ships: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "weights" / "tiny", package.parent / "weights" / "tiny"):
        if folder.is_dir():
            return folder
    raise InputError("weights/tiny: not found beside the package; give --model PATH")


def _prepare() -> None:
    """Sets up JAX before it is first used: a CPU flag, and a cache of compiled programs of the user's own."""
    from sdjax.hardware import prepare

    prepare()


def _stage(
    name: str, run: Path, steps: int | None = None, scenes: int | None = None, start: Path | None = None
) -> None:
    _prepare()
    from sdjax.training import stages

    stages.run_stage(name, run, steps, scenes, start)
    print(run)


def _prompt(prompt: str | None) -> str | None:
    return sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt


def _size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", size)
    if not match:
        raise InputError(f"--size: found {size!r}, expected HEIGHTxWIDTH such as 512x768")
    return int(match[1]), int(match[2])


def _settings(command: str, like: Path | None, **given: Any) -> dict[str, Any]:
    """Defaults, then the settings of the picture to be repeated, then what was given."""
    own: dict[str, dict[str, Any]] = {"img2img": {"strength": 0.7}, "inpaint": {"strength": 1.0, "paste": True},
                                      "upscale": {"noise_level": 20, "tile": 128}}
    settings = DEFAULTS | own.get(command, {})
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
    settings: dict[str, Any], model: Path | None, dtype: Dtype, count: int, out: Path, no_metadata: bool,
    image: Path | None = None, mask: Path | None = None, preview: bool = False,
) -> None:
    """Loads, draws with a progress bar, writes each picture with its own number, and prints where."""
    if count < 1:
        raise InputError(f"--count: found {count}, expected at least 1")
    paths = _paths(out, str(settings["prompt"]), count)
    _prepare()
    import sdjax
    from sdjax.images import as_mask, read_mask, read_picture

    sd = sdjax.load(model or default_model(), dtype=dtype.value)
    if settings.get("model") not in (None, sd.config.name):
        raise InputError(
            f"--like: made with {settings['model']!r}, but these weights are {sd.config.name!r}; give its --model"
        )
    options = {n: settings[n] for n in DEFAULTS} | {"num_images": count}
    if image is None:
        arguments = (settings["prompt"],)
    elif settings["command"] == "upscale":
        del options["height"], options["width"]
        arguments = (settings["prompt"], read_picture(image), settings["noise_level"])
    else:
        height, width = options.pop("height"), options.pop("width")
        size = None if height is None else (height, width)
        read = [_middle(reader(path, size)) for reader, path in ((read_picture, image), (read_mask, mask)) if path]
        arguments = (settings["prompt"], *read, settings["strength"])
        if mask:
            options["paste"] = settings["paste"]
    if settings["command"] == "upscale" and max(arguments[1].shape) > settings["tile"]:
        steps, options["tile"] = (), settings["tile"]  # many loops, one a tile
    else:
        steps = getattr(sd, f"{settings['command']}_steps")(*arguments, **options)
    last = None
    with tqdm(total=None, unit="step", desc="drawing", dynamic_ncols=True, disable=None) as bar:
        for last in steps:
            bar.total = last.steps
            bar.set_postfix(t=last.t)
            bar.update()
    pictures = last.pictures() if last else getattr(sd, settings["command"])(*arguments, **options)
    settings |= {"height": pictures.shape[1], "width": pictures.shape[2], "model": sd.config.name,
                 "version": sdjax.__version__, "dtype": dtype.value}
    for i, path in enumerate(paths):
        own = settings | {"first_image": settings["first_image"] + i}
        sdjax.write_png(path, sdjax.to_uint8(pictures[i]), None if no_metadata else own)
        print(path)
    if mask and preview:
        hole = paths[0].with_name(f"{paths[0].stem}-mask.png")
        sdjax.write_png(hole, sdjax.to_uint8(read[0] * (1.0 - as_mask(read[1], read[0].shape[:2])[0])), None)
        print(hole)


def _middle(picture: Any) -> Any:
    """The middle of a picture [H, W, ...], its sides cut down to multiples of 8."""
    top, left = (side % 8 // 2 for side in picture.shape[:2])
    height, width = (side // 8 * 8 for side in picture.shape[:2])
    return picture[top : top + height, left : left + width]


def _paths(out: Path, prompt: str, count: int) -> list[Path]:
    """Where the pictures will go: `out` itself if it is a .png, else the next free numbers in a folder."""
    if out.suffix.lower() == ".png":
        return [out] if count == 1 else [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(count)]
    if out.suffix:
        raise InputError(f"--out: found {out}, expected a .png file or a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = os.listdir(out)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be made ({error.strerror}); give another place") from error
    taken = [int(match[1]) for name in names if (match := re.match(r"(\d{4,})-", name))]
    slug = re.sub(r"[^\w]+", "-", prompt[:200].lower()).strip("-")[:60].rstrip("-") or "picture"
    return [out / f"{max(taken, default=0) + 1 + i:04}-{slug}.png" for i in range(count)]


def main() -> None:
    """Runs the command line: 0 when done, 2 with one line on stderr for wrong input, 130 when interrupted."""
    try:
        app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        print("sdjax: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        # typer's own errors (no such option, not a number) have no public base class, but all have this method.
        usage = getattr(error, "format_message", None)
        if usage is None and not isinstance(error, (InputError, FloatingPointError)):
            raise
        message = f"{usage()} See `sdjax --help`." if usage else str(error)
        print(f"sdjax: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
