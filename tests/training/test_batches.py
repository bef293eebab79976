import itertools

import pytest
import torch

from kftune.training.data.batches import BatchSizes, ShuffledIndices

CPU = torch.device("cpu")


def test_every_example_once_before_any_twice() -> None:
    indices = ShuffledIndices(10, seed=3, device=CPU)
    stream = torch.cat([indices.take(k) for k in (4, 4, 7, 5)]).tolist()
    assert sorted(stream[:10]) == list(range(10))
    assert sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]


def test_order_depends_on_the_seed_alone() -> None:
    first = ShuffledIndices(100, seed=1, device=CPU)
    second = ShuffledIndices(100, seed=1, device=CPU)
    assert torch.equal(first.take(100), torch.cat([second.take(33) for _ in range(4)])[:100])
    assert not torch.equal(
        ShuffledIndices(100, seed=2, device=CPU).take(100), ShuffledIndices(100, seed=1, device=CPU).take(100)
    )


def test_a_batch_larger_than_the_data_spans_permutations() -> None:
    assert sorted(ShuffledIndices(3, seed=0, device=CPU).take(6).tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("batch_size", "effective", "expected"),
    [(32, None, [32]), (None, 100, [100]), (32, 96, [32, 32, 32]), (32, 80, [32, 32, 16]), (64, 16, [16])],
)
def test_micro_batches(batch_size: int | None, effective: int | None, expected: list[int]) -> None:
    sizes = BatchSizes(batch_size=batch_size, effective_batch_size=effective, n_train=1000)
    assert sizes.of_update(0) == sizes.of_update(1000) == expected
    assert sizes.effective(7) == sum(expected)


@pytest.mark.parametrize(
    ("batch_size", "effective", "message"),
    [
        (None, None, "batch_size or effective_batch_size"),
        (0, None, "batch_size must be between 1 and the 50 training examples, got 0"),
        (51, None, "batch_size must be between 1 and the 50 training examples, got 51"),
        (10, 60, "effective_batch_size must be between 1 and the 50 training examples, got 60"),
    ],
)
def test_impossible_sizes(batch_size: int | None, effective: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSizes(batch_size=batch_size, effective_batch_size=effective, n_train=50)


def test_a_growing_batch_reaches_the_training_set_when_it_should() -> None:
    sizes = BatchSizes(batch_size=1000, full_batch_at=500, n_train=60_000)
    grown = [sizes.effective(k) for k in range(600)]
    assert grown[0] == 1000
    assert grown[498] < grown[499] == 60_000 == grown[599]
    ratios = [b / a for a, b in itertools.pairwise(grown[:500])]
    assert max(ratios) - min(ratios) < 2e-3  # by the same factor every time, to rounding
    assert sizes.of_update(250) == [grown[250]]


def test_a_growing_effective_batch_keeps_its_micro_batches() -> None:
    sizes = BatchSizes(batch_size=100, effective_batch_size=200, full_batch_at=3, n_train=3200)
    assert [sizes.of_update(k) for k in (0, 1)] == [[100] * 2, [100] * 8]
    assert sizes.of_update(2) == sizes.of_update(3) == [100] * 32


def test_a_batch_cannot_be_full_at_once() -> None:
    with pytest.raises(ValueError, match="full_batch_at must be at least 2"):
        BatchSizes(batch_size=10, full_batch_at=1, n_train=50)
