"""Shallow one-class scores on feature vectors: kernel density, Gaussian, one-class SVM and K-means.

Each is a module: ``fit(rows)`` on normal rows (N, D), then ``score(rows)`` gives (B,), larger where a row is more
anomalous, on the module's device and in the precision of the rows asked about, at least float32. What fitting learns
is kept in buffers, so that a fitted module is its ``state_dict``. Sums over exponentials and covariances are evaluated
in float64: there float32 loses what the score is made of. ``score`` before ``fit``, bad rows and bad settings raise
``ValueError``. K-means draws its start from torch's global generator: ``torch.manual_seed`` governs it.

The settings for features of a network are those of Sohn et al., "Learning and Evaluating Representations for Deep
One-class Classification", ICLR 2021: L2-normalise the rows first, and gamma = 10 / (D Var) over all their entries.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adlearn import checks
from adlearn.neighbors import BUDGET, StateSized, knn


class KDE(StateSized):
    """Kernel density: s(u) = -1/gamma log sum_i exp(-gamma |u - u_i|²), in units of squared distance.

    gamma > 0, or None for 10 / (D Var). As gamma grows the score becomes the squared distance to the nearest row.
    A Gaussian kernel of bandwidth h has gamma = 1 / (2 h²). Scores may be negative.
    """

    def __init__(self, *, gamma: float | None = None):
        super().__init__()
        self.gamma = _positive(gamma)
        for name in ("rows_", "gamma_"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> KDE:
        """Keep rows (N, D) and choose gamma."""
        self.rows_ = _fit_rows(self, rows)
        self.gamma_ = _gamma(self.gamma, self.rows_)
        return self

    @torch.no_grad()
    def score(self, rows: Tensor) -> Tensor:
        """(B, D) -> (B,)"""
        rows, dtype = _score_rows(self, rows, self.rows_)
        blocks = _squared_distance_blocks(rows, self.rows_)
        scores = [-torch.logsumexp(-self.gamma_ * block, dim=1) / self.gamma_ for block in blocks]
        return torch.cat(scores).to(dtype)                                                  # (B,)


class Gaussian(StateSized):
    """One Gaussian with full covariance: the squared Mahalanobis distance (u - m)ᵀ S⁻¹ (u - m), at least 0.

    It ranks as the Gaussian's negative log density does. With fewer rows than columns the sample covariance has no
    inverse, so it is shrunk towards a sphere of the same mean variance, S = (1 - a) C + a tr(C) / D I:
    shrinkage="ledoit-wolf" estimates a from the rows, a number in [0, 1] fixes it.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
    """

    def __init__(self, *, shrinkage: float | str = "ledoit-wolf"):
        super().__init__()
        named = isinstance(shrinkage, str) and shrinkage == "ledoit-wolf"
        if not named and not (checks.is_number(shrinkage) and 0 <= shrinkage <= 1):
            raise ValueError(f"shrinkage must be 'ledoit-wolf' or a number from 0 to 1, got {shrinkage!r}")
        self.shrinkage = shrinkage
        for name in ("mean_", "cholesky_"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> Gaussian:
        """Estimate mean (D,) and covariance (D, D, kept as its Cholesky factor) from rows (N, D)."""
        rows = _fit_rows(self, rows)
        self.mean_ = rows.mean(dim=0)
        centred = rows - self.mean_
        covariance = centred.T @ centred / len(rows)                                        # (D, D)
        sphere = covariance.trace() / len(covariance) * torch.eye(len(covariance)).to(covariance)
        covariance = torch.lerp(covariance, sphere, self._amount(centred))
        cholesky, failed = torch.linalg.cholesky_ex(covariance)
        pivots = cholesky.diagonal().square() / covariance.diagonal()
        if failed or pivots.min() < 1e-12:
            raise ValueError(
                f"shrinkage must be larger: with {self.shrinkage!r} the covariance of {len(rows)} rows of "
                f"{rows.shape[1]} columns is singular; use 'ledoit-wolf' or a number such as 0.1"
            )
        self.cholesky_ = cholesky
        return self

    def _amount(self, centred: Tensor) -> float:
        if self.shrinkage != "ledoit-wolf":
            return float(self.shrinkage)
        from sklearn.covariance import ledoit_wolf_shrinkage

        return float(ledoit_wolf_shrinkage(centred.cpu().numpy(), assume_centered=True))

    @torch.no_grad()
    def score(self, rows: Tensor) -> Tensor:
        """(B, D) -> (B,)"""
        rows, dtype = _score_rows(self, rows, self.cholesky_)
        white = torch.linalg.solve_triangular(self.cholesky_, (rows - self.mean_).T, upper=False)       # (D, B)
        return white.square().sum(dim=0).to(dtype)                                                      # (B,)


class OneClassSVM(StateSized):
    """One-class SVM with an RBF kernel: s(u) = log rho - log sum_i alpha_i exp(-gamma |u - u_i|²), above 0 outside.

    The plain decision value is sum_i alpha_i exp(...) - rho. The logarithms depart from it, and keep its sign (turned,
    so that outside is positive) and its order: far from the data every exponential vanishes, all points tie at rho,
    and two distant anomalies could no longer be told apart. The logarithm goes on growing with the squared distance.

    nu in (0, 1) is at least the share of training rows left outside; gamma > 0, None for 10 / (D Var), or "scale" for
    scikit-learn's own 1 / (D Var), which suits rows that are not normalised. scikit-learn fits it, in time that grows
    with N²: draw a subset of very many rows.

    Schölkopf et al., "Estimating the support of a high-dimensional distribution", 2001.
    """

    def __init__(self, *, nu: float = 0.5, gamma: float | str | None = None):
        super().__init__()
        if not (checks.is_number(nu) and 0 < nu < 1):
            raise ValueError(f"nu must be above 0 and below 1, got {nu!r}: where all rows may be outside, use KDE")
        self.nu, self.gamma = float(nu), gamma if isinstance(gamma, str) and gamma == "scale" else _positive(gamma)
        for name in ("support_", "weights_", "rho_", "gamma_"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> OneClassSVM:
        """Find the support vectors (S, D) among rows (N, D), their weights (S,) and rho."""
        from sklearn.svm import OneClassSVM as Solver

        rows = _fit_rows(self, rows)
        self.gamma_ = _gamma(self.gamma, rows)
        solver = Solver(nu=self.nu, gamma=self.gamma_.item()).fit(rows.cpu().numpy())
        self.support_ = torch.from_numpy(solver.support_vectors_).to(rows)                  # (S, D)
        self.weights_ = torch.from_numpy(solver.dual_coef_[0]).to(rows)                     # (S,)
        self.rho_ = torch.tensor(-solver.intercept_[0]).to(rows)
        return self

    @torch.no_grad()
    def score(self, rows: Tensor) -> Tensor:
        """(B, D) -> (B,)"""
        rows, dtype = _score_rows(self, rows, self.support_)
        blocks = _squared_distance_blocks(rows, self.support_)
        logs = [torch.logsumexp(self.weights_.log() - self.gamma_ * block, dim=1) for block in blocks]
        return (self.rho_.log() - torch.cat(logs)).to(dtype)                                # (B,)


class KMeans(StateSized):
    """K-means: the distance to the nearest of k centres. The centres (k, D), `centres_`, also serve as a dictionary.

    k is at most the number of distinct rows.
    """

    def __init__(self, *, k: int = 10):
        super().__init__()
        self.k = checks.positive_int(k, "k")
        self.register_buffer("centres_", torch.empty(0))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> KMeans:
        """Find the centres of rows (N, D), from a k-means++ start."""
        from sklearn.cluster import KMeans as Solver

        rows = checks.rows(rows, squares=torch.float32).detach().float()
        distinct = len(rows.unique(dim=0))
        if self.k > distinct:
            raise ValueError(f"k must be at most the number of distinct rows, {distinct}, got {self.k}: lower k")
        solver = Solver(self.k, n_init=1, random_state=int(torch.randint(2**31, (1,)))).fit(rows.cpu().numpy())
        self.centres_ = torch.from_numpy(solver.cluster_centers_).to(self.centres_.device)      # (k, D)
        return self

    @torch.no_grad()
    def score(self, rows: Tensor) -> Tensor:
        """(B, D) -> (B,)"""
        self.check_fitted()
        rows = checks.rows(rows, width=self.centres_.shape[1]).to(self.centres_.device)
        distances, _ = knn(rows, self.centres_, 1)                                              # (B, 1)
        return distances[:, 0]


def principal_axes(rows: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Mean (D,) of rows (N, D), and as many principal axes, (D, d), as hold a share of their variance, in (0, 1]."""
    _refuse_equal(rows)
    mean = rows.mean(0)
    spread, axes = torch.linalg.eigh(torch.cov(rows.T.double()))                            # ascending
    explained = spread.flip(0).cumsum(0) / spread.sum()
    kept = min(int((explained < variance).sum()) + 1, len(spread))
    return mean, axes.flip(1)[:, :kept].to(rows)


