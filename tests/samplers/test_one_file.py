"""A sampler is one file: put beside the others it is found, and the suite of all samplers runs on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONTRACT = Path(__file__).with_name("test_contract.py")

FILE = '''
"""Two samplers: one that learns, and one with a design of its own."""

from __future__ import annotations

import optuna

from kftune.space import Space
from kftune.study.samplers._entry import SamplerEntry
from kftune.study.samplers.coordinates import distributions
from kftune.study.samplers.designs import QMCSampler
from kftune.study.samplers.wrapped import ReproducibleSampler


def _make_parzen(*, space: Space, seed: int, trial_number: int, n_startup_trials: int) -> ReproducibleSampler:
    def make(own_seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=own_seed, n_startup_trials=1, n_ei_candidates=8)

    return ReproducibleSampler(make, seed=seed, n_startup_trials=n_startup_trials)


def _make_halton(*, space: Space, seed: int, trial_number: int, n_startup_trials: int) -> QMCSampler:
    return QMCSampler(distributions(space), seed=seed, sequence="halton")


ENTRIES = (
    SamplerEntry(name="newcomer_parzen", make=_make_parzen, summary="each dimension alone", source="a test"),
    SamplerEntry(
        name="newcomer_halton", make=_make_halton, summary="Halton", source="a test", random_start=False, learns=False
    ),
)
'''

RUN = """
import sys
import pytest
import kftune.study.samplers
kftune.study.samplers.__path__.append(sys.argv[1])
sys.exit(pytest.main([sys.argv[2], "-k", "newcomer", "-rs", "-p", "no:cacheprovider"]))
"""


def test_a_file_with_samplers_is_all_it_takes(tmp_path: Path) -> None:
    (tmp_path / "newcomers.py").write_text(FILE)
    done = subprocess.run(
        [sys.executable, "-c", RUN, tmp_path, CONTRACT],
        cwd=CONTRACT.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    # What does not concern them by their flags, and nothing else.
    skipped = sorted(line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("SKIPPED"))
    assert skipped == ["it has no random start", "it learns from results"]
