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
GROUP = 32              # entries of a row that share one minimum in `_smallest`


@torch.no_grad()
def knn(queries: Tensor, bank: Tensor, k: int, *, budget: int = BUDGET) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a bank, by Euclidean distance.

    queries (Q, D) and bank (N, D), floating point on one device; k from 1 to N. Returns distances (Q, k), ascending,
    and indices (Q, k) int64 into the bank; of equally near candidates the lower index comes first. All rows of the
    bank are compared. Computes in float32, or in float64 if an input is, also under autocast; in float32 two rows
    can swap places only if their squared distances differ by less than about 1e-6 of the data's squared spread.
    `budget` bounds the working memory in bytes, beyond inputs and result. Values whose squares would overflow, in
    float32 above about 1e18, are refused.
    """
    queries, bank = checks.tensor(queries, "queries"), checks.tensor(bank, "bank")
    dtype = torch.promote_types(torch.promote_types(queries.dtype, bank.dtype), torch.float32)
    bank = checks.rows(bank, "bank", squares=dtype)
    queries = checks.rows(queries, "queries", width=bank.shape[1], squares=dtype)
    if not 1 <= checks.positive_int(k, "k") <= len(bank):
        raise ValueError(f"k must be at most the {len(bank)} rows of bank, got {k}: lower k or fill the bank")
    checks.positive_int(budget, "budget")
    candidates = min(k + SPARE, len(bank))
    sides = _block_sides(len(queries), len(bank), bank.shape[1], candidates, dtype.itemsize, budget)
    centre = bank.mean(dim=0, dtype=dtype)                                  # products of centred rows round less
    with torch.autocast(bank.device.type, enabled=False):
        buffers = centre.new_empty(sides), centre.new_empty(sides[1], bank.shape[1])     # one pair for all blocks
        found = [_nearest(q - centre, q, bank, centre, k, candidates, *buffers) for q in queries.split(sides[0])]
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)                         # (Q, k), (Q, k)


def _nearest(centred, queries, bank, centre, k, candidates, products, rows) -> tuple[Tensor, Tensor]:
    best = centred.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=bank.device)
    for start in range(0, len(bank), len(rows)):
        rows = rows[: len(bank) - start]                                                        # (B, D)
        torch.sub(bank[start : start + len(rows)], centre, out=rows)
        products = products.flatten()[: len(queries) * len(rows)].view(-1, len(rows))           # (q, B)
        # |q|² is the same along a row of the products and is left out.
        norms = torch.linalg.vector_norm(rows, dim=1).square_()                                 # (B,)
        torch.addmm(norms, centred, rows.T, alpha=-2, out=products)
        values, columns = _smallest(products, min(candidates, len(rows)))
        best, kept = torch.cat([best, values], dim=1).topk(min(candidates, start + len(rows)), largest=False)
        where = torch.cat([where, columns + start], dim=1).gather(1, kept)                      # (q, ≤ candidates)
    where = where.sort(dim=1).values
    differences = bank[where].to(centre.dtype).sub_(queries[:, None])                           # (q, candidates, D)
    distances = torch.linalg.vector_norm(differences, dim=2)
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
    q, b = min(queries, 4096), min(bank, 4096)

    def need() -> int:
        gathered = candidates * max(width, 4 * GROUP)
        return itemsize * (q * (b + b // GROUP + width + gathered) + b * (width + 1))

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
        """Raise ``ValueError`` while a buffer is empty."""
        if any(buffer.numel() == 0 for buffer in self.buffers(recurse=False)):
            name = type(self).__name__
            raise ValueError(f"{name} holds no data yet: call fit or fill, or load a saved state, before using it")


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
        return knn(checks.tensor(queries, "queries").to(self.rows.device), self.rows, k, budget=budget)


class NeighborDistance(MemoryBank):
    """A rule on normal rows (N, D): a row scores its mean distance to the `k` nearest of them, see `density`."""

    def __init__(self, k: int):
        super().__init__()
        self.k = checks.positive_int(k, "k")

    def fit(self, rows: Tensor) -> NeighborDistance:
        if len(rows) < self.k:
            raise ValueError(f"rows must be at least k = {self.k}, got {len(rows)}: lower k, or fit on more images")
        return self.fill(rows)

    def score(self, rows: Tensor) -> Tensor:
        """(B, D) -> (B,)"""
        return self(rows, self.k)[0].mean(dim=1)
