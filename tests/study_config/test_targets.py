"""Optimizers and problems of the user's own in a study file: ``target: module:attribute``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kftune.cli import main
from kftune.errors import ConfigError, UserCodeError
from kftune.space import Categorical, Float, Int
from kftune.study.config import StudyConfig, config_from_dict, load_config, make_plans

OPTIM = """
import torch
from kftune.optim import OPTIMIZERS, ModelOptimizer, OptimizerEntry
from kftune.space import Float, Int, Space


class Signs(ModelOptimizer):
    def __init__(self, model, *, lr: float, tie: str = "stay", likelihood=None, seed=0):
        if lr > 1:
            raise ValueError(f"lr must be at most 1, got {lr}")
        super().__init__(model, {"lr": lr})

    def _update(self):
        pass

    def coverage(self):
        return self._coverage("sign")


class Buggy(Signs):
    def __init__(self, model, *, lr: float = 0.1):
        raise KeyError("a mistake of the user's own")


def any_of_it(model, **others):
    return Signs(model, **others)


NOT_AN_OPTIMIZER = 3
entry = OptimizerEntry(
    name="signs", cls=Signs, summary="", paper="", second_order=False,
    space=Space({"lr": Float(low=1e-4, high=0.1, log=True), "batch_size": Int(low=16, high=4096, log=True)}),
)
"""

PROBLEM = """
import functools
import torch
from torch import nn
from torch.nn.functional import mse_loss
from kftune.errors import DataMissingError
from kftune.problems import Problem, ProblemEntry, Split


def load(*, device, dtype, data_dir, width=3):
    x = torch.linspace(0, 1, 100, device=device, dtype=dtype)[:, None]
    return Problem(name="line", likelihood="gaussian", make_model=functools.partial(nn.Linear, 1, 1), loss=mse_loss,
                   train=Split(x[:80], x[:80]), test=Split(x[80:], x[80:]))


def incomplete(*, device, dtype):
    return load(device=device, dtype=dtype, data_dir=None)


def demanding(*, device, dtype, data_dir, width):
    return load(device=device, dtype=dtype, data_dir=data_dir)


def nothing(*, device, dtype, data_dir):
    return {}


def missing(*, device, dtype, data_dir):
    raise DataMissingError("line: line.csv is not there")


def buggy(*, device, dtype, data_dir):
    return {}["a mistake of the user's own"]


entry = ProblemEntry(name="line", load=load, summary="", source="", n_train=80, n_test=20, args={"width": 3})
"""

FILES = {
    "my_optim.py": OPTIM,
    "my_problem.py": PROBLEM,
    "broken.py": "import torch\n\nraise RuntimeError('a mistake of the user')\n",
    "unfinished.py": "def f(:\n",
    "chained.py": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise RuntimeError('theirs') from error\n",
    "needy.py": "import a_package_that_is_not_installed\n",
    "leaving.py": "import sys\n\nsys.exit('this is a script')\n",
    "package/__init__.py": "",
    "package/inner.py": OPTIM,
}

RMSPROP = {
    "name": "my rms",
    "target": "torch.optim:RMSprop",
    "space": {"lr": {"low": 1e-4, "high": 0.1, "log": True}, "batch_size": {"low": 16, "high": 512, "log": True}},
    "fixed": {"alpha": 0.9},
}
SIGNS = {"target": "my_optim:Signs", "fixed": {"lr": 0.1, "batch_size": 64}}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With the user's modules; the current directory is another."""
    found = tmp_path / "study"
    for name, text in FILES.items():
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_text(text)
    return found


def load(directory: Path, *overrides: str, **keys: Any) -> StudyConfig:
    plain = {"name": "own", "problems": ["digits_mlp"], "optimizers": ["sgd"], "budget": {"updates": 5}, "trials": 2}
    (directory / "study.yaml").write_text(json.dumps({**plain, **keys}))
    return load_config(directory / "study.yaml", overrides)


