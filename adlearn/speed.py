"""How fast the exact metrics and neighbours are beside their peers, in one process, runs taken in turn.

Each function returns the median seconds of both and how many times as long the peer takes: above 1, ours is faster.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adlearn import metrics, neighbors


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


def _compare(ours: Callable[[], float], peer: Callable[[], float], repeats: int) -> dict[str, float]:
    """Medians of runs in the order ours, peer, ours, peer, ... which must agree on the result."""
    seconds = {"ours": [], "peer": []}
    results = {}
    for _ in range(repeats):
        for name, run in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
    if not np.isclose(results["ours"], results["peer"], rtol=1e-5):
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


def report() -> None:
    """Print what every comparison gives on this machine; a quiet one, or the ratios mean little."""
    for name, compare in (("AUPRO, 500 maps of 256×256, against scikit-learn's weighted ROC curve", aupro_ratio),
                          ("1-NN, 10,000 × 200,000 × 512, against faiss's flat index", neighbors_ratio)):
        found = compare()
        ours, peer = found["ours_seconds"], found["peer_seconds"]
        print(f"{name}: {ours:.2f} s against {peer:.2f} s, ratio {found['ratio']:.2f}")
