"""The study file as a JSON schema (draft-07), for editors: the models' keys, and the plug-ins that are installed.

pydantic describes what the models hold after their validators have run. What these accept besides (a bare name for a
mapping, ``racing: true``, one item for a list of one) is added here, part by part.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kftune._docstrings import documented, plain, summary
from kftune.study.config._fields import MOST_THREADS
from kftune.study.config._models import StudyConfig

if TYPE_CHECKING:
    from kftune.optim import OptimizerEntry
    from kftune.study.config._parameters import Parameter
    from kftune.study.samplers import SamplerEntry

__all__ = ["LOOP_MEANINGS", "SCHEMA_FILE", "key_descriptions", "schema_text", "study_schema"]

Schema: TypeAlias = dict[str, Any]

SCHEMA_FILE = ".kftune.schema.json"
"""The name under which ``kftune init`` puts the schema beside a study file."""

LOOP_MEANINGS = {
    "batch_size": "examples in one forward pass",
    "effective_batch_size": "examples behind one update; batch_size by default",
    "accumulation": "micro-batches behind one update, in place of effective_batch_size; 1 by default",
    "full_batch_at": "the update at which a growing batch reaches the training set; a constant batch by default",
    "schedule": "of the learning rate, over the budget: constant, linear, cosine, wsd (warm-up, stable, decay), step, "
    "or a scheduler of torch as {target: module:Class, args: {}}; constant by default",
    "warmup": "share of the budget (see schedule_by) in which the learning rate grows from 0; 0 by default",
    "final_lr": "learning rate at the end of linear, cosine and wsd, as a ratio to lr; 0 by default",
    "decay_share": "share of the time after the warm-up in which wsd decays; 0.2 by default",
    "milestones": "of step: shares of the budget (see schedule_by), in a list",
    "step_factor": "by what step multiplies at every milestone; 0.1 by default",
    "schedule_by": "what warmup and milestones count, and torch's schedulers go by: share, updates or epochs",
    "damping_schedule": "of the damping: with_lr (in step with the learning rate), or as schedule; constant by default",
    "final_damping": "damping at the end of its schedule, as a ratio to damping; 0 by default",
    "weight_decay_schedule": "of the weight decay: with_lr, or as schedule; constant by default",
    "final_weight_decay": "weight decay at the end of its schedule, as a ratio to weight_decay; 0 by default",
    "momentum_growth": "how momentum grows to its value; it is constant by default",
    "momentum_growth_rate": "speed of linear and exponential growth; 1 by default",
    "momentum_growth_start": "the first update whose direction the velocity has: second_update by default",
}
"""What the training loop's own hyperparameters, which every optimizer's space may have, mean."""

_SCALAR: Schema = {"type": ["number", "string", "boolean", "null"]}
_WITH_ARGS: Schema = {
    "type": "object",
    "required": ["target"],
    "properties": {"target": {"type": "string"}, "args": {"type": ["object", "null"]}},
    "additionalProperties": False,
}
_VALUES: Schema = {"anyOf": [_SCALAR, {"type": "array", "minItems": 1, "items": _SCALAR}]}
_VALUES_OR_TARGET: Schema = {"anyOf": [*_VALUES["anyOf"], _WITH_ARGS]}
_TARGET: Schema = {"type": "string", "pattern": r"^[^\s:]+:[^\s:]+$"}
# Looser than the validator's where letters beyond ASCII may stand: not all engines of patterns know them.
_NAME: Schema = {"type": "string", "pattern": r"^[^\s_.\-/\\:][^/\\:]*$", "maxLength": 100}
_NOTHING: Schema = {"type": "null"}
_DEVICE = r"(cpu|cuda(:\d+)?)"
_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def study_schema() -> dict[str, Any]:
    """The schema of a study file; names of optimizers, problems and samplers are those installed here."""
    made = StudyConfig.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    definitions = made.pop("$defs")
    models = _models(StudyConfig)
    for name, definition in (*definitions.items(), ("StudyConfig", made)):
        _describe(definition, models[name])
        for key, value in definition["properties"].items():
            definition["properties"][key] = _draft_07(value)
    for name, change in _CHANGES.items():
        definitions[name] = change(definitions[name])
    _change_top(made["properties"])
    made["required"].remove("storage")
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "kftune study file",
        **{key: value for key, value in made.items() if key != "title"},
        "definitions": definitions,
    }


def schema_text() -> str:
    """The schema as a file."""
    return f"{json.dumps(study_schema(), indent=1, ensure_ascii=False)}\n"


def key_descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Key of the study file → its meaning, as the model's docstring has it."""
    said = documented(model, "Attributes")
    return {_key(name, field): _in_yaml(said[name]) for name, field in model.model_fields.items()}


def _key(name: str, field: FieldInfo) -> str:
    return field.alias or name


