import json

from kftune.analysis.ranking.chosen import chosen_configurations
from kftune.analysis.ranking.verdict import verdicts
from kftune.results import Outcome
from tests.analysis.memory import file, run, study, trial

EDGE = {"lr": 1.0}


def test_confirmed_ones_are_ranked_and_tuned_ones_stand_below_unranked() -> None:
    made = file(
        study([trial(0, [0.1, 0.1])], optimizer="lucky"),
        study([trial(0, [1.0, 1.0])], optimizer="sgd", confirmed={0: [3.0, 3.2, 3.1]}),
        study([trial(0, [1.5, 1.5])], optimizer="adamw", confirmed={0: [2.1, 2.3, 2.0]}),
        study([trial(0, [2.0, 2.0])], optimizer="kfac", confirmed={0: [2.0, 2.2, 2.1]}),
        study([trial(0, [None])], optimizer="broken"),
    )
    (verdict,) = verdicts(made)
    assert [(row.optimizer, row.rank, row.is_confirmed) for row in verdict.rows] == [
        ("kfac", 1, True),
        ("adamw", 2, True),
        ("sgd", 3, True),
        ("lucky", None, False),
        ("broken", None, False),
    ]
    kfac, _, _, lucky, broken = verdict.rows
    assert (kfac.loss, kfac.tuned, kfac.n_seeds) == (2.1, 2.0, 3)
    assert kfac.interval is not None
    assert (lucky.loss, lucky.interval) == (0.1, None)
    assert (broken.trial, broken.outcomes) == (None, {"crashed": 1})
    ordered = [("kfac", "adamw"), ("kfac", "sgd"), ("adamw", "sgd")]  # as the rows, unlike in the file
    assert [(pair.first, pair.second) for pair in verdict.comparisons] == ordered
    assert verdict.matrix is not None
    assert verdict.matrix.optimizers == ("kfac", "adamw", "sgd")
    shares = [[None if cell is None else round(cell.probability, 2) for cell in row] for row in verdict.matrix.cells]
    assert shares == [[None, 0.67, 1.0], [0.33, None, 1.0], [0.0, 0.0, None]]


def test_without_confirmation_the_ranking_is_by_tuned_loss_and_says_so() -> None:
    made = file(study([trial(0, [2.0])], optimizer="sgd"), study([trial(0, [1.0])]), study([], optimizer="adamw"))
    (verdict,) = verdicts(made)
    assert not verdict.is_confirmed
    assert [(row.optimizer, row.rank) for row in verdict.rows] == [("kfac", 1), ("sgd", 2), ("adamw", None)]
    assert (verdict.comparisons, verdict.matrix) == ((), None)


def test_hugged_edges_and_missing_trials_make_a_row_provisional() -> None:
    crowded = study([trial(i, [float(i)] * 2, params=EDGE) for i in range(5)])
    done = study([trial(i, [float(i)] * 2) for i in range(5)], optimizer="sgd")
    begun = study([trial(0, [1.0], state="running")], optimizer="adamw")
    (verdict,) = verdicts(file(crowded, done, begun))
    assert {row.optimizer: row.is_provisional for row in verdict.rows} == {"kfac": True, "sgd": False, "adamw": True}
    assert verdict.rows[0].edges[0].wider == (1e-4, 10.0)


def test_what_is_better_than_the_confirmed_ones_by_now_makes_a_row_provisional() -> None:
    trials = [trial(0, [1.0, 1.0]), trial(1, [1.2, 1.2]), trial(2, [0.9, 0.9])]
    later = study(trials, confirmed={0: [1.5, 1.6], 1: [1.7, 1.8]})
    done = study(trials, optimizer="sgd", confirmed={0: [2.5, 2.6], 2: [2.7, 2.8]})
    tied = study([trial(0, [1.0]), trial(1, [1.0])], optimizer="adamw", confirmed={1: [3.0, 3.1]})
    made = file(later, done, tied)
    (verdict,) = verdicts(made)
    assert [(row.optimizer, row.trial, row.better_trial, row.is_provisional) for row in verdict.rows] == [
        ("kfac", 0, 2, True),
        ("sgd", 2, None, False),
        ("adamw", 1, None, False),
    ]
    kfac, sgd, _ = chosen_configurations(made)
    assert (kfac.trial, kfac.better_trial, sgd.better_trial) == (0, 2, None)
    assert kfac.described.endswith("; trial 2 is better in the search and not confirmed: kftune confirm again")
    assert "again" not in sgd.described


def test_confirming_runs_that_failed_are_told() -> None:
    diverged = run(5.0, trial=1, purpose="confirm", outcome=Outcome.DIVERGED, study="demo/digits/kfac")
    trials = [trial(0, [1.0]), trial(1, [1.1])]
    some = study(trials, confirmed={0: [1.5, None, 1.6]}, confirmations=(diverged,))
    none = study([trial(0, [0.5])], optimizer="sgd", confirmed={0: [None, None]})
    (verdict,) = verdicts(file(some, none))
    kfac, sgd = verdict.rows
    assert (kfac.n_seeds, kfac.n_uncounted) == (2, 1)
    assert kfac.confirm_outcomes == {"completed": 2, "crashed": 1, "diverged": 1}
    assert (sgd.is_confirmed, sgd.n_uncounted, sgd.confirm_outcomes) == (False, 0, {"crashed": 2})


def test_at_another_budget_what_is_not_confirmed_there_is_not_ranked() -> None:
    made = file(study([trial(0, [1.0])], confirmed={0: [1.0, 2.0]}), study([trial(0, [2.0])], optimizer="sgd"))
    (verdict,) = verdicts(made, budget_factor=3)
    assert not verdict.is_confirmed
    assert [(row.optimizer, row.rank, row.confirm_outcomes) for row in verdict.rows] == [
        ("kfac", None, {}),
        ("sgd", None, {}),
    ]


def test_problems_are_apart_and_all_is_plain_data() -> None:
    made = file(study([trial(0, [1.0])], problem="a"), study([trial(0, [2.0])], problem="b", confirmed={0: [1.0, 2.0]}))
    plain = json.loads(json.dumps([verdict.to_dict() for verdict in verdicts(made)]))
    assert [(verdict["problem"], verdict["is_confirmed"]) for verdict in plain] == [("a", False), ("b", True)]
    assert plain[1]["rows"][0]["interval"][0] < 1.5


def test_the_configuration_to_use_is_the_confirmed_one() -> None:
    trials = [trial(0, [1.0, 1.0], params={"lr": 0.1}), trial(1, [1.1, 1.1], params={"lr": 0.2})]
    clearly = {0: [2.0, 2.01, 1.99, 2.0], 1: [1.0, 1.01, 1.0, 0.99]}
    made = study(trials, confirmed=clearly)
    clear = made.confirmations[-1].params
    (chosen,) = chosen_configurations(file(made))
    assert (chosen.trial, chosen.confirmed, chosen.tuned, chosen.params) == (1, 1.0, 1.1, clear)
    (tuned,) = chosen_configurations(file(study(trials), study([trial(0, [None])], optimizer="sgd")))
    assert (tuned.trial, tuned.confirmed) == (0, None)
    assert "not confirmed" in tuned.described
    (crashed,) = chosen_configurations(file(study(trials, confirmed={1: [None]})))
    assert (crashed.trial, crashed.confirmed) == (0, None)
