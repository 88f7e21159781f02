"""Exact nearest neighbours in bounded memory, and a memory bank whose size is part of its state.

Squared distances to many rows are cheap as one matrix product, |q|² - 2 q·b + |b|², but rounding there hides small
distances: a point would not be at distance 0 from itself. So the product only chooses candidates, a few more than
asked for, and their distances are then computed from differences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adlearn import checks

BUDGET = 2**28          # bytes of working memory, 256 MiB
SPARE = 4               # candidates beyond k, so that rounding in the products does not decide who wins
GROUP = 16              # entries of a row that share one minimum in `_smallest`


@torch.no_grad()
def knn(queries: Tensor, bank: Tensor, k: int, *, budget: int = BUDGET) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a bank, by Euclidean distance.

    queries (Q, D) and bank (N, D), floating point on one device; k from 1 to N. Returns distances (Q, k), ascending,
    and indices (Q, k) int64 into the bank; of equally near candidates the lower index comes first. All rows of the
    bank are compared. Computes in float32, or in float64 if an input is, also under autocast; in float32 two rows
    can swap places only if their squared distances differ by less than about 1e-6 of the data's squared spread.
    `budget` bounds the working memory in bytes, beyond inputs and result.
    """
    queries, bank = checks.rows(queries, "queries"), checks.rows(bank, "bank")
    checks.rows(queries[:1], "queries", width=bank.shape[1])
    if not 1 <= checks.positive_int(k, "k") <= len(bank):
        raise ValueError(f"k must be at most the {len(bank)} rows of bank, got {k}: lower k or fill the bank")
    dtype = torch.promote_types(torch.promote_types(queries.dtype, bank.dtype), torch.float32)
    candidates = min(k + SPARE, len(bank))
    sides = _block_sides(len(queries), len(bank), bank.shape[1], candidates, dtype.itemsize, budget)
    centre = bank.mean(dim=0, dtype=dtype)                                  # products of centred rows round less
    with torch.autocast(bank.device.type, enabled=False):
        found = [_nearest(q.to(dtype), bank, centre, k, candidates, sides[1]) for q in queries.split(sides[0])]
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)                         # (Q, k), (Q, k)


def _nearest(queries, bank, centre, k, candidates, side) -> tuple[Tensor, Tensor]:
    centred = queries - centre
    best = centred.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=bank.device)
    for start in range(0, len(bank), side):
        rows = bank[start : start + side].to(centre.dtype) - centre                             # (B, D)
        # |q|² is the same along a row of the product and is left out.
        products = torch.addmm(rows.square().sum(dim=1), centred, rows.T, alpha=-2)             # (q, B)
        values, columns = _smallest(products, min(candidates, len(rows)))
        best, kept = torch.cat([best, values], dim=1).topk(min(candidates, start + len(rows)), largest=False)
        where = torch.cat([where, columns + start], dim=1).gather(1, kept)                      # (q, ≤ candidates)
    where = where.sort(dim=1).values
    rows = bank[where].to(centre.dtype)                                                         # (q, candidates, D)
    distances = torch.linalg.vector_norm(rows.sub_(queries[:, None]), dim=2)
    distances, order = distances.sort(dim=1, stable=True)                                       # (q, candidates)
    return distances[:, :k], where.gather(1, order)[:, :k]


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest entries of each row, in any order, and their columns.

    They lie in the `count` groups of columns whose minima are smallest, so `topk`, which is slow, need only look at
    the minima and then at those groups. Group j holds the columns j, j + width, j + 2 width, ...
    """
    width = values.shape[1] // GROUP
    if width <= count or values.shape[1] % GROUP:
        return values.topk(count, dim=1, largest=False, sorted=False)
    minima = values.view(len(values), GROUP, width).amin(dim=1)                                 # (q, width)
    groups = minima.topk(count, dim=1, largest=False, sorted=False).indices                     # (q, count)
    columns = groups[:, :, None] + torch.arange(0, values.shape[1], width, device=values.device)
    columns = columns.flatten(1)                                                                # (q, count · GROUP)
    smallest, kept = values.gather(1, columns).topk(count, dim=1, largest=False, sorted=False)
    return smallest, columns.gather(1, kept)                                                    # (q, count)


def _block_sides(queries: int, bank: int, width: int, candidates: int, itemsize: int, budget: int):
    """Rows of queries and of the bank to multiply at a time: no more than a cache likes or the budget holds."""
    q, b = min(queries, 1024), min(bank, 2048)

    def need() -> int:
        gathered = candidates * max(width, 4 * GROUP)
        # Blocks count more than once: one lives on while the next is made.
        return itemsize * (q * (2 * b + 2 * width + gathered) + 3 * b * width)

    while need() > budget:
        if q == b == 1:
            raise ValueError(f"budget must be at least {need()} bytes for rows of {width} columns, got {budget}")
        q, b = ((q + 1) // 2, b) if 2 * q > b else (q, (b + 1) // 2)
    return q, b


class StateSized(nn.Module):
    """A module whose buffers are empty until it is fitted and take their sizes from the state it loads."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name, buffer in self._buffers.items():
            loaded = state_dict.get(prefix + name)
            if loaded is not None and buffer is not None:
                self._buffers[name] = torch.empty_like(loaded, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def check_fitted(self) -> None:
        """Raise ``RuntimeError`` while a buffer is empty."""
        if any(buffer.numel() == 0 for buffer in self.buffers(recurse=False)):
            name = type(self).__name__
            raise RuntimeError(f"{name} holds no data yet: call fit or fill, or load a saved state, before using it")


class MemoryBank(StateSized):
    """Normal feature rows, kept to be searched: ``rows`` (N, D), N being whatever was filled or loaded.

    Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.empty(0, 0))

    def fill(self, rows: Tensor) -> MemoryBank:
        """Keep a copy of rows (N, D), in their precision, on the bank's device; what was there is replaced."""
        self.rows = checks.rows(rows).detach().to(self.rows.device, copy=True)
        return self

    def forward(self, queries: Tensor, k: int = 1, *, budget: int = BUDGET) -> tuple[Tensor, Tensor]:
        """Distances (Q, k), ascending, and indices (Q, k) of the k nearest rows to queries (Q, D); see `knn`."""
        self.check_fitted()
        return knn(queries.to(self.rows.device), self.rows, k, budget=budget)