def optimizer(**keys: Any) -> dict[str, Any]:
    return {"optimizers": [keys]}


def test_a_torch_optimizer_has_the_space_of_the_file(directory: Path) -> None:
    (plan,) = make_plans(load(directory, **optimizer(**RMSPROP)))
    assert (plan.study, plan.optimizer, plan.optimizer_name) == ("own/digits_mlp/my rms", "my rms", RMSPROP["target"])
    assert plan.space.dimensions == {
        "lr": Float(low=1e-4, high=0.1, log=True),
        "batch_size": Int(low=16, high=512, log=True),
    }
    assert plan.space.fixed == {"alpha": 0.9}


def test_an_entry_keeps_its_own_space_and_name(directory: Path) -> None:
    target = {"target": "my_optim:entry", "space": {"lr": {"high": 0.01}}}
    (plan,) = make_plans(load(directory, problems=["my_problem:entry"], optimizers=[target]))
    assert (plan.study, plan.problem_name, plan.optimizer_name) == (
        "own/line/signs",
        "my_problem:entry",
        "my_optim:entry",
    )
    assert plan.space.dimensions["lr"] == Float(low=1e-4, high=0.01, log=True)
    assert plan.space.dimensions["batch_size"] == Int(low=16, high=80, log=True)


def test_a_function_that_loads_a_problem_says_how_many_examples_there_are(directory: Path) -> None:
    problem = {"name": "my line", "target": "my_problem:load", "args": {"width": 4}}
    entry = {"target": "my_optim:entry"}
    (plan,) = make_plans(load(directory, problems=[problem], optimizers=[entry]))
    assert (plan.problem, dict(plan.problem_args)) == ("my line", {"width": 4})
    assert plan.space.dimensions["batch_size"] == Int(low=16, high=80, log=True)


def test_names_come_from_the_attribute_and_short_forms_are_understood(directory: Path) -> None:
    items = [
        SIGNS | {"label": "first"},
        SIGNS | {"target": "package.inner:Signs", "name": "second"},
        SIGNS | {"target": "my_optim:any_of_it"},
        "my_optim:entry",
    ]
    config = load(directory, problems=["my_problem:load"], optimizers=items)
    assert [plan.study for plan in make_plans(config)] == [
        f"own/load/{name}" for name in ("first", "second", "any_of_it", "signs")
    ]


@pytest.mark.parametrize(
    ("fixed", "made"),
    [
        ({"betas": [0.8, 0.99]}, {"beta1": 0.8, "beta2": 0.99}),
        ({"beta1": 0.8}, {"beta1": 0.8}),
        ({"beta2": 1}, None),
    ],
)
def test_betas_are_set_together_or_one_by_one(directory: Path, fixed: dict[str, Any], made: Any) -> None:
    adam = {"target": "torch.optim:Adam", "fixed": {"batch_size": 32, **fixed}}
    if made is None:
        with pytest.raises(ConfigError, match=r"Invalid beta parameter at index 1: 1\.0"):
            load(directory, **optimizer(**adam))
        return
    (plan,) = make_plans(load(directory, **optimizer(**adam)))
    assert plan.space.fixed == {"batch_size": 32, **made}


def test_betas_are_searched_one_by_one(directory: Path) -> None:
    betas = {"beta1": {"choices": [0.5, 0.9]}, "beta2": {"low": 0.9, "high": 0.999, "log": True, "complement": True}}
    (plan,) = make_plans(load(directory, **optimizer(target="torch.optim:Adam", space=betas, fixed={"batch_size": 8})))
    assert plan.space.dimensions == {
        "beta1": Categorical(choices=(0.5, 0.9)),
        "beta2": Float(low=0.9, high=0.999, log=True, complement=True),
    }


