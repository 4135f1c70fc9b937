"""Commands about the small model and its world: train, evaluate, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdjax.cli import common
from sdjax.errors import InputError

app = typer.Typer(rich_markup_mode=None)
train = typer.Typer(rich_markup_mode=None, help="Train a part of the small model from nothing.")
app.add_typer(train, name="train")
OUT = Path("outputs")


@app.command()
def evaluate(
    model: Annotated[
        Path | None, typer.Argument(help="Weights of the toy world. Default: the small model that ships.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts a figure.")] = 500,
    steps: Annotated[int, typer.Option(help="DDIM steps.")] = 50,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. Default: the model's own.")] = None,
    seed: Annotated[int, typer.Option(help="Which scenes of the test split, and which noise.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Only this figure; may be given more than once.")] = None,
    out: Annotated[Path, typer.Option(help="Where the table also goes, as JSON.")] = OUT / "evaluate.json",
) -> None:
    """Measure how well the small model draws what it is asked, by the judge."""
    common.prepare()
    import sdjax
    from sdjax import evaluate as figures
    from sdjax.toyworld.judge import load_judge

    folder = model or common.default_model()
    sd, judge = sdjax.load(folder), _judge(folder)
    common.require_file(out)  # before hours of drawing
    report = figures.evaluate(
        sd, load_judge(judge), prompts=prompts, steps=steps, guidance_scale=guidance, seed=seed,
        only=only or None,
    )
    report["settings"] |= {"model": str(folder), "weights": common.weights_id(sd), "judge": str(judge)}
    print(figures.table(report))
    common.write_report(out, report)


@app.command()
def sweep(
    model: Annotated[
        Path | None, typer.Argument(help="Weights of the toy world. Default: the small model that ships.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts a scale, half of them with one object.")] = 50,
    images: Annotated[int, typer.Option(help="Pictures a prompt.")] = 4,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 50,
    sampler: Annotated[str, typer.Option(help="ddim, euler, dpmpp_2m or ddpm.")] = "ddim",
    seed: Annotated[int, typer.Option(help="Which scenes of the validation split, and which noise.")] = 0,
    scale: Annotated[list[float] | None, typer.Option(help="A guidance scale; may be given more than once.")] = None,
    out: Annotated[Path, typer.Option(help="The .png file of the plot; its figures go beside it as .json.")] = OUT
    / "sweep.png",
) -> None:
    """Measure and plot what guidance does to adherence and diversity (needs the `plots` extra)."""
    common.prepare()
    import sdjax
    from sdjax import plots
    from sdjax import sweep as guidance
    from sdjax.toyworld.judge import load_judge

    if out.suffix.lower() != ".png":
        raise InputError(f"--out: found {out}, expected a .png file")
    plots.figure()  # without matplotlib there is nothing to wait for
    folder = model or common.default_model()
    sd = sdjax.load(folder)
    common.require_file(out)
    rows = guidance.sweep(
        sd, load_judge(_judge(folder)), scales=scale or guidance.SCALES, prompts=prompts, images=images,
        steps=steps, sampler=sampler, seed=seed,
    )
    print(guidance.table(rows))
    plots.guidance_sweep(rows, out)
    settings = {"prompts": prompts, "images": images, "steps": steps, "sampler": sampler, "seed": seed}
    common.write_report(out.with_suffix(".json"), {"settings": settings, "rows": rows})
    print(out)


def _judge(folder: Path) -> Path:
    """Where the judge is: with the weights or beside them, where a training run leaves one; else what ships."""
    from sdjax.toyworld.judge import FILE

    found = [place for place in (folder, folder.parent) if (place / FILE).exists()]
    return found[0] if found else common.default_model()


Run = Annotated[Path, typer.Option(help="The folder of the run; a stopped run goes on from its last checkpoint.")]
StepsOf = Annotated[int | None, typer.Option(help="Steps of the network that is last trained; default: the recipe's.")]
Scenes = Annotated[int | None, typer.Option(help="Scenes in the training set; default: the recipe's.")]
Start = Annotated[Path | None, typer.Option(help="Begin with the networks of this model; give another --seed, too.")]
Seed = Annotated[int, typer.Option(help="Of the first weights, the order of scenes, the words and the noise.")]
RUN = Path("runs/tiny")


@train.command("tokenizer")
def train_tokenizer(run: Run = RUN) -> None:
    """Learn the merges of the byte-pair encoding from captions."""
    _stage("tokenizer", run)


@train.command("clip")
def train_clip(
    run: Run = RUN, steps: StepsOf = None, scenes: Scenes = None, start: Start = None, seed: Seed = 0
) -> None:
    """Train the text and image encoders: each picture must find its caption."""
    _stage("clip", run, steps, scenes, start, seed)


@train.command("vae")
def train_vae(
    run: Run = RUN, steps: StepsOf = None, scenes: Scenes = None, start: Start = None, seed: Seed = 0
) -> None:
    """Train the autoencoder, or the decoder of --start alone, whose latents stay: RUN/model."""
    _stage("vae", run, steps, scenes, start, seed)


@train.command("unet")
def train_unet(
    run: Run = RUN, steps: StepsOf = None, scenes: Scenes = None, start: Start = None, seed: Seed = 0
) -> None:
    """Train the denoiser on what the other parts give, and put the model together in RUN/model."""
    _stage("unet", run, steps, scenes, start, seed)


@train.command("inpaint")
def train_inpaint(
    run: Run = RUN, steps: StepsOf = None, scenes: Scenes = None, start: Start = None, seed: Seed = 0
) -> None:
    """Go on with the denoiser of RUN/model, or of --start, so that it fills holes: RUN/inpaint/model."""
    _stage("inpaint", run, steps, scenes, start, seed)


@train.command("depth")
def train_depth(
    run: Run = RUN, steps: StepsOf = None, scenes: Scenes = None, start: Start = None, seed: Seed = 0
) -> None:
    """Train MiDaS on the world's depth (by its own recipe), then the denoiser to follow it: RUN/depth/model."""
    _stage("depth", run, steps, scenes, start, seed)


@train.command("upscale")
def train_upscale(
    run: Run = RUN, steps: StepsOf = None, scenes: Scenes = None, start: Start = None, seed: Seed = 0
) -> None:
    """Train an autoencoder (by its own recipe), then the x4 upscaler, 32 to 128 pixels: RUN/upscale/model."""
    _stage("upscale", run, steps, scenes, start, seed)


@train.command("judge")
def train_judge(run: Run = RUN, steps: StepsOf = None, scenes: Scenes = None, seed: Seed = 0) -> None:
    """Train the judge, which reads colour, shape and place back from pictures."""
    _stage("judge", run, steps, scenes, seed=seed)


def _stage(
    name: str, run: Path, steps: int | None = None, scenes: int | None = None, start: Path | None = None, seed: int = 0
) -> None:
    common.prepare()
    from sdjax.training import stages

    stages.run_stage(name, run, steps, scenes, start, seed)
    print(run)
