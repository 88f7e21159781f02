"""The scripts that made the shipped weights.

    python -m adlearn.pretrain --list
    python -m adlearn.pretrain teacher_17_narrow
    python -m adlearn.pretrain teacher_65 --steps 20000 --into my_weights
    python -m adlearn.pretrain vit_tiny_distilled

All learn what EfficientNet-Lite0 says of photographs, drawn textures and drawn parts. Finished weights are written in
half precision as `<name>.safetensors`, with a record beside them, `<name>.json`, of how they came about and how much of
the variance of the backbone's features they explain: a teacher on a tenth of its lessons, from which it did not learn,
the transformer on pictures drawn afresh. (Both come from the same images at other places: of images of another kind it
would explain less.)

A teacher learns about patches. Every patch is cut once, the backbone is asked once, and what it said is kept in the
cache. The paper's large network is a ResNet-18, its images are ImageNet's, and it shrinks them evenly; this one draws
the logarithm of the factor, and mirrors every second patch.

The transformer learns about pictures. From its patches' tokens a linear layer has to find what the backbone says of the
same place, in the middle of its blocks what fine stages say and at their end what the last one does; and from its class
token what the last stage says of the whole picture. It sees pictures of half the side first, at a quarter of the price.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import __version__, augment, backbones, cache, checks, nets, runtime, training
from adlearn.data import paint
from adlearn.data.parts import CLASSES, background, render, scene
from adlearn.methods import students, vit

# In the wheel of scikit-image, each in the public domain, under CC0 or without known restrictions.
PHOTOGRAPHS = ("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
               "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png",
               "retina.jpg", "rocket.jpg", "text.png")
SIDE = 512                                      # of all sources
DRAWN = 48                                      # sources of each kind that is drawn
STAGES = (2, 3, 4)                              # strides 8, 16 and 32: in 17 pixels there is little for the last alone
HELD_OUT = 0.1                                  # share of the patches on which a teacher is judged
VERSION = 1                                     # raise it when any patch changes


@dataclass(frozen=True)
class Recipe:
    """How a teacher is made. Decay and batch are the paper's. Its rate, 2e-4, is for far more steps."""

    patch_size: int
    shrink: int
    steps: int
    lr: float
    patches: int = 24_000
    batch_size: int = 64
    weight_decay: float = 1e-5
    look: int = 64                              # pixels to which a patch is enlarged for the backbone
    seed: int = 0

    @property
    def compact(self) -> float:
        """λ_c. The paper's is 1; with it such short trainings learnt little else. And L_c is a sum over pairs of
        dimensions, which grows with the square of their number: as on 32 of them it shall weigh on all."""
        return 0.1 * (self.shrink / 4) ** 2