LINE = {"problems": ["my_problem:entry"]}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    (optimizer(target="my_optin:Signs"), "optimizers[0].target: there is no module 'my_optin' in {dir} or among the "),
    (optimizer(target="my_optim:Sings"), "optimizers[0].target: 'my_optim' has no attribute 'Sings'; did you mean 'Si"),
    (optimizer(target="package.iner:Signs"), "optimizers[0].target: there is no module 'package.iner' in {dir} or am"),
    (optimizer(target="my_optim.Signs"), "optimizers[0].target: must look like package.module:Class, got 'my_optim.S"),
    (optimizer(target="./my_optim.py:Signs"), "optimizers[0].target: must look like package.module:Class, got './my"),
    (optimizer(target=3), "optimizers[0].target: must be text such as package.module:Class, got 3"),
    (optimizer(target="my_optim:NOT_AN_OPTIMIZER"), "optimizers[0].target: 'my_optim:NOT_AN_OPTIMIZER' is an int; it"),
    (optimizer(target="my_problem:entry"), "optimizers[0].target: 'my_problem:entry' is a ProblemEntry; it must be"),
    (optimizer(target="torch.optim:LBFGS"), "optimizers[0].target: 'torch.optim:LBFGS' cannot be used: LBFGS evaluat"),
    (
        optimizer(target="torch.optim:RMSprop"),
        "optimizers[0].space: is missing: rmsprop has no search space of its own; write one, such as {{lr: {{low: 1.0e",
    ),
    (
        optimizer(target="torch.optim:RMSprop", fixed={"lr": 0.1}),
        "optimizers[0]: rmsprop needs batch_size: give it a range in space, or a value in fixed",
    ),
    (
        optimizer(target="my_optim:Signs", fixed={"batch_size": 8}),
        "optimizers[0]: signs needs lr: give it a range in space, or a value in fixed",
    ),
    (
        optimizer(**RMSPROP | {"fixed": {"alhpa": 0.9}}),
        "optimizers[0].fixed.alhpa: rmsprop has no hyperparameter 'alhpa'; did you mean 'alpha'? (available: accumulat",
    ),
    (
        optimizer(**RMSPROP | {"fixed": {"centered": 2}}),
        "optimizers[0].fixed.centered: must be true or false, got 2",
    ),
    (optimizer(**RMSPROP | {"fixed": {"alpha": -1}}), "optimizers[0]: Invalid alpha value: -1.0"),
    (optimizer(**RMSPROP | {"fixed": {"alpha": "big"}}), "optimizers[0].fixed.alpha: must be a number, got 'big'"),
    (
        optimizer(**RMSPROP | {"fixed": {"alpha": [0.9]}}),
        "optimizers[0].fixed.alpha: must be a single value (number, text, true, false or null), got a list",
    ),
    (
        optimizer(**SIGNS | {"fixed": {"lr": 2, "batch_size": 8}}),
        "optimizers[0].fixed.lr: lr must be at most 1, got 2.0",
    ),
    (
        optimizer(**SIGNS | {"target": "my_optim:any_of_it", "fixed": {"lr": 0.1, "tei": 1, "batch_size": 8}}),
        "optimizers[0]: Signs.__init__() got an unexpected keyword argument 'tei'",
    ),
    (
        optimizer(target="torch.optim:Adam", fixed={"betas": [0.9], "batch_size": 8}),
        "optimizers[0].fixed.betas: must be a list of 2 numbers, got 1",
    ),
    (
        optimizer(target="torch.optim:Adam", fixed={"betas": [0.9, 0.9], "beta1": 0.8, "batch_size": 8}),
        "optimizers[0].fixed.betas: beta1 stands in fixed too; give either",
    ),
    (
        optimizer(target="torch.optim:Adam", space={"betas": {"low": 0, "high": 1}}, fixed={"batch_size": 8}),
        "optimizers[0].space.betas: is several numbers: set beta1 and beta2",
    ),
    (optimizer(**RMSPROP | {"name": "a/b"}), "optimizers[0].name: must begin with a letter or digit and hold only le"),
    ({"optimizers": [SIGNS, SIGNS]}, "optimizers[1]: 'signs' stands twice; give one of them a label of its own"),
    (optimizer(label="x"), "optimizers[0].name: is missing"),
    (
        LINE | optimizer(**RMSPROP),
        "optimizers[0].space.batch_size.high: must be at most 80, the training examples of line, got 512",
    ),
    ({"problems": ["my_problem:lode"]}, "problems[0].target: 'my_problem' has no attribute 'lode'; did you mean 'loa"),
    ({"problems": ["my_problem:nn"]}, "problems[0].target: 'my_problem:nn' is no problem; it must be a kftune.probl"),
    ({"problems": ["my_problem:incomplete"]}, "problems[0].target: 'my_problem:incomplete' does not take data_dir; i"),
    ({"problems": ["my_problem:demanding"]}, "problems[0].target: 'my_problem:demanding': its argument 'width' needs"),
    ({"problems": ["my_problem:nothing"]}, "problems[0].target: 'my_problem:nothing' returned dict, not a kftune.pr"),
    ({"problems": ["my_problem:missing"]}, "problems[0].target: line: line.csv is not there"),
    (LINE | {"objective": "test_error"}, "objective: test_error needs an accuracy, which line has not"),
    (
        {"problems": [{"target": "my_problem:load", "args": {"widht": 3}}]},
        "problems[0].args.widht: problem 'load' has no argument 'widht'; did you mean 'width'?",
    ),
    ({"module_dir": 3}, "module_dir: must be text, got 3"),
    ({"module_dir": "elsewhere", **optimizer(**SIGNS)}, "optimizers[0].target: there is no module 'my_opti"),
]


