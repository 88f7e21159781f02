"""The shallow scores against scikit-learn and against their formulas."""

import math

import numpy as np
import pytest
import torch
from sklearn import cluster, covariance, mixture, neighbors, svm

from adlearn import density
from adlearn.density import KDE, Gaussian, KMeans, OneClassSVM

generator = torch.Generator().manual_seed(0)
train = torch.randn(120, 6, generator=generator) * torch.arange(1, 7) + 3
test = torch.randn(50, 6, generator=generator) * 8
makers = [KDE, Gaussian, OneClassSVM, lambda: KMeans(k=5)]


def close(ours, theirs):
    np.testing.assert_allclose(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_kde_equals_scikit_learn_and_the_sum():
    gamma, (n, d) = 0.03, train.shape
    scores = KDE(gamma=gamma).fit(train).score(test)
    peer = neighbors.KernelDensity(bandwidth=(2 * gamma) ** -0.5).fit(train.double())
    log_sum = peer.score_samples(test.double()) + math.log(n) + d / 2 * math.log(math.pi / gamma)
    close(scores, -log_sum / gamma)
    slow = [-math.log(sum(math.exp(-gamma * float((u - v).square().sum())) for v in train)) / gamma for u in test]
    close(scores, slow)


def test_kde_with_a_narrow_kernel_is_the_nearest_neighbour():
    scores = KDE(gamma=1e4).fit(train.double()).score(test.double())
    np.testing.assert_allclose(scores, torch.cdist(test.double(), train.double()).amin(dim=1).square(), rtol=1e-6)


def test_default_gamma_is_ten_times_scale():
    expected = 10 / (train.shape[1] * train.numpy().astype(float).var())
    assert KDE().fit(train).gamma_.item() == pytest.approx(expected)
    assert OneClassSVM().fit(train).gamma_.item() == pytest.approx(expected)


def test_gaussian_equals_scikit_learn():
    rows = train.double()
    close(Gaussian(shrinkage=0).fit(train).score(test), covariance.EmpiricalCovariance().fit(rows).mahalanobis(test))
    close(Gaussian().fit(train).score(test), covariance.LedoitWolf().fit(rows).mahalanobis(test))
    peer = covariance.ShrunkCovariance(shrinkage=0.3).fit(rows)
    close(Gaussian(shrinkage=0.3).fit(train).score(test), peer.mahalanobis(test))


def test_gaussian_ranks_as_the_log_density_of_a_mixture_of_one():
    peer = mixture.GaussianMixture(1, reg_covar=0).fit(train.double())
    squared = Gaussian(shrinkage=0.0).fit(train).score(test.double())
    offsets = squared.numpy() + 2 * peer.score_samples(test.double())
    np.testing.assert_allclose(offsets, offsets[0], rtol=1e-8)


def test_gaussian_with_fewer_rows_than_columns():
    rows = torch.randn(10, 40, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(Gaussian().fit(rows).score(rows)).all()
    with pytest.raises(ValueError, match="shrinkage must be larger"):
        Gaussian(shrinkage=0).fit(rows)
    with pytest.raises(ValueError, match="shrinkage must be larger"):
        Gaussian(shrinkage=0).fit(torch.cat([train, train[:, :1]], dim=1))      # one column twice


@pytest.mark.parametrize("nu", [0.1, 0.5])
def test_svm_equals_scikit_learn(nu):
    rows = torch.nn.functional.normalize(train)
    others = torch.nn.functional.normalize(test.double())
    ours = OneClassSVM(nu=nu).fit(rows)
    peer = svm.OneClassSVM(nu=nu, gamma=ours.gamma_.item()).fit(rows.double())
    scores, decision = ours.score(others), peer.decision_function(others)
    rho, near = -peer.intercept_, scores < 15               # farther off, decision + rho is rounding
    close(scores[near], -np.log((decision[near] + rho) / rho))
    np.testing.assert_array_equal(scores.sign(), -np.sign(decision))
    ranked = decision.argsort()
    differ = np.diff(decision[ranked]) > 1e-12
    assert (scores[ranked].diff()[differ] < 0).all()
    assert differ.sum() > 40
    assert near.sum() > 20


def test_svm_tells_distant_anomalies_apart():
    module = OneClassSVM(gamma=1.0).fit(train)
    far = train.mean(dim=0) + torch.tensor([20.0, 30.0, 300.0])[:, None]        # exp(-gamma d²) is 0 in float64
    assert (module.score(far).diff() > 0).all()


def test_kmeans_equals_scikit_learn():
    torch.manual_seed(3)
    ours = KMeans(k=4).fit(train)
    torch.manual_seed(3)
    seed = int(torch.randint(2**31, (1,)))
    peer = cluster.KMeans(4, n_init=1, random_state=seed).fit(train)
    close(ours.score(test), peer.transform(test.numpy()).min(axis=1))
    torch.manual_seed(3)
    assert torch.equal(KMeans(k=4).fit(train).centres_, ours.centres_)


@pytest.mark.parametrize("make", makers)
def test_state_is_everything(make):
    fitted, fresh = make().fit(train), make()
    with pytest.raises(ValueError, match="holds no data yet: call fit"):
        fresh.score(test)
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh.score(test), fitted.score(test))
    fresh.fit(train[:30])                                       # of another size
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh.score(test), fitted.score(test))


