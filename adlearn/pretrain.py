"""How the weights that this package ships are made: ``python -m adlearn.pretrain teacher_33``, or ``all``.

A teacher of Uninformed Students learns to say of a patch what a network trained on ImageNet says of it. Its patches
show things of all kinds and never what is to be inspected:

    photographs    that come with scikit-image, in the public domain or free to use
    textures       and parts, drawn by `adlearn.data.parts`

Beside the weights, in float16, a JSON file of the same name tells how they were made, how long that took, and how much
of what the pretrained network says a linear map finds in the descriptors of patches from photographs that no teacher
has seen.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adlearn import augment, backbones, runtime, training
from adlearn.data import paint
from adlearn.data.parts import CLASSES, background, whole
from adlearn.methods import students
from adlearn.nets import PatchNet

PHOTOGRAPHS = ("astronaut", "brick", "camera", "cat", "cell", "clock", "coins", "grass", "gravel", "hubble_deep_field",
               "immunohistochemistry", "moon", "page", "retina", "text")
HELD_OUT = ("coffee", "rocket")
SHARES = {"photographs": 0.6, "textures": 0.2, "parts": 0.2}
GREY = 0.25                                         # inspection is often grey; the paper drops the colour of a tenth
# name: patch size, and by how much the network is narrower than the published one
TEACHERS = {f"teacher_{size}{'_narrow' if shrink > 1 else ''}": (size, shrink)
            for shrink in (1, 4) for size in (17, 33, 65)}


def photograph(name: str) -> Tensor:
    """One of scikit-image's, (3, H, W) in [0, 1]."""
    from skimage import data

    image = torch.from_numpy(np.ascontiguousarray(getattr(data, name)())).float()
    image = image[..., :3].movedim(2, 0) if image.ndim == 3 else image.expand(3, *image.shape)
    return image / 255


def pictures(kind: str, rng: np.random.Generator) -> list[Tensor]:
    """What patches of one kind are cut from, (3, H, W) in [0, 1] each."""
    if kind == "photographs":
        return [photograph(name) for name in PHOTOGRAPHS]
    if kind == "held out":
        return [photograph(name) for name in HELD_OUT]
    if kind == "textures":
        tint = paint.colours(rng, rng.uniform(0.3, 0.8, 300))                               # (300, 3, 1, 1)
        drawn = tint * (1 + 0.4 * background(rng, 300, 256)[:, None])
    else:
        drawn = np.concatenate([whole(name, "train", 256, 32, 0) for name in CLASSES]) / 255
    return list(torch.from_numpy(np.ascontiguousarray(drawn)).float().clamp(0, 1))


def cut(images: list[Tensor], count: int, patch_size: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Squares of a sixteenth to a quarter of the shorter side, anywhere, as `patch_size` pixels, (3, p, p) each.

    So large are the patches of an image that is resized to a side of 4 to 16 of them, as the paper does.
    """
    for _ in range(count):
        image = images[rng.integers(len(images))]
        H, W = image.shape[1:]
        side = int(min(H, W) / rng.uniform(4, 16))
        top, left = rng.integers(H - side + 1), rng.integers(W - side + 1)
        patch = image[None, :, top:top + side, left:left + side]
        yield F.interpolate(patch, (patch_size,) * 2, mode="bilinear", antialias=True, align_corners=False)[0]


def patches(patch_size: int, shares: dict[str, float], count: int, seed: int) -> Tensor:
    """(count, 3, p, p) in [0, 1], in no order: turned, mirrored, of other colours, some grey."""
    rng, found = np.random.default_rng([seed, patch_size]), []
    for kind, share in shares.items():
        found += cut(pictures(kind, rng), round(share * count), patch_size, rng)
    change = augment.Compose(augment.RandomRotation(), augment.RandomHorizontalFlip(),
                             augment.ColorJitter(0.4, 0.4, 0.4, 0.1), augment.RandomGrey(GREY))
    return change(torch.stack(found).clamp(0, 1), torch.Generator().manual_seed(seed))


def said(patches: Tensor, side: int) -> Tensor:
    """What the pretrained network says of patches, (N, 152): the averages of its two middle feature maps.

    Its last map says what a photograph shows as a whole, of which a patch knows too little: of its variance over
    patches of unseen photographs a teacher found next to nothing.
    """
    network = backbones.load("efficientnet_lite0", layers=(2, 3), size=side).to(runtime.device())
    return training.collect(lambda batch: torch.cat([level.mean((2, 3)) for level in network(batch)], dim=1), patches,
                            device=runtime.device())


def explained(teacher: PatchNet, seen: tuple[Tensor, Tensor], unseen: tuple[Tensor, Tensor]) -> float:
    """Share of the targets' variance that a linear map of descriptors, fitted where the teacher learnt, has elsewhere.

    1 says everything that the pretrained network says, 0 no more than its mean.
    """
    device = training.device_of(teacher)
    rows = [F.pad(training.collect(lambda batch: teacher(batch).flatten(1), inputs, device=device), (0, 1), value=1.0)
            for inputs, _ in (seen, unseen)]
    decoder = torch.linalg.lstsq(rows[0], seen[1]).solution
    wanted = unseen[1]
    return 1 - ((rows[1] @ decoder - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()).item()


def make_teacher(name: str, *, count: int, steps: int, lr: float = 2e-3, seed: int = 0, into: Path) -> dict:
    """Train one of `TEACHERS`, write its weights and its record to the folder `into`, and return the record."""
    patch_size, shrink = TEACHERS[name]
    started, side = time.perf_counter(), 96 if patch_size == 65 else 64
    runtime.seed(seed)
    seen, unseen = patches(patch_size, SHARES, count, seed), patches(patch_size, {"held out": 1.0}, count // 10, seed)
    targets, unseen_targets = said(seen, side), said(unseen, side)
    prepared = time.perf_counter()
    teacher = PatchNet(patch_size, shrink=shrink).to(runtime.device(), memory_format=torch.channels_last)
    losses = students.distil_teacher(teacher, seen, targets, epochs=training.passes(count, 64, steps), lr=lr)
    record = {
        "patch_size": patch_size, "shrink": shrink, "patches": count, "steps": steps, "lr": lr,
        "seed": seed, "shares": SHARES, "grey": GREY, "photographs": PHOTOGRAPHS, "held_out": HELD_OUT,
        "target": f"efficientnet_lite0, feature maps 2 and 3 of patches resized to {side}, averaged",
        "losses": [round(value, 3) for value in (losses[0], losses[-1])],
        "explained": round(explained(teacher, (seen[:10_000], targets[:10_000]), (unseen, unseen_targets)), 3),
        "seconds": {"patches": round(prepared - started), "training": round(time.perf_counter() - prepared)},
        "device": runtime.device_name(), "torch": torch.__version__}
    backbones.ship(name, teacher.state_dict(), record, into)
    return {"name": name, **record}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m adlearn.pretrain", description=__doc__.split("\n\n")[0])
    parser.add_argument("name", choices=[*TEACHERS, "all"])
    parser.add_argument("--patches", type=int, default=30_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--into", type=Path, default=backbones.SHIPPED, help="a folder; the package's own by default")
    asked = parser.parse_args(arguments)
    for name in TEACHERS if asked.name == "all" else [asked.name]:
        print(json.dumps(make_teacher(name, count=asked.patches, steps=asked.steps, lr=asked.lr, into=asked.into)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
