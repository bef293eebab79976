"""``micro_batch: auto`` in a study: looked for once under a limited memory, stored, used, and not looked for again."""

from __future__ import annotations

from pathlib import Path

import pytest

from kftune.results import Outcome
from kftune.storage.repository import Repository, SessionRecord
from kftune.study.config import StudyConfig, config_from_dict
from tests.study.test_runner import Recorder, run, runs_of

# Takes 440 MB for each example, for a moment, and notes how many they are. (Reserved and never touched, it is quick.)
GREEDY = '''
import pathlib
from dataclasses import replace
import torch
from kftune.problems import PROBLEMS, Split

HERE = pathlib.Path(__file__).parent

class Greedy(torch.nn.Linear):
    def forward(self, inputs):
        output = super().forward(inputs)
        if self.training:
            with (HERE / "sizes").open("a") as file:
                file.write(f"{len(inputs)}\\n")
            torch.empty(len(inputs), 440_000_000, dtype=torch.uint8)
        return output

def load(*, device, dtype, data_dir):
    """Digits."""
    digits = PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)
    return replace(digits, make_model=lambda: Greedy(64, 10))
'''


def study_of(directory: Path, **changes: object) -> StudyConfig:
    keys = {
        "name": "greedy",
        "problems": [{"target": "greedy:load", "name": "greedy"}],
        "optimizers": [{"name": "sgd", "fixed": {"batch_size": 4, "momentum": 0.0}}],
        "budget": {"updates": 1},
        "trials": 1,
        "repeats": 1,
        "sampler": "random",
        "evaluation": {"points": 1},
        "devices": "cpu",
        "threads": 1,
        "storage": f"sqlite:///{directory / 'greedy.db'}",
    }
    return config_from_dict(keys | changes, "test", directory=directory)


def sessions_of(study: StudyConfig) -> list[SessionRecord]:
    with Repository.open(study.storage) as repository:
        return repository.sessions()


@pytest.mark.cold
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs RLIMIT_DATA as Linux has it")
def test_a_size_is_found_once_stored_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    sizes = tmp_path / "sizes"
    # Beside the 200 to 300 MB of a worker there is room for two examples, also in a probe, but not for three.
    monkeypatch.setenv("KFTUNE_MEMORY_LIMIT", str(1500 * 2**20))

    whole = study_of(tmp_path, name="whole")
    run(whole)
    assert [run.result.outcome for run in runs_of(whole)] == [Outcome.OUT_OF_MEMORY]  # the limit is one

    study, recorder = study_of(tmp_path, micro_batch="auto"), Recorder()
    assert run(study, recorder).outcome == "complete"
    assert recorder.messages == ["greedy/greedy/sgd: micro-batches of at most 2 examples of 4 fit in the memory of cpu"]
    assert sessions_of(study)[-1].ledger["probing"] > 0

    sizes.unlink()
    more, recorder = study_of(tmp_path, micro_batch="auto", trials=3), Recorder()
    assert run(more, recorder).outcome == "complete"
    assert recorder.messages == []
    assert sessions_of(study)[-1].ledger["probing"] == 0
    found = [run.result for run in runs_of(study) if run.study == "greedy/greedy/sgd"]
    assert [(result.outcome, result.updates, result.examples) for result in found] == [(Outcome.COMPLETED, 1, 4)] * 3
    assert sizes.read_text().split() == ["2", "2", "2"] * 2  # a warm-up and an update of each of the two trials
