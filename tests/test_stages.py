"""What `make weights` runs, on small networks, a step each: from an empty folder to a model and its figures."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_models import OPENCLIP, model, same

import sdjax
from sdjax import cli
from sdjax.checkpoint import native, tree
from sdjax.errors import InputError
from sdjax.tokenizer import Tokenizer
from sdjax.training import clip, data, judge, stages, unet, vae
from sdjax.training.parts import latents_of
from sdjax.vae import Posterior

STAGES = {"tokenizer": None, "vae": vae, "clip": clip, "unet": unet, "judge": judge}
SCENES, BATCH = 6, 4


def small(vocab_size=1024):
    """The configuration of `tiny`, narrower: latents are 16 x 16 x 4 of pictures of 128 pixels."""
    return dataclasses.replace(
        OPENCLIP, name="tiny", image_size=128, vae=dataclasses.replace(OPENCLIP.vae, channels=(4, 4, 4, 8)),
        text=dataclasses.replace(
            OPENCLIP.text, vocab_size=vocab_size, end_id=vocab_size - 1, padding="eos",
            width=16,  # a state must have room for what it tells
        ),
        unet=dataclasses.replace(OPENCLIP.unet, context_width=16),
        vision=dataclasses.replace(OPENCLIP.vision, image_size=128, patch=32),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder in which every stage has run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "tiny", small)
        patch.setattr(stages, "CORPUS", 100)
        for name, stage in STAGES.items():
            if stage:
                # Not by Muon, which takes longer to compile; tests/test_training.py has it on these networks.
                patch.setattr(stage, "RECIPE", dataclasses.replace(stage.RECIPE, batch=BATCH, muon=False))
            patch.setattr(vae, "WHOLE", dataclasses.replace(vae.WHOLE, batch=BATCH, muon=False))
            stages.run_stage(name, folder, steps=1, scenes=SCENES)
    return folder


def test_every_stage_leaves_its_part_its_curve_and_what_it_drew(run):
    for name in ("vae", "decoder", "clip", "unet", "judge"):
        assert (run / name / "loss.png").exists() and (run / name / "loss.csv").read_text().startswith("1,")
    for name in ("vae", "decoder", "unet"):
        assert (run / name / "000001.png").exists()
    sd = sdjax.load(run / "model")
    assert sd.config.vae.scale != small().vae.scale  # it was measured
    assert sd.txt2img("a red cube", steps=1).shape == (1, 128, 128, 3)


def test_latents_are_made_again_for_another_autoencoder_only(run, tmp_path, monkeypatch):
    run = shutil.copytree(run, tmp_path / "run")
    made, nothing = [], np.zeros((SCENES, 1, 1, 1))
    encode = lambda coder, pictures: made.append(coder) or Posterior(nothing, nothing)
    monkeypatch.setattr("sdjax.training.parts.encode", encode)
    monkeypatch.setattr(unet, "train", lambda *parts, start, **options: start)
    monkeypatch.setattr(stages, "tiny", small)
    stages.run_stage("unet", run, steps=1, scenes=SCENES, start=run / "model")
    assert made == []
    stages.write_module(run / "vae.safetensors", model(small()).vae.module, {"scale": "1.0"})
    stages.run_stage("unet", run, steps=1, scenes=SCENES, start=run / "model")
    assert len(made) == 1


def test_a_decoder_goes_on_and_latents_stay_what_they_are(run, tmp_path, monkeypatch):
    """So that what was trained on them, a denoiser, need not learn again; they are not even encoded again."""
    monkeypatch.setattr(vae, "WHOLE", dataclasses.replace(vae.WHOLE, batch=BATCH, muon=False, warmup=0, ema=0.0))
    stages.run_stage("vae", tmp_path / "on", steps=8, scenes=SCENES, start=run / "model", seed=1)
    before, after = sdjax.load(run / "model"), sdjax.load(tmp_path / "on" / "model")
    same(before, after, ("text_encoder", "unet", "image_encoder"))
    assert after.config == before.config  # with the scale of the latents
    drawn = data.pictures(run / "data", SCENES)
    pictures = data.to_float(drawn)
    first, then = (sd.vae.encode(pictures).mean for sd in (before, after))
    assert np.array_equal(first, then)
    errors = [np.mean((np.asarray(sd.vae.decode(first)) - pictures) ** 2) for sd in (before, after)]
    assert errors[1] < 0.9 * errors[0]
    monkeypatch.setattr("sdjax.training.parts.encode", None)
    kept = tmp_path / "on" / "data" / "latents.safetensors"
    latents_of(kept, after.vae.module, drawn)
    with pytest.raises(TypeError):  # but those of other pictures are, such as another renderer draws
        latents_of(kept, after.vae.module, drawn[::-1])


def wider(vocab_size=1024):
    """What `tiny` was when the shipped denoiser was begun: another width."""
    c = small(vocab_size)
    return dataclasses.replace(c, unet=dataclasses.replace(c.unet, channels=tuple(2 * n for n in c.unet.channels)))


def test_a_denoiser_goes_on_in_an_empty_folder_among_the_parts_that_it_was_trained_with(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(stages, "tiny", wider)
    monkeypatch.setattr(unet, "train", lambda *parts, start, **options: asked.append(options) or start)
    sdjax.save(sdjax.load(run / "model"), tmp_path / "base")
    stages.run_stage("unet", tmp_path / "on", steps=1, scenes=SCENES, start=tmp_path / "base", seed=1)
    first, second = sdjax.load(tmp_path / "base"), sdjax.load(tmp_path / "on" / "model")
    same(first, second)
    steps = [states.some.step for states in asked[0]["misleading"]]
    assert steps == [unet.DOUBLED, unet.MISTAKEN]  # the recipe has solids too many, and wrong shapes
    assert second.config == first.config and second.tokenizer.merges == first.tokenizer.merges


def test_clip_goes_on_in_an_empty_folder_with_the_words_that_it_knows(run, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "tiny", small)
    monkeypatch.setattr(clip, "train", lambda *given: given[-1])
    stages.run_stage("clip", tmp_path / "on", steps=1, scenes=SCENES, start=run / "model")
    assert (tmp_path / "on" / "tokenizer.json").read_text() == (run / "model" / "tokenizer.json").read_text()
    for name, network in native.networks(sdjax.load(run / "model")).items():
        if name.endswith("encoder"):
            ours, theirs = load_file(tmp_path / "on" / f"{name}.safetensors"), tree.flatten(network.state)
            assert ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_a_text_encoder_is_not_put_among_other_words(run, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "tiny", small)
    Tokenizer(["r e"]).save(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="has other words than the model to begin with"):
        stages.run_stage("unet", tmp_path, steps=1, scenes=SCENES, start=run / "model")


def test_a_denoiser_that_predicts_something_else_is_not_gone_on_with(run, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "tiny", small)
    sd = sdjax.load(run / "model", prediction="eps")
    sdjax.save(sd, tmp_path / "base")
    with pytest.raises(InputError, match="its diffusion is"):
        stages.run_stage("unet", tmp_path / "on", steps=1, scenes=SCENES, start=tmp_path / "base")


def test_a_model_without_an_image_encoder_is_not_gone_on_with(run, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "tiny", small)
    sd = sdjax.load(run / "model")
    sd.image_encoder, sd.config = None, dataclasses.replace(sd.config, vision=None)
    sdjax.save(sd, tmp_path / "base")
    with pytest.raises(InputError, match="its vision is None"):
        stages.run_stage("unet", tmp_path / "on", steps=1, scenes=SCENES, start=tmp_path / "base")


def test_another_kind_of_model_is_refused_before_its_parts_are_taken(tmp_path):
    sdjax.save(model(OPENCLIP), tmp_path / "base")
    with pytest.raises(InputError, match="its unet is"):
        stages.run_stage("unet", tmp_path / "run", start=tmp_path / "base")
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_that_does_not_say_its_scale_is_refused(run, tmp_path, monkeypatch):
    """As that of a finished model, whose scale is in its configuration."""
    monkeypatch.setattr(stages, "tiny", small)
    shutil.copytree(run / "model", tmp_path / "parts")
    with pytest.raises(InputError, match="does not say the scale of its latents"):
        stages.run_stage("unet", tmp_path / "parts", steps=1, scenes=SCENES)


def test_clip_needs_a_batch_of_scenes(run):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="at least the 64 of a batch"):
        patch.setattr(stages, "tiny", small)
        stages.run_stage("clip", run, steps=1, scenes=10)


def test_evaluate_asks_the_judge_of_the_run_and_writes_the_table(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.common, "prepare", lambda: None)
    monkeypatch.setattr(cli.common, "default_model", lambda: pytest.fail("there is a judge beside the model"))
    monkeypatch.setattr(sys, "argv", ["sdjax", "evaluate", str(run / "model"), "--prompts", "2", "--only", "judge"])
    cli.main()
    report = json.loads((tmp_path / "outputs" / "evaluate.json").read_text())
    assert report["settings"]["judge"] == str(run) and len(report["settings"]["weights"]) == 10
    assert report["settings"]["prompts"] == 2 and all(row["n"] == 2 for row in report["rows"])
    assert report["rows"][0]["name"] in capsys.readouterr().out


def test_one_caption_in_ten_is_left_out(monkeypatch):
    """What guidance is made of, arXiv:2207.12598: some pictures are shown with the empty prompt."""
    sd, batches = model(OPENCLIP), []
    take = lambda recipe, graph, start, loss, batch_at, *rest, **options: batches.extend(map(batch_at, range(100)))
    monkeypatch.setattr(unet, "fit", take)
    numbers = np.zeros((50, 4, 4, 4))
    unet.train(
        sd.config.unet, sd.config.diffusion, sd.text_encoder.module, sd.tokenizer, Posterior(numbers, numbers), 1.0,
        None, start=sd.unet.module,
    )
    ids, empty = np.concatenate([batch["ids"] for batch in batches]), sd.tokenizer([""])
    assert 0.07 < (ids == empty).all(axis=1).mean() < 0.13  # four standard deviations of 1,600
