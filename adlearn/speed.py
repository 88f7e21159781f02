"""How fast our functions are beside their peers, in one process, runs taken in turn.

Each ratio returns the median seconds of both and how many times as long the peer takes: above 1, ours is faster.
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adlearn import augment, checks, dense, losses, metrics, neighbors, nets, training


def aupro_ratio(*, images: int = 500, size: int = 256, repeats: int = 3) -> dict[str, float]:
    """AUPRO of drawn maps: `metrics.aupro` against scikit-learn's ROC curve with a region pixel weighted 1 / |C|."""
    masks, maps = _drawn_maps(images, size)
    return _compare(lambda: metrics.aupro(masks, maps), lambda: _weighted_roc_aupro(masks, maps), repeats)


def neighbors_ratio(
    *, queries: int = 10_000, bank: int = 200_000, width: int = 512, k: int = 1, repeats: int = 3
) -> dict[str, float]:
    """The k nearest of random rows: `neighbors.knn` against the flat index of faiss, on as many threads."""
    import faiss

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(bank, width, generator=generator)
    asked = torch.randn(queries, width, generator=generator)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(width)
    index.add(rows.numpy())
    return _compare(
        lambda: neighbors.knn(asked, rows, k)[0].sum().item(),
        lambda: float(np.sqrt(index.search(asked.numpy(), k)[0]).sum()),
        repeats,
    )


def augment_ratio(
    *, peer: str = "torchvision", blur: bool = False, images: int = 512, size: int = 32, repeats: int = 9
) -> dict[str, float]:
    """SimCLR's recipe for CIFAR-10 on a batch: `augment.simclr` against torchvision or kornia.

    torchvision is applied image by image, as in a data set. kornia takes the batch, and draws one order of the colour
    changes for all of it, where ours draws one an image. Random results agree in distribution only, see `_moments`.
    """
    peers = {"torchvision": _torchvision_simclr, "kornia": _kornia_simclr}
    theirs = peers[checks.choice(peer, peers, "peer")](size, blur)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(images, 3, 4, 4, generator=generator)
    batch = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    recipe = augment.simclr(blur=blur)
    return _compare(lambda: recipe(batch), lambda: theirs(batch), repeats, summary=_moments, rtol=0.1)


LOSSES = ("batch_all_triplet", "semi_hard_triplet", "n_pair", "supcon", "info_nce")


def loss_ratio(loss: str, *, rows: int = 512, repeats: int = 7) -> dict[str, float]:
    """Forward and backward of a loss on random rows of 128: ours against pytorch-metric-learning's.

    Classes of four rows, or pairs. The semi-hard triplets of the two are not the same (ours: one negative for each
    pair; theirs: all within the margin), so only there the values are not compared.
    """
    ours, peer = _loss_steps(checks.choice(loss, LOSSES, "loss"), rows)
    return _compare(ours, peer, repeats, summary=np.isfinite if loss == "semi_hard_triplet" else float, rtol=1e-4)


def loss_memory(loss: str, *, rows: int = 512) -> dict[str, float]:
    """Megabytes by which one forward and backward raises the peak of a fresh process: ours and the peer's.

    The peak of the imports hides small needs: 0 at a few hundred rows means less than that.
    """
    from multiprocessing import get_context

    checks.choice(loss, LOSSES, "loss")
    found = {}
    for number, name in enumerate(("ours", "peer")):
        with get_context("spawn").Pool(1) as pool:
            found[f"{name}_megabytes"] = pool.apply(_peak, (loss, rows, number))
    return found


def _peak(loss: str, rows: int, number: int) -> float:
    """Run one of the two steps, after a small one that loads what it needs."""
    _loss_steps(loss, 64)[number]()
    step = _loss_steps(loss, rows)[number]
    before = _peak_bytes()
    step()
    return (_peak_bytes() - before) / 1e6


def _peak_bytes() -> int:
    """The most memory that this process has held; on Linux not by `getrusage`, whose peak a child inherits."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _loss_steps(loss: str, rows: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """Forward and backward on the same rows, ours and the peer's."""
    from pytorch_metric_learning import distances, miners, reducers
    from pytorch_metric_learning import losses as theirs

    squared = distances.LpDistance(normalize_embeddings=True, p=2, power=2)
    hinge = theirs.TripletMarginLoss(margin=0.2, distance=squared, reducer=reducers.AvgNonZeroReducer())
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=squared)
    supcon, nt_xent = theirs.SupConLoss(0.1), theirs.NTXentLoss(0.5)
    n_pair = theirs.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
    fours, twos = torch.arange(rows) // 4, torch.arange(rows // 2).repeat(2)
    peers = {"batch_all_triplet": lambda z: hinge(z, fours),
             "semi_hard_triplet": lambda z: hinge(z, fours, miner(z, fours)),
             "supcon": lambda z: supcon(z, fours),
             "info_nce": lambda z: nt_xent(z, twos),
             "n_pair": lambda z: n_pair(z, twos)}
    ours = {"n_pair": lambda z: losses.n_pair(*z.chunk(2), l2=0.0), "info_nce": lambda z: losses.info_nce(*z.chunk(2))}
    z = torch.randn(rows, 128, generator=torch.Generator().manual_seed(0)).mul_(0.2).requires_grad_()

    def step(function: Callable[[Tensor], Tensor]) -> float:
        z.grad = None
        value = function(z)
        value.backward()
        return value.item()

    mine = ours.get(loss, lambda z: getattr(losses, loss)(z, fours))
    return partial(step, mine), partial(step, peers[loss])


