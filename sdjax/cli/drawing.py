"""What the commands that draw have in common: load, read pictures, draw with a bar, write each in its place."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sdjax.cli import common
from sdjax.cli.settings import DEFAULTS, OWN
from sdjax.errors import InputError

OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def draw(
    settings: dict[str, Any], model: Path | None, devices: int, batch: int, count: int, out: Path, no_metadata: bool,
    files: dict[str, Path | None] | None = None, preview: bool = False,
) -> None:
    """Loads, draws with a progress bar, writes each picture with its own number as soon as it is there, prints where.

    A device draws `batch` pictures at a time. `files` are the arguments of the method that are pictures: image, mask,
    depth.
    """
    for name, number in (("count", count), ("batch", batch)):
        if number < 1:
            raise InputError(f"--{name}: found {number}, expected at least 1")
    require_out(out)
    common.make_folder(out.parent if is_file(out) else out)  # before the work
    command = settings["command"]
    common.prepare()
    import sdjax

    together = min(count, devices * batch)
    options = {name: settings[name] for name in DEFAULTS | OWN[command]} | {"num_images": together}
    if options.pop("given_depth", False) and not files.get("depth"):
        raise InputError("--depth: missing; the picture of --like was drawn with one, give it again")
    if files and files.get("depth"):
        settings["given_depth"] = True
    given = read_files(files or {}, options.pop("fit", None), whole=command == "upscale")
    sd = load(model, settings, devices)
    options["guidance_scale"] = settings["guidance_scale"]  # the model's own, if none was asked for
    paths: list[Path] = []
    for start in range(0, count, together):
        first = settings["first_image"] + start
        pictures = with_bar(sd, settings["prompt"], command, given | options | {"first_image": first})
        for i, picture in enumerate(pictures[: count - start]):  # the last ones were filled up: one size is compiled
            with place(out, "" if no_metadata else settings["prompt"], start + i, count) as path:
                common.save(path, picture, sd, None if no_metadata else settings | {"first_image": first + i})
            paths.append(path)
            print(path, flush=True)
    if preview:
        name, picture = shown_beside(sd, given)
        path = paths[0].with_name(f"{paths[0].stem}-{name}.png")
        sdjax.write_png(path, sdjax.to_uint8(picture), None)
        print(path)


def load(model: Path | None, settings: dict[str, Any], devices: int) -> Any:
    """The model, whose own guidance scale and name the settings get; InputError where they are another model's."""
    import sdjax

    sd = sdjax.load(model or common.default_model(settings["command"]), dtype=settings["dtype"])
    own = {"model": sd.config.name, "weights": common.weights_id(sd)}
    for name, value in own.items():
        if settings.get(name, value) != value:
            raise InputError(
                f"--like: made with {settings.get('model')} weights {settings.get('weights')}, but these are"
                f" {own['model']} {own['weights']} in {settings['dtype']}; give its --model and --dtype"
            )
    settings |= own
    if settings["guidance_scale"] is None:
        settings["guidance_scale"] = sd.config.guidance
    return sd if devices == 1 else sd.spread(devices)


def with_bar(sd: Any, prompt: str, command: str, options: dict[str, Any]) -> Any:
    """The pictures of a method of the model, drawn with a progress bar: step by step, or tile by tile."""
    import jax

    from sdjax.request import tile_side

    tile = options.pop("tile", None)
    if tile is not None and max(options["image"].shape) > tile_side(tile):
        with tqdm(total=None, unit="tile", desc="drawing", dynamic_ncols=True, disable=None) as bar:

            def watch(done: int, tiles: int) -> None:
                bar.total = tiles
                bar.update(done - bar.n)

            return getattr(sd, command)(prompt, tile=tile, watch=watch, **options)
    last = None
    with tqdm(total=None, unit="step", desc="drawing", dynamic_ncols=True, disable=None) as bar:
        for last in getattr(sd, f"{command}_steps")(prompt, **options):
            jax.block_until_ready(last.latents)  # a step that was only handed to the device is not done
            bar.total = last.steps
            bar.set_postfix(t=last.t)
            bar.update()
    # A strength near 0 leaves no step to take.
    return last.pictures() if last else getattr(sd, command)(prompt, **options)


