"""What every registered optimizer says of itself."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from kftune.optim import OPTIMIZERS
from tests.optim._contract import build, every, network, train

CLIP = {"kl_clip_active", "kl_clip_scale"}
WITH_CLIP = [entry for entry in OPTIMIZERS if entry.kl_clip]
with_clip = pytest.mark.parametrize("entry", WITH_CLIP, ids=lambda entry: entry.name)


@every
def test_readings_are_finite_numbers_of_known_names(entry):
    model = network()
    optimizer = build(entry, model)
    before = optimizer.readings()
    train(optimizer, model, 5)
    after, again = optimizer.readings(), optimizer.readings()
    for readings in (before, after, again):
        assert set(readings) <= {"lr", "damping", "momentum", *entry.readings} | (CLIP if entry.kl_clip else set())
        assert all(type(value) is float and math.isfinite(value) for value in readings.values())
    assert after["lr"] == optimizer.param_groups[0]["lr"]
    for name in ("lr", "damping"):
        assert (name in after) == (name in optimizer.param_groups[0])
    # Means over updates come from updates alone.
    assert not CLIP & (set(before) | set(again))
    assert (set(after) >= CLIP) == entry.kl_clip


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


@every
def test_who_has_a_clip_says_so(entry):
    clip = inspect.signature(entry.cls).parameters.get("kl_clip")
    assert entry.kl_clip == (clip is not None and entry.example.get("kl_clip", clip.default) is not None)


def test_there_are_optimizers_with_a_clip():
    assert len(WITH_CLIP) >= 7


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