@pytest.mark.parametrize(("keys", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    directory: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load(directory, **keys)
    expected = f"{directory / 'study.yaml'}: {message.format(dir=directory)}"
    assert str(error.value)[: len(expected)] == expected
    assert "\n" not in str(error.value)
    assert main(["run", str(directory / "study.yaml")]) == 2
    assert capsys.readouterr().err == f"error: {error.value}\n"
    assert not list(directory.glob("*.db"))


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        (optimizer(target="broken:X"), ("broken.py", "line 3", "RuntimeError: a mistake of the user")),
        (optimizer(target="chained:X"), ("ZeroDivisionError: ", "direct cause", "RuntimeError: theirs")),
        (optimizer(target="unfinished:X"), ("unfinished.py", "line 1", "SyntaxError: ")),
        (optimizer(target="needy:X"), ("needy.py", "No module named 'a_package_that_is_not_installed'")),
        (optimizer(target="leaving:X"), ("leaving.py", "SystemExit: this is a script")),
        (optimizer(target="my_optim:Buggy", fixed={"batch_size": 8}), ("my_optim.py", 'KeyError: "a mistake')),
        ({"problems": ["my_problem:buggy"]}, ("my_problem.py", "in buggy", 'KeyError: "a mistake')),
    ],
)
def test_what_the_users_code_raises_is_shown_with_their_frames_alone(
    directory: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], shown: tuple[str, ...]
) -> None:
    with pytest.raises(UserCodeError):
        load(directory, **keys)
    assert main(["run", str(directory / "study.yaml")]) == 1
    error = capsys.readouterr().err
    assert all(part in error for part in shown)
    assert "importlib" not in error
    files = [line.split('"')[1] for line in error.splitlines() if line.strip().startswith("File ")]
    assert files
    assert all(Path(file).parent == directory for file in files)
    assert not list(directory.glob("*.db"))


def test_the_target_is_part_of_the_studys_identity(directory: Path) -> None:
    same = [make_plans(load(directory, **optimizer(**SIGNS | {"label": label})))[0].identity() for label in ("a", "b")]
    assert same[0] == same[1]
    for changed in ({"target": "package.inner:Signs"}, {"fixed": {"lr": 0.2, "batch_size": 64}}):
        assert make_plans(load(directory, **optimizer(**SIGNS | changed)))[0].identity() != same[0]
    assert same[0]["optimizer"] == "my_optim:Signs"