def step_ratio(*, encoder: str = "resnet18", images: int = 32, repeats: int = 5) -> dict[str, float]:
    """A training step of CSI, two views of four rotations of each image, against a bare loop on views made before.

    The loop is the textbook's: the same network with weights and images in channels_last, a matrix of cosines without
    its diagonal, cross entropies, Adam.
    """
    batch, ours, view = _csi(encoder, images)
    ready = view(torch.cat([batch, batch])).contiguous(memory_format=torch.channels_last)           # (8B, 3, 32, 32)
    theirs = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    same = torch.eye(len(ready), dtype=torch.bool)
    partner = torch.arange(len(ready)).view(4, 2, images).flip(1).flatten()
    turned = torch.arange(4).repeat_interleave(2 * images)

    def textbook() -> Tensor:
        h = theirs.model.encoder(ready)
        z = F.normalize(theirs.model.head(h), dim=1)
        logits = (z @ z.T / theirs.temperature).masked_fill(same, -torch.inf)
        return F.cross_entropy(logits, partner) + F.cross_entropy(theirs.linear(h), turned)

    if not np.isclose(textbook().item(), ours.objective(batch, lambda _: ready).item(), rtol=1e-4):
        raise RuntimeError("the losses disagree, so their times mean nothing")

    def step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> bool:
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return math.isfinite(value.item())

    return _compare(partial(step, lambda: ours.objective(batch, view), training.Adam(ours.parameters())),
                    partial(step, textbook, torch.optim.Adam(theirs.parameters())), repeats)


def step_share(*, encoder: str = "small", images: int = 32, repeats: int = 30) -> float:
    """The share of a training step of CSI, as in `step_ratio`, that is not forward and backward: views and weights."""
    batch, ours, view = _csi(encoder, images)
    optimizer, shares = training.Adam(ours.parameters()), []
    for _ in range(repeats):
        clock = [time.perf_counter()]
        views = view(torch.cat([batch, batch]))
        clock.append(time.perf_counter())
        ours.objective(batch, lambda _, made=views: made).backward()
        clock.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.append(time.perf_counter())
        whole, inside = clock[3] - clock[0], clock[2] - clock[1]
        shares.append(1 - inside / whole)
    return statistics.median(shares)


def _csi(encoder: str, images: int) -> tuple[Tensor, torch.nn.Module, Callable[[Tensor], Tensor]]:
    """Noise (images, 3, 32, 32), a CSI in training mode, and what draws its views."""
    from adlearn.methods import CSI, csi  # not above: the imports of a process hide its peak of memory

    batch = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    detector = CSI(encoder=encoder).afresh(batch).train()
    return batch, detector, augment.views_of_shifts(detector.shift, recipe=csi.VIEWS)


