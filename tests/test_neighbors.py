"""Nearest neighbours against brute force, whatever the block sizes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adlearn import checks
from adlearn.neighbors import MemoryBank, _smallest, knn


def brute_force(queries, bank, k):
    distances = torch.stack([(bank.double() - q).norm(dim=1) for q in queries.double()])
    return distances.sort(dim=1, stable=True).values[:, :k], distances


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(1, 9)),
    k=st.integers(1, 20),
    budget=st.sampled_from([25_000, 60_000, 2**28]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32),
)
def test_equals_brute_force(sizes, k, budget, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    q, n, d = sizes
    k = min(k, n)
    queries = torch.randn(q, d, generator=generator, dtype=dtype)
    bank = torch.randn(n, d, generator=generator, dtype=dtype)
    distances, indices = knn(queries, bank, k, budget=budget)
    expected, matrix = brute_force(queries, bank, k)
    assert distances.dtype == dtype
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(matrix.gather(1, indices), expected, rtol=1e-5, atol=1e-6)
    assert all(len(set(row.tolist())) == k for row in indices)


@pytest.mark.parametrize("n", [4096, 4097, 5000, 8191])
def test_every_row_of_the_bank_is_found(n):
    bank = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    for k, budget in ((1, 2**28), (3, 2**18)):
        distances, indices = knn(bank[-999:], bank, k, budget=budget)
        assert torch.equal(indices[:, 0], torch.arange(n - 999, n))
        assert distances[:, 0].max() == 0


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_a_point_is_at_distance_zero_from_itself(offset):
    bank = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0)) + offset
    distances, indices = knn(bank[::7], bank, 2)
    assert distances[:, 0].max() <= 1e-5
    assert torch.equal(indices[:, 0], torch.arange(0, 3000, 7))
    expected, _ = brute_force(bank[::7], bank, 2)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=1e-5)


def test_ties_go_to_the_lowest_index():
    bank = torch.tensor([[2.0], [1.0], [1.0], [-1.0], [5.0]])
    distances, indices = knn(torch.tensor([[0.0], [1.0]]), bank, 3)
    assert indices.tolist() == [[1, 2, 3], [1, 2, 0]]
    assert distances.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_equal_rows_are_no_trouble():
    distances, indices = knn(torch.ones(5, 3), torch.ones(5000, 3), 4)
    assert distances.max() == 0
    assert all(len(set(row.tolist())) == 4 for row in indices)


def test_equals_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(7001, 32, generator=generator), torch.randn(1500, 32, generator=generator)
    theirs = NearestNeighbors(n_neighbors=50, algorithm="brute").fit(bank.double().numpy())
    expected, where = theirs.kneighbors(queries.double().numpy())
    distances, indices = knn(queries, bank, 50)
    torch.testing.assert_close(distances.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    assert (indices == torch.from_numpy(where)).float().mean() > 0.999


def test_precision_is_kept_under_autocast_and_for_half_inputs():
    bank = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    plain = knn(bank[:50] + 0.01, bank, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = knn(bank[:50] + 0.01, bank, 5)
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))
    distances, indices = knn(bank[:50].bfloat16(), bank.bfloat16(), 1)
    assert distances.dtype == torch.float32
    assert distances.max() == 0
    assert torch.equal(indices[:, 0], torch.arange(50))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e18), (torch.float64, 1e100)])
def test_large_values_are_searched_up_to_where_squares_overflow(dtype, size):
    rows = torch.randn(500, 8, dtype=dtype)
    rows /= rows.abs().max()
    plain, large = knn(rows[:50] + 0.01, rows, 5), knn(size * (rows[:50] + 0.01), size * rows, 5)
    assert torch.equal(large[1], plain[1])
    torch.testing.assert_close(large[0] / size, plain[0], rtol=1e-5, atol=0)


def test_no_gradient_is_kept():
    queries = torch.randn(3, 2, requires_grad=True)
    assert not knn(queries, queries, 1)[0].requires_grad


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32))
def test_smallest(width, count, seed):
    values = torch.randint(0, 50, (3, 32 * width), generator=torch.Generator().manual_seed(seed)).float()
    count = min(count, values.shape[1])
    found, columns = _smallest(values, count)
    assert torch.equal(found.sort(dim=1).values, values.sort(dim=1).values[:, :count])
    assert torch.equal(values.gather(1, columns), found)


@pytest.mark.parametrize(("k", "budget"), [(1, 2**19), (1, 2**21), (40, 2**21)])
def test_working_memory_stays_in_the_budget(k, budget, monkeypatch):
    from torch.profiler import ProfilerActivity, profile

    monkeypatch.setattr(checks, "rows", lambda value, *_, **__: value)      # the check is not counted
    queries, bank = torch.randn(200, 32), torch.randn(6000, 32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        knn(queries, bank, k, budget=budget)
    events = sorted(trace.events(), key=lambda event: event.time_range.start)
    held = list(itertools.accumulate(event.self_cpu_memory_usage for event in events))
    assert budget / 20 < max(held) <= budget


@pytest.mark.parametrize(
    ("queries", "bank", "k", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), 5, "k must be at most the 4 rows"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 0, "k must be a whole number"),
        (torch.zeros(2, 3), torch.zeros(4, 2), 1, "queries must have 2 columns"),
        (torch.zeros(2, 3), torch.zeros(0, 3), 1, "bank must not be empty"),
        (torch.zeros(3), torch.zeros(4, 3), 1, "queries must have shape"),
        (torch.zeros(2, 3) / 0, torch.zeros(4, 3), 1, "queries must be finite"),
        (torch.zeros(2, 3), torch.zeros(4, 3, dtype=torch.int64), 1, "bank must be floating point"),
        (torch.zeros(2, 3) + 1e30, torch.zeros(4, 3), 1, "queries must lie within.*rescale"),
        (torch.zeros(2, 3), torch.zeros(4, 3) - 1e30, 1, "bank must lie within.*rescale"),
        ("rows", torch.zeros(4, 3), 1, "queries must be a tensor"),
    ],
)
def test_bad_input_is_refused(queries, bank, k, message):
    with pytest.raises(ValueError, match=message):
        knn(queries, bank, k)
    with pytest.raises(ValueError, match="budget must be at least"):
        knn(torch.zeros(2, 3), torch.zeros(4, 3), 1, budget=10)


def test_memory_bank_is_its_state():
    rows = torch.randn(37, 5, dtype=torch.float64)
    bank = MemoryBank().fill(rows)
    rows[0] = 100                                               # the bank holds a copy
    assert bank.rows[0].max() < 100
    empty = MemoryBank()
    with pytest.raises(ValueError, match="MemoryBank holds no data yet: call"):
        empty(rows)
    parent = torch.nn.ModuleDict({"bank": empty})
    parent.load_state_dict({"bank." + name: value for name, value in bank.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(empty(rows, 3), bank(rows, 3), strict=True))
    empty.fill(torch.randn(4, 2))
    empty.load_state_dict(bank.state_dict())                    # from any size to any size
    assert torch.equal(empty.rows, bank.rows)
    with pytest.raises(RuntimeError, match="Missing key"):
        MemoryBank().load_state_dict({})
    with pytest.raises(ValueError, match="rows must have shape"):
        bank.fill(torch.zeros(3))
