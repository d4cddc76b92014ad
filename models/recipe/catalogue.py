"""The tools of the node's world, in OpenAI's form, and distractors that belong to other worlds."""

from __future__ import annotations

from typing import Any

Tool = dict[str, Any]


def tool(name: str, description: str, **parameters: Any) -> Tool:
    """One function tool; every parameter is required."""
    schema = {"type": "object", "properties": parameters, "required": list(parameters), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


_DEVICE = {"type": "string", "description": "a device's name, such as pump 3"}
_QUANTITY = {"type": "string", "description": "speed, temperature, pressure, flow, level, position, ..."}
_NUMBER = {"type": "number"}
_UNIT = {"type": "string", "description": "percent, celsius, bar, rpm, litres_per_minute, kilowatt, ..."}
_SEVERITY = {"type": "string", "enum": ["low", "medium", "high", "critical", "all"]}
_CLOCK = {"type": "string", "description": "24-hour clock, HH:MM"}

CATALOGUE: tuple[Tool, ...] = (
    tool("set_value", "Set a quantity of a device.", device=_DEVICE, quantity=_QUANTITY, value=_NUMBER, unit=_UNIT),
    tool("read_value", "Read a quantity of a device.", device=_DEVICE, quantity=_QUANTITY),
    tool("start_device", "Start a device.", device=_DEVICE),
    tool("stop_device", "Stop a device.", device=_DEVICE),
    tool("list_alarms", "List active alarms.", severity=_SEVERITY),
    tool("acknowledge_alarm", "Acknowledge an alarm.", alarm_id={"type": "integer"}),
    tool(
        "set_alarm",
        "Raise an alarm when a quantity crosses a limit.",
        device=_DEVICE,
        quantity=_QUANTITY,
        direction={"type": "string", "enum": ["above", "below"]},
        value=_NUMBER,
        unit=_UNIT,
    ),
    tool("convert_unit", "Convert a value between units.", value=_NUMBER, from_unit=_UNIT, to_unit=_UNIT),
    tool("get_time", "The node's local time."),
    tool(
        "schedule",
        "Start or stop a device at a time.",
        action={"type": "string", "enum": ["start", "stop"]},
        device=_DEVICE,
        time=_CLOCK,
    ),
)

BY_NAME: dict[str, Tool] = {t["function"]["name"]: t for t in CATALOGUE}

_S = {"type": "string"}
DISTRACTORS: tuple[Tool, ...] = (
    tool("get_weather", "Weather of a city.", city=_S),
    tool("search_web", "Search the web.", query=_S),
    tool("send_email", "Send an email.", to=_S, subject=_S, body=_S),
    tool("book_flight", "Book a flight.", origin=_S, destination=_S, date=_S),
    tool("play_music", "Play music.", title=_S),
    tool("create_ticket", "Create a ticket.", title=_S, text=_S),
    tool("translate", "Translate a text.", text=_S, language=_S),
    tool("run_sql", "Run a query.", query=_S),
)
