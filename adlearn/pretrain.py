"""The scripts that made the shipped weights.

    python -m adlearn.pretrain --list
    python -m adlearn.pretrain teacher_17_narrow
    python -m adlearn.pretrain teacher_65 --steps 20000 --into my_weights

A teacher learns on patches of photographs, drawn textures and drawn parts what EfficientNet-Lite0 says of them. Every
patch is cut once, the backbone is asked once, and what it said is kept in the cache. A finished teacher is written in
half precision as `<name>.safetensors`, with a record beside it, `<name>.json`, of how it came about and how much of the
variance of the backbone's features it explains on a tenth of the patches, from which it has not learnt. (These were cut
from the same images at other places: of images of another kind it would explain less.)

The paper's large network is a ResNet-18, its images are ImageNet's, and it shrinks them evenly; this one draws the
logarithm of the factor, and mirrors every second patch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adlearn import __version__, backbones, cache, checks, nets, runtime
from adlearn.data import paint
from adlearn.data.parts import CLASSES, background, render, scene
from adlearn.methods import students

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


# What two cores do in half an hour or less; all would gain by more.
STEPS = {17: (700, 4000), 33: (700, 4000), 65: (400, 2500)}                 # published widths, narrow
RECIPES = {name: Recipe(p, shrink, steps=STEPS[p][shrink > 1], lr=2e-3 if shrink > 1 else 1e-3)
           for name, (p, shrink) in backbones.TEACHERS.items()}


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
    weights = into / f"{name}.safetensors"
    _write(net, weights)
    record = {
        "name": name, "recipe": asdict(recipe) | {"compact": recipe.compact}, "explained": round(1 - missed.item(), 4),
        "data": {"photographs": len(PHOTOGRAPHS), "textures": DRAWN, "parts": DRAWN, "patches": recipe.patches},
        "backbone": {"name": backbone.name, "sha256": backbone.sha256},
        "seconds": {"patches and targets": round(asking, 1), "training": round(training, 1)} | resumed,
        "device": runtime.device_name(), "command": command(name, recipe),
        "versions": {"python": platform.python_version(), "adlearn": __version__,
                     **{package: version(package) for package in ("torch", "timm", "scikit-image")}},
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    cache.replace(into / f"{name}.json", (json.dumps(record, indent=2) + "\n").encode())
    checkpoint.unlink(missing_ok=True)
    return record


def command(name: str, recipe: Recipe) -> str:
    """The line that makes it."""
    own = RECIPES[name]
    options = "".join(f" --{option} {getattr(recipe, option)}" for option in ("steps", "patches", "seed")
                      if getattr(recipe, option) != getattr(own, option))
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
    p = recipe.patch_size
    photographs, textures, drawn = images[:len(PHOTOGRAPHS)], images[len(PHOTOGRAPHS):-DRAWN], images[-DRAWN:]
    kinds = photographs, textures, photographs, drawn
    patches = []
    for number in range(recipe.patches):
        kind = kinds[number % len(kinds)]
        image = kind[int(torch.randint(len(kind), (), generator=generator))]
        across, down, which, coin, colour = torch.rand(5, generator=generator).tolist()
        side = round(SIDE / (4 * 4 ** which))                               # log-uniform
        top, left = int(across * (image.shape[1] - side + 1)), int(down * (image.shape[2] - side + 1))
        window = image[:, top:top + side, left:left + side].float()
        patch = F.interpolate(window[None], (p, p), mode="bilinear", antialias=True, align_corners=False)[0]
        patch = patch.flip(2) if coin < 0.5 else patch
        patches.append(patch.mean(0, keepdim=True).expand(3, -1, -1) if colour < 0.1 else patch)
    order = torch.randperm(len(patches), generator=generator)
    return torch.stack(patches).round_().clamp_(0, 255).byte()[order]


@torch.inference_mode()
def _over(patches: Tensor, describe: Callable[[Tensor], Tensor]) -> Tensor:
    """`describe` of all patches in [0, 1], batch by batch, on the CPU."""
    batches = runtime.progress(patches.split(256), "patches")
    return torch.cat([describe(batch.to(runtime.device()).float() / 255).float().cpu() for batch in batches])


def _write(net: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import save

    cache.replace(path, save({key: value.half().contiguous() for key, value in net.cpu().state_dict().items()}))


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
        allowed = {"steps": checks.positive_int, "patches": partial(checks.positive_int, minimum=1000),
                   "seed": checks.seed}
        changed = {option: check(value, option) for option, check in allowed.items()
                   if (value := getattr(asked, option)) is not None}
        recipe = replace(own, **changed)
        if recipe != own and asked.into is None:
            raise ValueError("--into must name a folder: a teacher of another recipe would replace the one that is "
                             "shipped")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(teacher(asked.name, recipe, asked.into or backbones.SHIPPED), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