def read_files(files: dict[str, Path | None], fit: list[int] | None, whole: bool) -> dict[str, Any]:
    """A picture [H, W, 3], and a mask or depth [H, W]; cut to multiples of 8 in the middle, but for `whole` or `fit`.

    A depth of another size is stretched to that of the picture first, as `depth2img` does it, so that both are cut
    alike; a mask of another is an InputError.
    """
    from sdjax import images

    given: dict[str, Any] = {"image": images.read_picture(files["image"], fit)} if files else {}
    if files.get("mask"):
        given["mask"] = images.read_mask(files["mask"], fit)
    if files.get("depth"):
        whole_picture = images.read_picture(files["image"]) if fit else given["image"]
        given["depth"] = images.read_depth(files["depth"], fit, whole_picture.shape[:2])
    if "mask" in given and given["mask"].shape != given["image"].shape[:2]:
        mask, image = (" x ".join(map(str, given[name].shape[:2])) for name in ("mask", "image"))
        raise InputError(f"{files['mask']}: is {mask}, its image {image}; make them alike, or give --size")
    return given if whole or fit else {name: _cut(array) for name, array in given.items()}


def _cut(array: Any) -> Any:
    if min(array.shape[:2]) < 8:
        raise InputError(f"--image: is {array.shape[0]} x {array.shape[1]}, expected 8 x 8 pixels or more; give --size")
    top, left = (side % 8 // 2 for side in array.shape[:2])
    height, width = (side // 8 * 8 for side in array.shape[:2])
    return array[top : top + height, left : left + width]


def shown_beside(sd: Any, given: dict[str, Any]) -> tuple[str, Any]:
    """What was to be kept, as a picture [H, W, 3] and its name: the image with its hole, or the depth."""
    from sdjax.images import as_mask, of_depth

    image = given["image"]
    if "mask" in given:
        return "mask", image * (1.0 - as_mask(given["mask"], image.shape[:2])[0])
    return "depth", of_depth(given["depth"] if "depth" in given else sd.midas(image)[0])


def require_out(out: Path) -> None:
    """InputError where --out names a picture of a kind that is not written."""
    if out.suffix.lower() in OTHER_PICTURES and not out.is_dir():
        raise InputError(f"--out: found {out}, expected a .png file or a folder")


def is_file(out: Path) -> bool:
    """Whether --out names one picture, not a folder."""
    return out.suffix.lower() == ".png" and not out.is_dir()


@contextlib.contextmanager
def place(out: Path, prompt: str, i: int, count: int) -> Iterator[Path]:
    """Where picture `i` goes: `out` itself if it is a .png, else the next free number in that folder.

    A hidden file takes the number at once, so that another process takes the next, and goes when the picture is there.
    """
    if is_file(out):
        yield out if count == 1 else out.with_name(f"{out.stem}-{i}{out.suffix}")
        return
    slug = re.sub(r"[^\w]+", "-", prompt[:200].lower()).strip("-")[:60].rstrip("-") or "picture"
    for number in itertools.count(max(_numbers(out), default=0) + 1):
        taken = out / f".{number:04}.taken"
        try:
            taken.touch(exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"{taken}: cannot be written ({error.strerror}); give another --out") from error
        if number not in _numbers(out):  # or its picture came between the look and the touch
            break
        taken.unlink()
    try:
        yield out / f"{number:04}-{slug}.png"
    finally:
        taken.unlink(missing_ok=True)


def _numbers(out: Path) -> list[int]:
    """Those of the pictures in a folder."""
    return [int(match[1]) for name in common.make_folder(out) if (match := re.match(r"(\d{4,})-", name))]