@pytest.mark.parametrize("make", makers)
def test_scores(make, monkeypatch):
    module = make().fit(train)
    scores = module.score(test)
    assert scores.shape == (50,)
    assert scores.dtype == test.dtype
    assert module.score(test.double()).dtype == torch.float64
    assert module.score(100 * test.half()).dtype == torch.float32           # whose range holds squared distances
    far = train.mean(dim=0)[None] + 100
    assert module.score(far) > module.score(train).median()
    order = torch.randperm(50)
    torch.testing.assert_close(module.score(test[order]), scores[order])
    monkeypatch.setattr(density, "BUDGET", 4 * 8 * 7 * 120)                     # 7 rows at a time, the last block 1
    torch.testing.assert_close(module.score(test), scores)


@pytest.mark.parametrize("make", makers[:3])
def test_fitting_leaves_the_random_generator_alone(make):
    state = torch.random.get_rng_state()
    make().fit(train)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("make", makers)
def test_bad_rows_are_refused(make):
    module = make().fit(train)
    for bad, message in [
        (train[:, :5], "6 columns"),
        (train / 0, "finite"),
        (train[0], "shape"),
        (train[:0], "empty"),
        (train * 1e25, "rescale"),
        ("rows", "rows must be a tensor"),
    ]:
        with pytest.raises(ValueError, match=message):
            module.score(bad)
    for bad in (train / 0, train[0], train[:0], train[:1].expand(20, 6)):
        with pytest.raises(ValueError, match=r"rows|distinct"):
            make().fit(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KDE(gamma=0), "gamma"),
        (lambda: OneClassSVM(gamma=-1.0), "gamma"),
        (lambda: KDE(gamma=True), "gamma must be a positive number"),
        (lambda: KDE(gamma="scale"), "gamma must be a positive number"),
        (lambda: OneClassSVM(nu=0), "nu"),
        (lambda: OneClassSVM(nu="half"), "nu must be above 0"),
        (lambda: OneClassSVM(nu=1), "nu must be above 0 and below 1"),
        (lambda: Gaussian(shrinkage=True), "shrinkage"),
        (lambda: Gaussian(shrinkage=[0.5]), "shrinkage"),
        (lambda: Gaussian(shrinkage=2), "shrinkage"),
        (lambda: Gaussian(shrinkage="oas"), "shrinkage"),
        (lambda: KMeans(k=0), "k must be"),
        (lambda: KMeans(k=121).fit(train), "distinct rows, 120"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
