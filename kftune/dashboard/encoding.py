"""Figures and data as JSON that can stand in a page."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

__all__ = ["figure_json", "json_markup", "packed"]


def figure_json(figure: go.Figure) -> Markup:
    """A figure for a script element."""
    return json_markup(figure.to_plotly_json())


def json_markup(value: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it can end the element. NaN is null."""
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def packed(values: np.ndarray[Any, Any]) -> dict[str, str]:
    """An array as Plotly takes it: its type and its bytes (little-endian, base64)."""
    kind = f"{'f' if values.dtype.kind == 'f' else values.dtype.kind}{values.dtype.itemsize}"
    ordered = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return {"dtype": kind, "bdata": base64.b64encode(ordered.tobytes()).decode()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return packed(value)
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
