"""A run evaluates the parameters that its optimizer says to evaluate."""

from __future__ import annotations

import torch

from kftune.results import RunSpec
from kftune.training.loop.trainer import Training


def test_the_average_of_the_iterates_is_evaluated_and_training_goes_on_from_the_iterate() -> None:
    curves, ends = [], []
    for averaging in (0.0, 0.9):
        spec = RunSpec(
            problem="digits_mlp",
            optimizer="kfac",
            params={"batch_size": 64, "averaging": averaging},
            seed=11,
            budget_updates=6,
            n_evaluations=3,
        )
        training = Training(spec, lambda point: None)
        training.set_up()
        training.warm_up()
        training.run()
        with training.optimizer.evaluation_parameters():
            average, _ = training._measure(training.problem.test)
        assert training.curve[-1].test_loss == average
        curves.append([point.test_loss for point in training.curve])
        ends.append(torch.cat([p.detach().flatten() for p in training.model.parameters()]))
    assert torch.equal(*ends)
    assert curves[0][0] == curves[1][0]
    assert all(a != b for a, b in zip(curves[0][1:], curves[1][1:], strict=True))
