"""Whether a text is an instance of a schema, judged by the `jsonschema` package with nothing taken loosely.

Numbers are decimals (0.03 is a multiple of 0.01), patterns are read as ECMAScript reads them as far as `re` can, and formats
are assertions.
"""

from __future__ import annotations

import decimal
import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import jsonschema
from jsonschema import validators

_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PART = r"(?:\d+D|\d+M(?:\d+D)?|\d+Y(?:\d+M(?:\d+D)?)?)"
_CLOCK = r"T(?:\d+S|\d+M(?:\d+S)?|\d+H(?:\d+M(?:\d+S)?)?)"
_DURATION = re.compile(rf"P(?:{_PART}(?:{_CLOCK})?|{_CLOCK}|\d+W)")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_LONGEST_TEXT = 120


def fault(schema: dict[str, Any], text: str) -> str | None:
    """What is wrong with a text, None if it is an instance."""
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    try:
        with decimal.localcontext(prec=2000):
            instance = json.loads(text, parse_float=_decimal)
            error = next(_validator(exact).iter_errors(instance), None)
    except ValueError as broken:
        return f"no JSON: {broken}"
    return None if error is None else error.message[:_LONGEST_TEXT]


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except decimal.InvalidOperation:  # an exponent beyond all bounds, which JSON allows
        return Decimal("-Infinity" if text.startswith("-") else "Infinity")


def _validator(schema: Any) -> Any:
    base = validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    types = base.TYPE_CHECKER.redefine("integer", _is_integer).redefine("number", _is_number)
    strict = validators.extend(base, {"pattern": _pattern}, type_checker=types)
    checker = jsonschema.FormatChecker(formats=())
    for name, holds in FORMATS.items():
        checker.checks(name)(_of_texts(holds))
    return strict(schema, format_checker=checker)


def _is_number(_: Any, value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _is_integer(checker: Any, value: Any) -> bool:
    return _is_number(checker, value) and (isinstance(value, int) or (value.is_finite() and value % 1 == 0))


def _pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[jsonschema.ValidationError]:
    # ECMAScript's \w and \d are ASCII, its \s is not; its $ is the very end.
    flags = 0 if r"\s" in pattern or r"\S" in pattern else re.ASCII
    ended = re.sub(r"(?<!\\)\$", r"\\Z", pattern)
    if validator.is_type(instance, "string") and not re.search(ended, instance, flags):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _of_texts(holds: Callable[[str], bool]) -> Callable[[object], bool]:
    return lambda value: not isinstance(value, str) or holds(value)


def _is_date(text: str) -> bool:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
        return False
    year, month, day = map(int, text.split("-"))
    try:
        date(year or 2000, month, day)  # Python has no year 0; it was a leap year
    except ValueError:
        return False
    return True


def _is_time(text: str) -> bool:
    return _TIME.fullmatch(text) is not None


def _is_date_time(text: str) -> bool:
    return len(text) > 11 and text[10] in "Tt" and _is_date(text[:10]) and _is_time(text[11:])


def _is_email(text: str) -> bool:
    name, at, host = text.rpartition("@")
    return bool(name and at and host) and not re.search(r"[\s\x00-\x1f]", text)


def _is_hostname(text: str) -> bool:
    return len(text) <= 253 and all(_LABEL.fullmatch(label) for label in text.split("."))


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text


FORMATS: dict[str, Callable[[str], bool]] = {
    "date": _is_date,
    "time": _is_time,
    "date-time": _is_date_time,
    "duration": lambda text: _DURATION.fullmatch(text) is not None,
    "email": _is_email,
    "hostname": _is_hostname,
    "ipv4": _is_ipv4,
    "ipv6": _is_ipv6,
    "uuid": lambda text: _UUID.fullmatch(text) is not None,
    "uri": lambda text: _URI.fullmatch(text) is not None,
}