def _positive(gamma: float | None) -> float | None:
    if gamma is not None and not (checks.is_number(gamma) and gamma > 0):
        raise ValueError(f"gamma must be a positive number, or None for 10 / (D Var), got {gamma!r}")
    return None if gamma is None else float(gamma)


def _gamma(gamma: float | str | None, rows: Tensor) -> Tensor:
    """The chosen gamma, scikit-learn's "scale", or ten times that, as Sohn et al. set it."""
    if isinstance(gamma, float):
        return rows.new_tensor(gamma)
    return (1 if gamma == "scale" else 10) / (rows.shape[1] * rows.var(correction=0))


def _refuse_equal(rows: Tensor) -> None:
    if (rows == rows[:1]).all():
        raise ValueError(f"rows must differ from one another, got {len(rows)} equal: has the network collapsed?")


def _fit_rows(module: StateSized, rows: Tensor) -> Tensor:
    """Rows to fit, checked, in the precision and on the device of the module's buffers."""
    rows = checks.rows(rows, squares=torch.float64)
    _refuse_equal(rows)
    return rows.detach().to(next(module.buffers()), copy=True)


def _score_rows(module: StateSized, rows: Tensor, fitted: Tensor) -> tuple[Tensor, torch.dtype]:
    """Rows to score, as wide as the fitted ones, converted like `_fit_rows`, and the precision of their scores."""
    module.check_fitted()
    dtype = torch.promote_types(checks.tensor(rows, "rows").dtype, torch.float32)
    return checks.rows(rows, width=fitted.shape[1], squares=dtype).to(fitted), dtype


def _squared_distance_blocks(rows: Tensor, others: Tensor) -> Iterator[Tensor]:
    """|u - v|² of all pairs, a block of rows at a time: (b, N) each, together at most the budget of `knn`."""
    centre = others.mean(dim=0)                                     # centred rows lose less when norms cancel
    others = others - centre
    norms = others.square().sum(dim=1)                              # (N,)
    size = max(BUDGET // (4 * others.element_size() * len(others)), 1)      # a block and what is made of it
    for block in (rows - centre).split(size):
        products = torch.addmm(norms, block, others.T, alpha=-2)                        # (b, N)
        yield products.add_(block.square().sum(dim=1, keepdim=True)).clamp_(min=0)      # (b, N)
