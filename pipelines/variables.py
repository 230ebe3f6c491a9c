"""Values of variables: text, numbers, switches. A blank variable counts as one that is not set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

Number = TypeVar("Number", int, float)


def text_of(variables: Mapping[str, str], name: str) -> str | None:
    """Text of a variable, without the blanks around it; None if it is not set."""
    return variables.get(name, "").strip() or None


def list_of(variables: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Parts of a variable that commas separate; none if it is not set."""
    parts = (part.strip() for part in variables.get(name, "").split(","))
    return tuple(part for part in parts if part)


def number_of(variables: Mapping[str, str], name: str, kind: Callable[[str], Number], least: int = 0) -> Number | None:
    """Value of a variable that is a number; None if it is not set.

    Raises
    ------
    ValueError
        If it is no finite number of this kind, or less than ``least``; the sentence names the variable.
    """
    text = text_of(variables, name)
    if text is None:
        return None
    try:
        number = kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {what}, not {text!r}") from error
    if least == 0 and not 0 <= number < math.inf:
        raise ValueError(f"{name} must not be negative, as {text} is")
    if not least <= number < math.inf:
        raise ValueError(f"{name} must be {least} or more, not {text}")
    return number


def switch_of(variables: Mapping[str, str], name: str) -> bool | None:
    """Value of a variable that is true or false; None if it is not set.

    Raises
    ------
    ValueError
        See :func:`parse_switch`.
    """
    return parse_switch(name, variables.get(name, ""))


def parse_switch(name: str, value: str) -> bool | None:
    """Read what a person means by true and false, such as ``yes``, ``off`` and ``0``; None if it is blank.

    Raises
    ------
    ValueError
        If it is neither; the sentence names the variable.
    """
    text = value.strip().casefold()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    if text:
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return None