def dense_ratio(
    patch_size: int, *, shrink: int = 1, size: int = 256, sample: int = 128, repeats: int = 3
) -> dict[str, float]:
    """Descriptors of all pixels of one image: `dense.dense_features` against the same network patch by patch.

    Patch by patch is timed on `sample` of the image's patches, cut beforehand, and multiplied. Also `of_peak`, the
    share of the machine's convolution peak that the one pass reaches, and the most `megabytes` that a fresh process
    held for it, everything imported included.
    """
    from multiprocessing import get_context

    generator = torch.Generator().manual_seed(0)
    net = nets.PatchNet(patch_size, shrink=shrink).to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, size, size, generator=generator)
    padded = F.pad(image, (patch_size // 2, patch_size - 1 - patch_size // 2) * 2, mode="reflect")
    places = torch.randint(size, (sample, 2), generator=generator)
    patches = torch.stack([padded[0, :, r:r + patch_size, c:c + patch_size] for r, c in places.tolist()])
    patches = patches.contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(128, 256, 5).to(memory_format=torch.channels_last)
    maps = torch.rand(1, 128, 96, 96).contiguous(memory_format=torch.channels_last)

    def everywhere() -> Tensor:
        return dense.dense_features(net, image, patch_size)

    with torch.inference_mode():
        found = _compare(lambda: everywhere()[0, :, places[:, 0], places[:, 1]].T, lambda: net(patches).flatten(1),
                         repeats, summary=lambda rows: rows.norm(dim=1).numpy(), rtol=1e-4)
        found["peer_seconds"] *= size * size / sample
        found["ratio"] = found["peer_seconds"] / found["ours_seconds"]
        found["of_peak"] = _flops_a_second(everywhere, repeats) / _flops_a_second(lambda: layer(maps), repeats)
    with get_context("spawn").Pool(1) as pool:
        return found | {"megabytes": pool.apply(_held_by_dense, (patch_size, shrink, size))}


def gallery_ratio(*, size: int = 224, neighbors: int = 5, sample: int = 64, repeats: int = 3) -> dict[str, float]:
    """SPADE's search for one image, all its positions in the gallery of its neighbours: against the differences of all
    pairs, written down.

    The latter is timed on `sample` of the positions and multiplied. Also `of_peak`, the share of the machine's peak of
    matrix products that the search reaches, enlarging the stages included, and the most `megabytes` that a fresh
    process held when it looked for the anomalies of one image among a hundred.
    """
    from multiprocessing import get_context

    from adlearn.methods import SPADE, spade

    detector = SPADE(size=size, neighbors=neighbors, sigma=0)
    noise = torch.rand(1 + neighbors, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        _, levels = detector.describe(noise)
        image, others = [level[:1] for level in levels], [level[1:] for level in levels]
        rows, bank = (spade.joined(part).movedim(1, 3).flatten(0, 2) for part in (image, others))
        places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:sample]

        def search() -> Tensor:
            return detector.distances(spade.joined(image), spade.joined(others)).flatten()

        found = _compare(lambda: search()[places],
                         lambda: (rows[places, None] - bank).square().sum(2).amin(1), repeats,
                         summary=lambda squared: squared.numpy(), rtol=1e-3)
        found["peer_seconds"] *= len(rows) / sample
        found["ratio"] = found["peer_seconds"] / found["ours_seconds"]
        square = torch.rand(2048, 2048)
        found["of_peak"] = _flops_a_second(search, repeats) / _flops_a_second(lambda: square @ square, repeats)
    with get_context("spawn").Pool(1) as pool:
        return found | {"megabytes": pool.apply(_held_by_search, (size, neighbors))}


def _held_by_search(size: int, neighbors: int) -> float:
    from adlearn.methods import SPADE

    images = torch.rand(100, 1, size, size)
    SPADE(size=size, neighbors=neighbors).fit(images).localize(images[:1])
    return _peak_bytes() / 1e6


def _flops_a_second(run: Callable, repeats: int) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return counter.get_total_flops() / statistics.median(seconds)


def _held_by_dense(patch_size: int, shrink: int, size: int) -> float:
    net = nets.PatchNet(patch_size, shrink=shrink)
    with torch.inference_mode():
        dense.dense_features(net, torch.rand(1, 3, size, size), patch_size)
    return _peak_bytes() / 1e6


def _compare(
    ours: Callable, peer: Callable, repeats: int, *, summary: Callable = float, rtol: float = 1e-5
) -> dict[str, float]:
    """Medians of runs in the order ours, peer, ours, peer, ... which must agree on the result, or on its summary."""
    seconds = {"ours": [], "peer": []}
    results = {}
    for _ in range(repeats):
        for name, run in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
    results = {name: summary(result) for name, result in results.items()}
    if not np.allclose(results["ours"], results["peer"], rtol=rtol):
        raise RuntimeError(f"the two disagree, so their times mean nothing: {results}")
    medians = {f"{name}_seconds": statistics.median(times) for name, times in seconds.items()}
    return {**medians, "ratio": medians["peer_seconds"] / medians["ours_seconds"]}


def _drawn_maps(images: int, size: int) -> tuple[Tensor, Tensor]:
    """Noise maps, brighter in the rectangles that every second image has as its defects."""
    rng = np.random.default_rng(0)
    masks = np.zeros((images, size, size), dtype=bool)
    for mask in masks[::2]:
        for top, left, height, width in rng.integers(2, size // 8, (3, 4)) * [7, 7, 1, 1]:
            mask[top : top + height, left : left + width] = True
    maps = rng.standard_normal(masks.shape, dtype=np.float32) + masks
    return torch.from_numpy(masks), torch.from_numpy(maps)


def _weighted_roc_aupro(masks: Tensor, maps: Tensor, max_fpr: float = 0.3) -> float:
    from scipy import ndimage
    from sklearn.metrics import auc, roc_curve

    weights = np.ones(masks.shape)
    for mask, weight in zip(masks.numpy(), weights, strict=True):
        components, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        weight[mask] = 1 / np.bincount(components.ravel())[components[mask]]
    fpr, pro, _ = roc_curve(masks.flatten().numpy(), maps.flatten().numpy(), sample_weight=weights.ravel())
    inside = fpr <= max_fpr
    end = np.interp(max_fpr, fpr, pro)
    return auc(np.append(fpr[inside], max_fpr), np.append(pro[inside], end)) / max_fpr


def _torchvision_simclr(size: int, blur: bool) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    blurred = [v2.RandomApply([v2.GaussianBlur(2 * max(1, size // 20) + 1, (0.1, 2.0))], p=0.5)]
    one = v2.Compose([
        v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(0.2), *blurred * blur,
    ])
    return lambda batch: torch.stack([one(image) for image in batch])


def _kornia_simclr(size: int, blur: bool) -> Callable[[Tensor], Tensor]:
    from kornia import augmentation

    kernel = 2 * max(1, size // 20) + 1
    blurred = [augmentation.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5)]
    return torch.nn.Sequential(
        augmentation.RandomResizedCrop((size, size), scale=(0.08, 1.0), align_corners=False),
        augmentation.RandomHorizontalFlip(), augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        augmentation.RandomGrayscale(p=0.2), *blurred * blur,
    )


def _moments(images: Tensor) -> np.ndarray:
    """For each channel: mean, deviation, mean difference of neighbouring pixels, and values outside [0, 1]."""
    outside = (images < -1e-6) | (images > 1 + 1e-6)                       # both peers' blur rounds to just above 1
    measures = [images.mean((0, 2, 3)), images.std((0, 2, 3)), images.diff(dim=3).abs().mean((0, 2, 3)),
                outside.sum((0, 2, 3))]
    return torch.stack(measures).numpy()                                                        # (4, C)


def report() -> None:
    """Print what every comparison gives on this machine; a quiet one, or the ratios mean little."""
    for name, compare in (("AUPRO, 500 maps of 256×256, against scikit-learn's weighted ROC curve", aupro_ratio),
                          ("1-NN, 10,000 × 200,000 × 512, against faiss's flat index", neighbors_ratio),
                          ("SimCLR's recipe, 512 × 3 × 32 × 32, against torchvision image by image", augment_ratio),
                          ("the same with blur", partial(augment_ratio, blur=True)),
                          ("SimCLR's recipe, 512 × 3 × 32 × 32, against kornia on the batch",
                           partial(augment_ratio, peer="kornia")),
                          ("the same with blur", partial(augment_ratio, peer="kornia", blur=True))):
        found = compare()
        ours, peer = found["ours_seconds"], found["peer_seconds"]
        print(f"{name}: {ours:.3g} s against {peer:.3g} s, ratio {found['ratio']:.2f}", flush=True)
    for patch_size in nets.PATCH_LAYERS:
        found = dense_ratio(patch_size)
        print(f"descriptors of all pixels, 256×256, patches of {patch_size}, against patch by patch: "
              f"{found['ours_seconds']:.3g} s against {found['peer_seconds']:.3g} s, ratio {found['ratio']:.0f}; "
              f"{found['of_peak']:.2f} of the convolution peak; {found['megabytes']:.0f} MB", flush=True)
    found = gallery_ratio()
    print(f"SPADE's search for one image of 224×224, K = 5, against all differences: {found['ours_seconds']:.3g} s "
          f"against {found['peer_seconds']:.3g} s, ratio {found['ratio']:.0f}; {found['of_peak']:.2f} of the peak of "
          f"matrix products; {found['megabytes']:.0f} MB", flush=True)
    for encoder in ("resnet18", "small"):
        found = step_ratio(encoder=encoder)
        print(f"a step of CSI, 256 views, {encoder}, against a bare loop on ready views: {found['ours_seconds']:.3g} s "
              f"against {found['peer_seconds']:.3g} s, ratio {found['ratio']:.2f}; outside of forward and backward "
              f"{step_share(encoder=encoder):.0%} of it", flush=True)
    for most in (512, 4096):
        for loss in LOSSES:
            rows = min(most, 1024) if loss == "info_nce" else most              # the peer's memory grows with the cube
            found = loss_ratio(loss, rows=rows) | loss_memory(loss, rows=rows)
            print(f"{loss}, {rows} × 128, against pytorch-metric-learning: {found['ours_seconds']:.3g} s against "
                  f"{found['peer_seconds']:.3g} s, ratio {found['ratio']:.2f}; peak memory "
                  f"{found['ours_megabytes']:.0f} MB against {found['peer_megabytes']:.0f} MB", flush=True)
