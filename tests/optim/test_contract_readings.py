"""What every registered optimizer says of itself."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from kftune.optim import OPTIMIZERS
from tests.optim._contract import build, every, network, train

NAMES = {"lr", "damping", "momentum", "kl_clip_active", "kl_clip_scale", "alpha", "gamma"}
WITH_CLIP = [
    entry
    for entry in OPTIMIZERS
    if "kl_clip" in inspect.signature(entry.cls).parameters and "rescale" not in entry.example
]
with_clip = pytest.mark.parametrize("entry", WITH_CLIP, ids=lambda entry: entry.name)


@every
def test_readings_are_finite_numbers_of_known_names(entry):
    model = network()
    optimizer = build(entry, model)
    before = optimizer.readings()
    train(optimizer, model, 5)
    after, again = optimizer.readings(), optimizer.readings()
    for readings in (before, after, again):
        assert set(readings) <= NAMES
        assert all(type(value) is float and math.isfinite(value) for value in readings.values())
    assert after["lr"] == optimizer.param_groups[0]["lr"]
    for name in ("lr", "damping"):
        assert (name in after) == (name in optimizer.param_groups[0])
    # Means over updates come from updates alone.
    assert not {"kl_clip_active", "kl_clip_scale", "alpha"} & (set(before) | set(again))


@every
def test_reading_changes_nothing(entry):
    models = [network(), network()]
    optimizers = [build(entry, model) for model in models]
    losses = [[], []]
    for step in range(6):
        for i, (optimizer, model) in enumerate(zip(optimizers, models, strict=True)):
            losses[i] += train(optimizer, model, 1, first=step)
        optimizers[0].readings()
    assert losses[0] == losses[1]
    assert set(optimizers[0].state_dict()) == set(optimizers[1].state_dict())


@every
def test_the_learning_rate_is_the_schedulers(entry):
    model = network()
    optimizer = build(entry, model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    first = optimizer.readings()["lr"]
    train(optimizer, model, 1)
    scheduler.step()
    assert optimizer.readings()["lr"] == 0.5 * first


def test_there_are_optimizers_with_a_clip():
    assert {"kfac", "ekfac", "skfac", "kfac_tridiagonal", "two_level_kfac", "cg_fac", "natural_gradient"} <= {
        entry.name for entry in WITH_CLIP
    }


@with_clip
def test_the_clip_is_read(entry):
    readings = {}
    for kl_clip in (1e-9, 1e9, None):
        model = network()
        optimizer = build(entry, model, kl_clip=kl_clip)
        train(optimizer, model, 4)
        readings[kl_clip] = optimizer.readings()
    assert readings[1e-9]["kl_clip_active"] == 1
    assert 0 < readings[1e-9]["kl_clip_scale"] < 0.1
    assert (readings[1e9]["kl_clip_active"], readings[1e9]["kl_clip_scale"]) == (0, 1)
    assert not {"kl_clip_active", "kl_clip_scale"} & set(readings[None])


def test_the_share_of_clipped_updates():
    """κ between the largest and the smallest of what four updates would change: it shortens some of them."""
    entry = OPTIMIZERS.get("kfac")
    shares = []
    for kl_clip in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
        model = network()
        optimizer = build(entry, model, kl_clip=kl_clip)
        train(optimizer, model, 8)
        shares.append(optimizer.readings()["kl_clip_active"])
    assert shares == sorted(shares, reverse=True)
    assert {share * 8 % 1 for share in shares} == {0.0}
    assert any(0 < share < 1 for share in shares)


def test_adaptive_kfac_says_what_it_has_adapted():
    model = network()
    optimizer = build(OPTIMIZERS.get("kfac_adaptive"), model, damping_every=1, gamma_every=1)
    start = optimizer.readings()
    train(optimizer, model, 12)
    readings = optimizer.readings()
    assert readings["damping"] == optimizer.param_groups[0]["damping"] != start["damping"]
    assert readings["gamma"] == optimizer._adaptation.gamma != start["gamma"]
    assert readings["alpha"] > 0
    assert readings["momentum"] != 0
    assert start["momentum"] == 0


def test_the_thesis_schedule_is_read():
    model = network()
    optimizer = build(OPTIMIZERS.get("kfac_thesis"), model, momentum_schedule="linear", m_rate=1.0, m_max=0.12)
    read = []
    for step in range(4):
        train(optimizer, model, 1, first=step)
        read.append(optimizer.readings()["momentum"])
    assert read == pytest.approx([0.0, 0.05, 0.1, 0.12])