def _in_yaml(meaning: str) -> str:
    return re.sub(r"\bNone\b", "null", meaning)


def _models(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Every model within a model, and itself, by name."""
    found = {model.__name__: model}
    waiting: list[Any] = [field.annotation for field in model.model_fields.values()]
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= _models(annotation)
        waiting += getattr(annotation, "__args__", ())
    return found


def _describe(definition: Schema, model: type[BaseModel]) -> None:
    definition["description"] = plain(summary(model))
    del definition["title"]
    for key, meaning in key_descriptions(model).items():
        definition["properties"][key]["description"] = plain(meaning)


def _draft_07(schema: Schema) -> Schema:
    """One key's schema in the words of draft-07: bounds by their names there, and nothing beside a reference."""
    changed: Schema = {}
    for key, value in schema.items():
        if key in ("items", "additionalProperties") and isinstance(value, Mapping):
            changed[key] = _draft_07(dict(value))
        elif key == "anyOf":
            changed[key] = [_draft_07(each) for each in value]
        elif key != "title":
            changed[_BOUNDS.get(key, key)] = value
    if "$ref" in changed and len(changed) > 1:
        return {"allOf": [{"$ref": changed.pop("$ref")}], **changed}
    return changed


def _change_top(keys: dict[str, Schema]) -> None:
    """What the study file's own keys accept beside what their models hold."""
    whole_or_auto = [{"const": "auto"}, {"type": "integer", "minimum": 1}]
    keys["name"] |= _NAME
    keys["storage"] = _changed(
        keys["storage"],
        anyOf=[{"type": "string", "minLength": 1, "pattern": "^(sqlite|postgresql)[^:]*://.|^((?!://).)+$"}, _NOTHING],
    )
    keys["storage"]["default"] = None
    keys["devices"] = _changed(
        keys["devices"],
        anyOf=[
            {"const": "auto"},
            {"type": "string", "pattern": rf"^\s*{_DEVICE}\s*(,\s*{_DEVICE}\s*)*$"},
            {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": f"^{_DEVICE}$"}},
        ],
    )
    up_to = {"type": "integer", "minimum": 1, "maximum": MOST_THREADS}
    keys["threads"] = _changed(keys["threads"], anyOf=[{"const": "auto"}, up_to])
    keys["micro_batch"] = _changed(keys["micro_batch"], anyOf=[*whole_or_auto, _NOTHING])
    keys["racing"]["anyOf"] += [{"type": "boolean"}]
    keys["racing"]["default"] = False
    one = keys["warm_start"]["items"]
    many = {"type": "array", "items": one}
    keys["warm_start"] = {key: keys["warm_start"][key] for key in ("default", "description")} | {"anyOf": [one, many]}


def _changed(schema: Schema, **values: Any) -> Schema:
    """Another type under the same description and default."""
    return values | {key: schema[key] for key in ("description", "default") if key in schema}


def _budget(made: Schema) -> Schema:
    number = {"type": "number"}
    only_updates = {"updates": number, "seconds": _NOTHING, "tolerance": False, "reruns": False}
    seconds = {"required": ["seconds"], "properties": {"seconds": number, "updates": _NOTHING}}
    updates = {"required": ["updates"], "properties": only_updates}
    return made | {"oneOf": [seconds, updates]}


def _problem(made: Schema) -> Schema:
    from kftune.problems import PROBLEMS

    return _plug_in(made, PROBLEMS.names())


def _optimizer(made: Schema) -> Schema:
    from kftune.optim import OPTIMIZERS

    made["properties"]["fixed"]["additionalProperties"] = _VALUES_OR_TARGET
    made["allOf"] = [_hyperparameters(entry) for entry in OPTIMIZERS]
    return _plug_in(made, OPTIMIZERS.names())


def _plug_in(made: Schema, names: tuple[str, ...]) -> Schema:
    """A bare name, a bare target, or a mapping with either."""
    registered = {"enum": list(names)}
    has_target = {"required": ["target"], "properties": {"target": {"type": "string"}}}
    keys = made["properties"]
    keys["target"]["anyOf"] = [_TARGET, _NOTHING]
    keys["label"]["anyOf"] = [_NAME, _NOTHING]
    mapping = made | {
        "if": has_target,
        "then": {"properties": {"name": {"anyOf": [_NAME, _NOTHING]}}},
        "else": {"required": ["name"], "properties": {"name": registered}},
    }
    said = mapping.pop("description")
    return {"description": said, "anyOf": [registered, _TARGET, mapping]}


def _hyperparameters(entry: OptimizerEntry) -> Schema:
    """What may be searched and fixed of one optimizer of the registry."""
    from kftune.study.config._parameters import hyperparameters

    meanings = {name: plain(text) for name, text in documented(entry.cls, "Args").items()} | LOOP_MEANINGS
    known = hyperparameters(entry)
    values = {name: _parameter(parameter, meanings.get(name, "")) for name, parameter in known.items()}
    own = {"const": entry.name}
    return {
        "if": {"required": ["name"], "properties": {"name": own, "target": _NOTHING}},
        "then": {
            "properties": {
                "space": {"propertyNames": {"enum": list(known)}},
                "fixed": {"properties": values, "additionalProperties": False},
            }
        },
    }


def _parameter(parameter: Parameter, meaning: str) -> Schema:
    allowed: list[Schema] = [{"enum": list(parameter.choices)}] if parameter.choices else []
    kinds = sorted({_JSON_TYPES[kind] for kind in parameter.kinds})
    allowed += [{"type": kinds}] if kinds else []
    allowed += [_VALUES, _WITH_ARGS] if parameter.as_value is not None else []
    schema: Schema = {"description": meaning} | ({"anyOf": allowed} if allowed else {})
    if _is_plain(parameter.default):
        schema["default"] = parameter.default
    return schema


def _is_plain(value: Any) -> bool:
    """Whether JSON can say it in one value."""
    return value is None or isinstance(value, bool | str) or (isinstance(value, int | float) and math.isfinite(value))


def _dimension(made: Schema) -> Schema:
    keys = made["properties"]
    choices = {"type": "array", "minItems": 1, "items": _VALUES_OR_TARGET}
    keys["choices"] = _changed(keys["choices"], anyOf=[choices, _NOTHING])
    when = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": _VALUES}
    keys["when"] = _changed(keys["when"], anyOf=[when, _NOTHING])
    with_choices = {"required": ["choices"], "properties": {"choices": {"type": "array"}}}
    range_only = {key: _NOTHING for key in keys if key not in ("choices", "when", "relative_to")}
    return made | {"if": with_choices, "then": {"properties": {**range_only, "relative_to": False}}}


def _pruner(made: Schema) -> Schema:
    keys = made["properties"]
    is_median = {"properties": {"name": {"const": "median"}}}
    only_default = {"properties": {"reduction_factor": {"const": keys["reduction_factor"]["default"]}}}
    mapping = made | {"if": is_median, "then": only_default}
    said = mapping.pop("description")
    return {"description": said, "anyOf": [{"enum": keys["name"]["enum"]}, mapping]}


def _warm_start(made: Schema) -> Schema:
    said = made.pop("description")
    return {"description": said, "anyOf": [{"type": "string", "minLength": 1}, made]}


def _sampler(made: Schema) -> Schema:
    from kftune.study.samplers import SAMPLERS

    keys = made["properties"]
    default = keys["name"]["default"]
    has_target = {"required": ["target"], "properties": {"target": {"type": "string"}}}
    own = {
        "properties": {
            "target": _TARGET | {"description": keys["target"]["description"]},
            "name": {"anyOf": [_NAME, _NOTHING]},
            "args": {"type": ["object", "null"], "description": "of the target"},
        },
        "additionalProperties": False,
    }
    registered = {
        "properties": {"name": {"enum": list(SAMPLERS.names())}},
        "allOf": [_options(s, default) for s in SAMPLERS],
    }
    mapping = {
        "type": "object",
        "properties": {"name": keys["name"], "target": {"description": keys["target"]["description"]}},
        "if": has_target,
        "then": own,
        "else": registered,
    }
    return {"description": made["description"], "anyOf": [{"enum": list(SAMPLERS.names())}, _TARGET, mapping]}


def _options(entry: SamplerEntry, default: str) -> Schema:
    """The options of one sampler of the registry, where it is named, or is the default and none is."""
    named = {"properties": {"name": {"const": entry.name}}}
    options = {name: _option(value, entry.allowed.get(name)) for name, value in entry.options.items()}
    return {
        "if": named if entry.name == default else named | {"required": ["name"]},
        "then": {"properties": {"name": True, "target": _NOTHING, **options}, "additionalProperties": False},
    }


def _option(default: Any, allowed: tuple[Any, ...] | None) -> Schema:
    if isinstance(default, bool) or not isinstance(default, int | float):
        return {"default": default} | ({"enum": list(allowed)} if allowed else {"type": "boolean"})
    bounds = zip(("minimum", "maximum"), allowed or (), strict=False)
    finite = {key: bound for key, bound in bounds if abs(bound) != float("inf")}
    return {"default": default, "type": _JSON_TYPES[type(default)], **finite}


_CHANGES: dict[str, Callable[[Schema], Schema]] = {
    "BudgetConfig": _budget,
    "DimensionConfig": _dimension,
    "OptimizerConfig": _optimizer,
    "ProblemConfig": _problem,
    "PrunerConfig": _pruner,
    "SamplerConfig": _sampler,
    "WarmStartConfig": _warm_start,
}