@dataclass(frozen=True)
class ViTRecipe:
    """How the transformer is made."""

    steps: int
    lr: float = 1e-3
    batch_size: int = 16
    weight_decay: float = 0.05
    epoch: int = 2000                           # pictures between two checkpoints, all of them new
    seed: int = 0

    @property
    def plan(self) -> dict[int, int]:
        """Size of the pictures to steps: five in six at half the side. The training takes whole epochs of them."""
        return {112: self.steps * 5 // 6, 224: self.steps // 6}


LOOKED_AT = 512                                 # pictures for the moments of the features, and to judge a transformer
LIGHT = augment.Compose(augment.RandomHorizontalFlip(), augment.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
                        augment.RandomGrey(p=0.25))
HEARD = {1: 5, 2: 5, 3: 8, 4: 11}               # stages of the backbone, and the blocks whose tokens shall hold them

# What two cores do in half an hour or less; all would gain by more.
STEPS = {17: (700, 4000), 33: (700, 4000), 65: (400, 2500)}                 # published widths, narrow
RECIPES: dict[str, Recipe | ViTRecipe] = {
    name: Recipe(p, shrink, steps=STEPS[p][shrink > 1], lr=2e-3 if shrink > 1 else 1e-3)
    for name, (p, shrink) in backbones.TEACHERS.items()
} | {"vit_tiny_distilled": ViTRecipe(6_000)}


def teacher(name: str, recipe: Recipe, into: Path) -> dict:
    """Train a teacher and write it with its record, which is returned."""
    runtime.seed(recipe.seed)
    where = runtime.device()
    backbone = backbones.load("efficientnet_lite0", layers=STAGES, size=recipe.look).to(where)
    patches, targets, asking = lessons(recipe, backbone)
    held_out = round(HELD_OUT * len(patches))
    start = time.perf_counter()
    net = nets.PatchNet(recipe.patch_size, shrink=recipe.shrink).to(where, memory_format=torch.channels_last)
    checkpoint = cache.folder() / "pretrain" / f"{name}.checkpoint"
    resumed = {"resumed": True} if checkpoint.is_file() else {}             # then the seconds are those of the rest
    decode, _ = students.distil_teacher(
        net, patches[held_out:], targets[held_out:], steps=recipe.steps, batch_size=recipe.batch_size, lr=recipe.lr,
        weight_decay=recipe.weight_decay, compact=recipe.compact, checkpoint=checkpoint)
    training = time.perf_counter() - start
    said = _over(patches[:held_out], lambda batch: decode(net(batch).flatten(1)))
    missed = (said - targets[:held_out]).square().mean() / targets[:held_out].var(0).mean()
    record = _write(net, into, {
        "name": name, "recipe": asdict(recipe) | {"compact": recipe.compact}, "explained": round(1 - missed.item(), 4),
        "data": {"photographs": len(PHOTOGRAPHS), "textures": DRAWN, "parts": DRAWN, "patches": recipe.patches},
        "backbone": {"name": backbone.name, "sha256": backbone.sha256},
        "seconds": {"patches and targets": round(asking, 1), "training": round(training, 1)} | resumed,
        "command": command(name, recipe)})
    checkpoint.unlink(missing_ok=True)
    return record


def transformer(name: str, recipe: ViTRecipe, into: Path) -> dict:
    """Train a transformer and write it with its record, which is returned."""
    runtime.seed(recipe.seed)
    where, images, seconds = runtime.device(), sources(recipe.seed), {}
    backbone = backbones.load("efficientnet_lite0", list(HEARD)).to(where)
    lessons = repr((recipe, VERSION, PHOTOGRAPHS, SIDE, DRAWN, version("scikit-image"), HEARD, backbone.sha256))
    digest = hashlib.sha256(lessons.encode()).hexdigest()[:12]
    checkpoints = {size: cache.folder() / "pretrain" / f"{name}-{digest}-{size}.checkpoint" for size in recipe.plan}
    resumed = {"resumed": True} if any(file.is_file() for file in checkpoints.values()) else {}
    pupil = Pupil(backbone.channels).to(where)
    for size, steps in recipe.plan.items():
        start = time.perf_counter()
        look = partial(pictures, images, size)
        pupil.standardise(backbone, look(LOOKED_AT))

        def loss(numbers: Tensor, look=look) -> Tensor:
            return pupil.missed(backbone, look(len(numbers))).mean()

        training.train(
            pupil, loss, torch.zeros(recipe.epoch), epochs=training.passes(recipe.epoch, recipe.batch_size, steps),
            batch_size=recipe.batch_size, checkpoint=checkpoints[size],
            optimizer=torch.optim.AdamW(pupil.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True))
        seconds[f"training at {size} pixels"] = round(time.perf_counter() - start, 1)
    runtime.seed(recipe.seed + 1)
    with torch.inference_mode():
        found = 1 - torch.stack([pupil.missed(backbone, batch) for batch in look(LOOKED_AT).split(32)]).mean(0)
    record = _write(pupil.net, into, {
        "name": name, "recipe": asdict(recipe),
        "explained": dict(zip([*(f"stage {i}" for i in HEARD), "whole"], [round(share, 4) for share in found.tolist()],
                              strict=True)),
        "data": {"photographs": len(PHOTOGRAPHS), "textures": DRAWN, "parts": DRAWN},
        "backbone": {"name": backbone.name, "sha256": backbone.sha256}, "seconds": seconds | resumed,
        "command": command(name, recipe)})
    for file in checkpoints.values():
        file.unlink(missing_ok=True)
    return record


class Pupil(nn.Module):
    """A transformer with linear layers that look in its tokens for the stages of a backbone, and for the last one's
    mean over all places in its class token.

    Args:
        channels: of the stages in `HEARD`.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.net, self.channels = vit.vit_tiny(), [*channels, channels[-1]]
        self.find = nn.ModuleList(nn.Linear(self.net.dim, width) for width in self.channels)
        for name in ("mean_", "std_"):
            self.register_buffer(name, torch.zeros(sum(self.channels)))

    def missed(self, backbone: backbones.Backbone, images: Tensor) -> Tensor:
        """The share of variance that was not found, of each stage and of the whole: (5,)."""
        images = images.to(self.mean_.device)
        with torch.no_grad():
            said = self.by_patch(backbone(images, images.shape[3]))
        states = self.net.states((images - 0.5) / 0.5)
        patches = [states[block + 1][:, 1:] for block in HEARD.values()]                    # (B, h·w, D) each
        tokens = [*patches, self.net.norm(states[-1])[:, :1]]
        wanted = [(target - mean) / std for target, mean, std in zip(
            said, self.mean_.split(self.channels), self.std_.split(self.channels), strict=True)]
        return torch.stack([F.mse_loss(find(found), target)
                            for find, found, target in zip(self.find, tokens, wanted, strict=True)])

    def by_patch(self, said: list[Tensor]) -> list[Tensor]:
        """The stages at the places of the patches, (B, h·w, C) each, and the mean of the last one, (B, 1, C)."""
        grid = said[2].shape[2:]                                                # stage 3 steps as the patches do, by 16
        here = [F.adaptive_avg_pool2d(level, grid) if level.shape[2] > grid[0] else
                F.interpolate(level, grid, mode="bilinear", align_corners=False) for level in said]
        return [level.flatten(2).mT for level in (*here, said[-1].mean((2, 3), keepdim=True))]

    @torch.no_grad()
    def standardise(self, backbone: backbones.Backbone, images: Tensor) -> None:
        """Set mean and deviation of all that is to be found."""
        said = [self.by_patch(backbone(batch.to(self.mean_.device), images.shape[3])) for batch in images.split(32)]
        rows = [torch.cat(level).flatten(0, 1) for level in zip(*said, strict=True)]                    # (·, C) each
        self.mean_ = torch.cat([level.mean(0) for level in rows])
        self.std_ = torch.cat([level.std(0).clamp_min(1e-6) for level in rows])


OPTIONS = {"steps": checks.positive_int, "patches": partial(checks.positive_int, minimum=1000), "seed": checks.seed}


def command(name: str, recipe: Recipe | ViTRecipe) -> str:
    """The line that makes it."""
    own = RECIPES[name]
    options = "".join(f" --{option} {getattr(recipe, option)}" for option in OPTIONS
                      if getattr(recipe, option, None) != getattr(own, option, None))
    return f"python -m adlearn.pretrain {name}{options}"


def lessons(recipe: Recipe, backbone: backbones.Backbone) -> tuple[Tensor, Tensor, float]:
    """Patches (N, 3, p, p), uint8, the standardised features of the backbone for each, (N, D), and the seconds that
    this took, now or when it was kept."""
    key = {"version": VERSION, "sources": [PHOTOGRAPHS, SIDE, DRAWN], "skimage": version("scikit-image"),
           "p": recipe.patch_size, "n": recipe.patches, "seed": recipe.seed,
           "look": recipe.look, "stages": STAGES, "weights": backbone.sha256}

    def build() -> dict[str, Tensor]:
        start = time.perf_counter()
        patches = cut(sources(recipe.seed), recipe)

        def describe(batch: Tensor) -> Tensor:
            return torch.cat([level.mean((2, 3)) for level in backbone(batch)], dim=1)                  # (B, 472)

        features = _over(patches, describe)
        return {"patches": patches, "features": features, "seconds": torch.tensor(time.perf_counter() - start)}

    found = cache.tensors(f"patches-{recipe.patch_size}", key, build)
    features = found["features"]
    targets = (features - features.mean(0)) / features.std(0).clamp_min(1e-6)
    return found["patches"], targets, found["seconds"].item()


def sources(seed: int) -> list[Tensor]:
    """Photographs, drawn textures and drawn parts on textures: (3, SIDE, SIDE) uint8 each."""
    from PIL import Image

    try:
        root = resources.files("skimage") / "data"
    except ModuleNotFoundError as missing:
        raise ImportError("the photographs come with scikit-image: pip install scikit-image") from missing
    found = []
    for name in PHOTOGRAPHS:
        with Image.open(root / name) as image:
            image = image.convert("RGB")
            factor = SIDE / min(image.size)
            image = image.resize([max(SIDE, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)
            found.append(torch.from_numpy(np.asarray(image).copy()).movedim(2, 0))
    rng = np.random.default_rng([seed, VERSION])
    for _ in range(DRAWN):
        textures = background(rng, 3, SIDE)
        tone = paint.colours(rng, rng.uniform(0.2, 0.8, 1))
        mixed = np.einsum("ct,txy->cxy", rng.uniform(-0.25, 0.25, (3, 3)), textures)
        found.append(torch.from_numpy(paint.to_bytes(tone[0] + mixed)))
    for number in range(DRAWN):
        shape = list(CLASSES.values())[number % len(CLASSES)]
        found.append(torch.from_numpy(render(scene(shape, rng, 1, SIDE))[0]))
    return found


def cut(images: list[Tensor], recipe: Recipe) -> Tensor:
    """Patches (N, 3, p, p), uint8: each image shrunk or enlarged until its side is 4 to 16 patches, and cut anywhere;
    one in ten is grey, every second mirrored. Half of them are of photographs, a quarter of textures and of parts."""
    generator = torch.Generator().manual_seed(recipe.seed)
    patches = []
    for number in range(recipe.patches):
        image = _one_of(images, number, generator)
        *place, coin, colour = torch.rand(5, generator=generator).tolist()
        patch = _window(image, place, recipe.patch_size, SIDE // 4)
        patch = patch.flip(2) if coin < 0.5 else patch
        patches.append(patch.mean(0, keepdim=True).expand(3, -1, -1) if colour < 0.1 else patch)
    order = torch.randperm(len(patches), generator=generator)
    return torch.stack(patches).round_().clamp_(0, 255).byte()[order]


def pictures(images: list[Tensor], size: int, count: int) -> Tensor:
    """Pictures (count, 3, size, size) in [0, 1], new each time: squares with a quarter of an image's side or more, in
    changing light; one in four is grey, every second mirrored. Of the sources in the same shares as patches."""
    found = torch.stack([_window(_one_of(images, number), torch.rand(3).tolist(), size, SIDE)
                         for number in range(count)])
    return LIGHT((found / 255).clamp_(0, 1))


def _one_of(images: list[Tensor], number: int, generator: torch.Generator | None = None) -> Tensor:
    """An image for the patch or picture of this number: half of them photographs, a quarter textures and parts."""
    photographs, textures, drawn = images[:len(PHOTOGRAPHS)], images[len(PHOTOGRAPHS):-DRAWN], images[-DRAWN:]
    kind = (photographs, textures, photographs, drawn)[number % 4]
    return kind[int(torch.randint(len(kind), (), generator=generator))]


def _window(image: Tensor, place: Sequence[float], size: int, largest: int) -> Tensor:
    """A square of an image, (3, size, size), whose side is the largest one to a quarter of it; `place` is three numbers
    in [0, 1): how far down, how far across, and how small, on a logarithmic scale."""
    down, across, small = place
    side = round(largest / 4 ** small)
    top, left = int(down * (image.shape[1] - side + 1)), int(across * (image.shape[2] - side + 1))
    square = image[None, :, top:top + side, left:left + side].float()
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


@torch.inference_mode()
def _over(patches: Tensor, describe: Callable[[Tensor], Tensor]) -> Tensor:
    """`describe` of all patches in [0, 1], batch by batch, on the CPU."""
    batches = runtime.progress(patches.split(256), "patches")
    return torch.cat([describe(batch.to(runtime.device()).float() / 255).float().cpu() for batch in batches])


def _write(net: nn.Module, into: Path, record: dict) -> dict:
    """Weights in half precision, and beside them the record, which is returned with what is known of every one."""
    from safetensors.torch import save

    weights = save({key: value.half().contiguous() for key, value in net.cpu().state_dict().items()})
    record = record | {
        "device": runtime.device_name(), "sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {"python": platform.python_version(), "adlearn": __version__,
                     **{package: version(package) for package in ("torch", "timm", "scikit-image")}}}
    cache.replace(into / f"{record['name']}.safetensors", weights)
    cache.replace(into / f"{record['name']}.json", (json.dumps(record, indent=2) + "\n").encode())
    return record


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m adlearn.pretrain", description=__doc__.split("\n\n")[0])
    parser.add_argument("name", nargs="?", help=", ".join(RECIPES))
    parser.add_argument("--steps", type=int, help="of the training; by default the shipped teacher's")
    parser.add_argument("--patches", type=int, help="that are cut, the held-out ones included")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--into", type=Path, help="folder; by default this package's own, for the shipped recipe only")
    parser.add_argument("--list", action="store_true", help="name all weights with their recipes")
    asked = parser.parse_args(arguments)
    if asked.list or asked.name is None:
        for name, recipe in RECIPES.items():
            print(f"{name}: {recipe}")
        return 0
    try:
        own = RECIPES[checks.choice(asked.name, RECIPES, "name")]
        changed = {option: check(value, option) for option, check in OPTIONS.items()
                   if (value := getattr(asked, option)) is not None}
        if strange := changed.keys() - asdict(own).keys():
            raise ValueError(f"{asked.name} has no --{', --'.join(strange)}: its pictures are new at every step")
        recipe = replace(own, **changed)
        if recipe != own and asked.into is None:
            raise ValueError("--into must name a folder: weights of another recipe would replace those that are "
                             "shipped")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    make = transformer if isinstance(recipe, ViTRecipe) else teacher
    print(json.dumps(make(asked.name, recipe, asked.into or backbones.SHIPPED), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
