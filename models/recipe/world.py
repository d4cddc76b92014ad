"""The node's world: devices, what can be read and set on them, alarms, units. Everything else is built from this."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that a device has a value of. `units`: canonical unit and the ways people write it."""

    name: str
    units: tuple[tuple[str, tuple[str, ...]], ...]
    low: int
    high: int
    step: int
    settable: bool = True


PERCENT = ("percent", ("percent", "%", " percent", " per cent"))
CELSIUS = ("celsius", (" degrees", " degrees celsius", " C", "°C", " °C", " degrees C"))
FAHRENHEIT = ("fahrenheit", (" fahrenheit", " degrees fahrenheit", " F", "°F"))
BAR = ("bar", (" bar", "bar"))
KPA = ("kilopascal", (" kPa", " kilopascal", "kPa"))
RPM = ("rpm", (" rpm", "rpm", " revolutions per minute"))
LITRES = ("litres_per_minute", (" l/min", " litres per minute", " liters per minute", " lpm"))
KW = ("kilowatt", (" kW", " kilowatt", " kilowatts", "kW"))
VOLT = ("volt", (" V", " volt", " volts", "V"))
AMPERE = ("ampere", (" A", " amps", " ampere", " amperes"))

QUANTITIES = {
    q.name: q
    for q in (
        Quantity("speed", (RPM, PERCENT), 5, 3000, 5),
        Quantity("temperature", (CELSIUS, FAHRENHEIT), 2, 250, 1),
        Quantity("pressure", (BAR, KPA), 1, 400, 1),
        Quantity("flow", (LITRES,), 1, 500, 1),
        Quantity("level", (PERCENT,), 1, 100, 1),
        Quantity("position", (PERCENT,), 0, 100, 1),
        Quantity("humidity", (PERCENT,), 10, 95, 1),
        Quantity("brightness", (PERCENT,), 1, 100, 1),
        Quantity("power", (KW,), 1, 900, 1),
        Quantity("voltage", (VOLT,), 5, 690, 1, settable=False),
        Quantity("current", (AMPERE,), 1, 400, 1, settable=False),
    )
}

KINDS: dict[str, tuple[str, ...]] = {
    "pump": ("speed", "flow", "pressure", "power", "current"),
    "fan": ("speed", "power", "current"),
    "valve": ("position", "pressure", "flow"),
    "heater": ("temperature", "power", "voltage"),
    "boiler": ("temperature", "pressure", "power", "level"),
    "conveyor": ("speed", "power", "current"),
    "compressor": ("pressure", "speed", "power", "temperature"),
    "chiller": ("temperature", "flow", "power"),
    "mixer": ("speed", "power", "temperature"),
    "motor": ("speed", "current", "voltage", "temperature", "power"),
    "light": ("brightness", "power"),
    "tank": ("level", "temperature", "pressure"),
    "oven": ("temperature", "power", "humidity"),
    "press": ("pressure", "speed", "position"),
    "dryer": ("temperature", "humidity", "speed"),
    "door": ("position",),
    "generator": ("power", "voltage", "speed"),
    "freezer": ("temperature", "power", "humidity"),
}
NUMBERS = tuple(range(1, 21))
SEVERITIES = ("low", "medium", "high", "critical")

UNIT_PAIRS: tuple[tuple[str, str], ...] = (
    ("celsius", "fahrenheit"),
    ("fahrenheit", "celsius"),
    ("bar", "kilopascal"),
    ("kilopascal", "bar"),
    ("kilowatt", "horsepower"),
    ("horsepower", "kilowatt"),
    ("litres", "gallons"),
    ("gallons", "litres"),
    ("metres", "feet"),
    ("feet", "metres"),
    ("kilograms", "pounds"),
    ("pounds", "kilograms"),
    ("minutes", "seconds"),
    ("hours", "minutes"),
)

ONES: tuple[str, ...] = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
)
ONES += ("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """English words for 0..99."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f" {ONES[ones]}" if ones else "")


def held_out(*parts: object) -> bool:
    """Whether a combination belongs to the evaluation only: one in eight, fixed by a hash and not by chance."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return digest[0] % 8 == 0


def draw_device(rng: random.Random, kind: str | None = None) -> tuple[str, str]:
    """(kind, name) such as ("pump", "pump 3")."""
    kind = kind or rng.choice(tuple(KINDS))
    return kind, f"{kind} {rng.choice(NUMBERS)}"


def draw_value(rng: random.Random, quantity: Quantity) -> tuple[float | int, str, str]:
    """(value, canonical unit, how the unit is written)."""
    unit, spellings = quantity.units[0] if rng.random() < 0.7 else rng.choice(quantity.units)
    high = min(quantity.high, 100) if unit == "percent" else quantity.high
    value: float | int = rng.randint(quantity.low, high)
    if rng.random() < 0.15 and unit not in ("percent", "rpm"):
        value = round(value + rng.randint(1, 9) / 10, 1)
    return value, unit, rng.choice(spellings)