def test_a_stored_configuration_finds_the_modules_again(directory: Path) -> None:
    config = load(directory, problems=["my_problem:load"], **optimizer(**SIGNS))
    assert config.module_dir == str(directory)
    stored = json.loads(json.dumps(config.to_dict()))
    again = config_from_dict(stored, "the database")
    assert again == config
    assert [plan.identity() for plan in make_plans(again)] == [plan.identity() for plan in make_plans(config)]


def test_a_study_without_targets_does_not_say_where_it_lies(directory: Path) -> None:
    assert load(directory).module_dir is None


def test_module_dir_is_relative_to_the_study_file_or_to_where_set_is_typed(directory: Path) -> None:
    (directory / "code").mkdir()
    (directory / "my_optim.py").rename(directory / "code" / "my_optim.py")
    assert load(directory, module_dir="code", **optimizer(**SIGNS)).module_dir == str(directory / "code")
    assert make_plans(load(directory, "module_dir=code", **optimizer(**SIGNS)))
    with pytest.raises(ConfigError, match="there is no module 'my_optim' in "):
        load(directory, **optimizer(**SIGNS))


def test_set_reaches_targets_by_their_names(directory: Path) -> None:
    config = load(directory, "optimizers.signs.fixed.lr=0.2", **optimizer(**SIGNS))
    assert make_plans(config)[0].space.fixed["lr"] == 0.2
    config = load(directory, "problems.load.args.width=5", problems=["my_problem:load"])
    assert dict(make_plans(config)[0].problem_args) == {"width": 5}


def test_the_path_is_as_before_and_another_directorys_module_of_the_same_name_is_another(directory: Path) -> None:
    other = directory.parent / "other"
    other.mkdir()
    (other / "my_optim.py").write_text(OPTIM.replace("at most 1,", "at most 0.05,").replace("lr > 1", "lr > 0.05"))
    path = list(sys.path)
    load(directory, **optimizer(**SIGNS))
    with pytest.raises(ConfigError, match=r"lr must be at most 0.05, got 0.1"):
        load(other, **optimizer(**SIGNS))
    load(directory, **optimizer(**SIGNS))
    assert sys.path == path


def test_the_codes_version_is_that_of_its_file(directory: Path) -> None:
    keys = {"optimizers": ["my_optim:entry", SIGNS | {"name": "other"}], "problems": ["my_problem:load"]}
    before = load(directory, **keys).code_versions()
    assert before.keys() == {"my_optim:entry", "my_optim:Signs", "my_problem:load"}
    (directory / "my_optim.py").write_text(OPTIM + "\n# changed\n")
    after = load(directory, **keys).code_versions()
    assert before["my_problem:load"] == after["my_problem:load"]
    assert before["my_optim:Signs"] != after["my_optim:Signs"]


def test_describe_and_validate_show_them(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(directory, **optimizer(**RMSPROP))
    assert main(["validate", str(directory / "study.yaml")]) == 0
    assert "my rms is torch.optim:RMSprop" in capsys.readouterr().out
    monkeypatch.chdir(directory)
    assert main(["describe", "my_optim:Signs"]) == 0
    assert "no search space of its own" in capsys.readouterr().out
    assert main(["describe", "my_problem:load"]) == 0
    assert "examples: 80 for training, 20 for testing" in capsys.readouterr().out
    assert main(["describe", "torch.optim:Adam", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert {"beta1", "beta2"} <= {parameter["name"] for parameter in described["parameters"]}
    assert main(["describe", "my_optim:entry"]) == 0
    assert "search space" in capsys.readouterr().out
    assert main(["describe", "my_optim:Sings"]) == 2
    assert capsys.readouterr().err.startswith("error: 'my_optim' has no attribute 'Sings'; did you mean 'Signs'?")
