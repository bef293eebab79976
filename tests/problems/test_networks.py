"""The residual network and the transformer: their structure by hand, and that they learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from kftune.problems import PROBLEMS
from kftune.problems.networks.residual import BasicBlock, ResidualNetwork
from kftune.problems.networks.transformer import SelfAttention, Transformer
from kftune.training.data.batches import ShuffledIndices


def test_resnet20_has_20_layers_and_the_papers_size() -> None:
    network = ResidualNetwork(n_channels=3, widths=(16, 32, 64), n_blocks=3, n_classes=10)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 20
    # 0.27 million in He et al.'s table 6: 3·3·(3·16 + 6·16² + 16·32 + 5·32² + 32·64 + 5·64²) + norms + head.
    n_norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    convolutions = 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2)
    assert sum(p.numel() for p in network.parameters()) == convolutions + n_norms + 650 == 269_722
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("n_in", "n_out", "stride"), [(4, 4, 1), (4, 8, 2), (3, 6, 2)])
def test_a_block_without_weights_is_its_shortcut(n_in: int, n_out: int, stride: int) -> None:
    block = BasicBlock(n_in, n_out, stride=stride)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, n_in, 8, 8)
    before = (n_out - n_in) // 2
    expected = torch.zeros(2, n_out, 8 // stride, 8 // stride)
    expected[:, before : before + n_in] = x[:, :, ::stride, ::stride].relu()
    torch.testing.assert_close(block(x), expected)


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours = SelfAttention(12, n_heads=3).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        # Any bias of the keys: none changes the result.
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.randn(12), ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(5, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-12, atol=1e-12)


def test_the_order_of_tokens_matters_by_their_positions_alone() -> None:
    torch.manual_seed(0)
    network = Transformer(n_tokens=8, n_inputs=8, width=8, n_blocks=2, n_heads=4, n_hidden=16, n_classes=10)
    x = torch.rand(3, 8, 8)
    assert (network(x) - network(x.flip(1))).abs().max() > 1e-4
    nn.init.zeros_(network.position)
    torch.testing.assert_close(network(x), network(x.flip(1)))


@pytest.mark.parametrize(
    ("name", "make", "n_updates", "bound"),
    [
        ("digits_resnet", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 80, 0.2),
        ("digits_transformer", lambda p: torch.optim.AdamW(p, lr=3e-3), 150, 0.12),
    ],
)
def test_learns_the_digits(
    tmp_path: Path, name: str, make: Callable[..., torch.optim.Optimizer], n_updates: int, bound: float
) -> None:
    problem = PROBLEMS.get(name).load(device=torch.device("cpu"), dtype=torch.float32, data_dir=tmp_path)
    torch.manual_seed(0)
    model = problem.make_model()
    optimizer = make(model.parameters())
    indices = ShuffledIndices(len(problem.train), seed=0, device=torch.device("cpu"))
    for _ in range(n_updates):
        batch = indices.take(64)
        optimizer.zero_grad()
        torch.autograd.backward(problem.loss(model(problem.train.inputs[batch]), problem.train.targets[batch]))
        optimizer.step()
    model.eval()
    with torch.no_grad():
        error = 1 - problem.accuracy(model(problem.test.inputs), problem.test.targets)
    assert error < bound
