"""What the model says in words: answers about its world, the honest refusal, sentences about results."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from .world import KINDS, NUMBERS, QUANTITIES, SEVERITIES, draw_device, draw_value

UNKNOWN = "I do not know that. I am a small built-in model for devices, alarms, units and times."
NO_TOOL = "I have no tool for that here."


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and the ways to ask for it; the last question is for the evaluation only."""

    answer: str
    questions: tuple[str, ...]


def _a(answer: str, *questions: str) -> Answer:
    return Answer(answer, questions)


ANSWERS: tuple[Answer, ...] = (
    _a(
        "Hello! Tell me what to set, read, start or stop, or ask about alarms, units and times.",
        "hello",
        "hi",
        "hey",
        "good morning",
        "good evening",
        "hello there",
        "hi there",
        "good day",
        "hey there",
    ),
    _a(
        "You are welcome.", "thanks", "thank you", "thanks a lot", "thank you very much", "great, thanks", "many thanks"
    ),
    _a("Goodbye.", "bye", "goodbye", "see you", "good night", "see you later"),
    _a(
        "I am the built-in model of this edge node. I turn sentences into calls for devices, alarms, units and times.",
        "who are you",
        "what are you",
        "what is your name",
        "introduce yourself",
        "are you a robot",
        "tell me who you are",
        "which model are you",
        "what model is this",
        "tell me what you are",
    ),
    _a(
        "I can set and read values, start and stop devices, list and acknowledge alarms, set alarm limits, convert "
        "units, "
        "tell the time and schedule a start or a stop.",
        "what can you do",
        "how can you help me",
        "help",
        "what can I ask you",
        "what are you good for",
        "what do you do",
        "list what you can do",
        "tell me what you can do",
    ),
    _a(
        "I am small: I know this node's devices, alarms, units and times, and nothing else. For everything else load "
        "a larger model.",
        "what can you not do",
        "what are your limits",
        "are you a general assistant",
        "how smart are you",
        "do you know everything",
        "tell me your limits",
    ),
    _a(
        "A pump moves a liquid. Its speed sets the flow: a faster pump moves more litres per minute and needs more "
        "power. "
        "Watch the pressure behind it. If the flow falls while the speed stays the same, a valve may be closed or "
        "the filter blocked. "
        "A pump that runs dry gets hot and breaks, so stop it when the tank is empty.",
        "tell me about pumps",
        "what is a pump",
        "explain pumps",
        "how does a pump work",
        "what does a pump do",
        "explain what a pump does",
    ),
    _a(
        "A fan moves air. Its speed is given in rpm or in percent. A higher speed cools more, makes more noise and "
        "needs more power. "
        "If the current rises at the same speed, the fan may be blocked or its bearing may be worn.",
        "tell me about fans",
        "what is a fan",
        "explain fans",
        "how does a fan work",
        "what does a fan do",
        "explain what a fan does",
    ),
    _a(
        "A valve opens and closes a pipe. Its position is given in percent: 0 percent is closed and 100 percent is "
        "open. "
        "Open a valve slowly, because a sudden change makes a pressure shock.",
        "tell me about valves",
        "what is a valve",
        "explain valves",
        "how does a valve work",
        "what does a valve do",
        "explain what a valve does",
    ),
    _a(
        "A heater turns electric power into heat. Its temperature is set in degrees celsius or fahrenheit. "
        "It takes time to warm up, so wait before you raise the setpoint again.",
        "tell me about heaters",
        "what is a heater",
        "explain heaters",
        "how does a heater work",
        "what does a heater do",
        "explain what a heater does",
    ),
    _a(
        "A boiler heats water and holds it under pressure. Watch its temperature, its pressure and its level together. "
        "If the pressure rises too high, the safety valve opens. If the level is too low, the boiler must stop.",
        "tell me about boilers",
        "what is a boiler",
        "explain boilers",
        "how does a boiler work",
        "what does a boiler do",
        "explain what a boiler does",
    ),
    _a(
        "A compressor presses air or gas together. Its pressure is given in bar. It gets warm when it runs, so watch "
        "its temperature too.",
        "tell me about compressors",
        "what is a compressor",
        "explain compressors",
        "how does a compressor work",
        "what does a compressor do",
        "explain what a compressor does",
    ),
    _a(
        "A conveyor carries goods. Its speed is set in percent or rpm. If the current rises, something may be stuck "
        "on the belt.",
        "tell me about conveyors",
        "what is a conveyor",
        "explain conveyors",
        "how does a conveyor work",
        "what does a conveyor do",
        "explain what a conveyor does",
    ),
    _a(
        "A chiller takes heat out of a liquid. Its temperature says how cold the liquid leaves it, its flow says how "
        "much passes.",
        "tell me about chillers",
        "what is a chiller",
        "explain chillers",
        "how does a chiller work",
        "what does a chiller do",
        "explain what a chiller does",
    ),
    _a(
        "A motor turns electric power into motion. Its speed is given in rpm. A high current at a low speed means "
        "that it is overloaded.",
        "tell me about motors",
        "what is a motor",
        "explain motors",
        "how does a motor work",
        "what does a motor do",
        "explain what a motor does",
    ),
    _a(
        "A tank stores a liquid. Its level is given in percent: 0 percent is empty and 100 percent is full.",
        "tell me about tanks",
        "what is a tank",
        "explain tanks",
        "what does a tank do",
        "how does a tank work",
        "explain what a tank does",
    ),
    _a(
        "An alarm says that a value has crossed a limit or that a device has failed. There are four severities: low, "
        "medium, high and critical. "
        "A low alarm can wait. A medium alarm should be looked at in this shift. A high alarm needs somebody now. "
        "A critical alarm means danger: stop the device and call for help. Acknowledge an alarm when you have seen it.",
        "tell me about alarms",
        "what is an alarm",
        "explain alarms",
        "how do alarms work",
        "what are alarms",
        "explain what an alarm is",
    ),
    _a(
        "There are four severities: low, medium, high and critical.",
        "which severities are there",
        "what severities are there",
        "how many severities are there",
        "list the severities",
        "what severity levels do you have",
        "tell me the severities",
    ),
    _a(
        "A critical alarm means danger: stop the device and call for help.",
        "what is a critical alarm",
        "what does critical mean",
        "what should I do on a critical alarm",
        "explain critical alarms",
        "tell me what critical means",
    ),
    _a(
        "To acknowledge an alarm means to say that somebody has seen it. It stays active until its cause is gone.",
        "what does acknowledge mean",
        "what is an acknowledgement",
        "why should I acknowledge an alarm",
        "explain acknowledge",
        "tell me what acknowledge means",
    ),
    _a(
        "A setpoint is the value that a device should reach and hold.",
        "what is a setpoint",
        "what does setpoint mean",
        "explain setpoint",
        "explain setpoints",
        "tell me what a setpoint is",
    ),
    _a(
        "A threshold is the limit at which an alarm is raised, above or below a value.",
        "what is a threshold",
        "what does threshold mean",
        "explain thresholds",
        "what is an alarm limit",
        "tell me what a threshold is",
    ),
    _a(
        "rpm means revolutions per minute: how often something turns in one minute.",
        "what is rpm",
        "what does rpm mean",
        "explain rpm",
        "what does rpm stand for",
        "tell me what rpm means",
    ),
    _a(
        "Bar is a unit of pressure. 1 bar is 100 kilopascal, about the pressure of the air at sea level.",
        "what is bar",
        "what does bar mean",
        "what is a bar",
        "explain the unit bar",
        "how much is one bar",
        "tell me what bar means",
    ),
    _a(
        "Celsius and fahrenheit are units of temperature. Water freezes at 0 celsius, which is 32 fahrenheit, and "
        "boils at 100 celsius, "
        "which is 212 fahrenheit.",
        "what is celsius",
        "what is fahrenheit",
        "explain celsius",
        "explain celsius and fahrenheit",
        "when does water boil",
        "when does water freeze",
        "tell me about celsius",
    ),
    _a(
        "A kilowatt is a unit of power: 1000 watts.",
        "what is a kilowatt",
        "what does kW mean",
        "explain kilowatt",
        "what is kW",
        "tell me what a kilowatt is",
    ),
    _a(
        "Volt is the unit of voltage and ampere is the unit of current. Voltage times current is power.",
        "what is a volt",
        "what is an ampere",
        "explain voltage",
        "explain current",
        "what are volts and amps",
        "tell me about voltage",
    ),
    _a(
        "A minute has 60 seconds.",
        "how many seconds are in a minute",
        "how many seconds does a minute have",
        "how long is a minute",
        "tell me how many seconds a minute has",
    ),
    _a(
        "An hour has 60 minutes.",
        "how many minutes are in an hour",
        "how many minutes does an hour have",
        "how long is an hour",
        "tell me how many minutes an hour has",
    ),
    _a(
        "A day has 24 hours.",
        "how many hours are in a day",
        "how many hours does a day have",
        "how long is a day",
        "tell me how many hours a day has",
    ),
    _a(
        "A week has 7 days.",
        "how many days are in a week",
        "how many days does a week have",
        "how long is a week",
        "tell me how many days a week has",
    ),
    _a(
        "I know pumps, fans, valves, heaters, boilers, conveyors, compressors, chillers, mixers, motors, lights, "
        "tanks, ovens, presses, "
        "dryers, doors, generators and freezers.",
        "which devices do you know",
        "what devices are there",
        "list the devices",
        "what devices can you control",
        "tell me which devices you know",
    ),
    _a(
        "I know speed, temperature, pressure, flow, level, position, humidity, brightness, power, voltage and current.",
        "which quantities do you know",
        "what can you measure",
        "what quantities are there",
        "what can I read",
        "tell me which quantities you know",
    ),
)

OUT_OF_SCOPE: tuple[str, ...] = (
    "what is the capital of France",
    "who won the world cup",
    "write a poem",
    "tell me a joke",
    "what is the weather today",
    "who is the president",
    "how do I cook rice",
    "translate this to German",
    "write a python program",
    "what is the meaning of life",
    "solve x squared equals nine",
    "what is 17 times 23",
    "recommend a film",
    "who wrote Hamlet",
    "how far is the moon",
    "what should I eat tonight",
    "book a flight to London",
    "what is the stock price of Apple",
    "sing a song",
    "tell me a story",
    "what is love",
    "who was Napoleon",
    "when did the war end",
    "what is quantum physics",
    "explain relativity",
    "how do I fix my car",
    "what is the best phone",
    "how old is the universe",
    "name three rivers",
    "what language is spoken in Brazil",
    "write an email to my boss",
    "summarise this article",
    "what is the square root of two",
    "who painted the Mona Lisa",
    "how do plants grow",
    "what is a black hole",
    "give me a recipe for bread",
    "what is bitcoin",
    "how do I lose weight",
    "who invented the telephone",
    "what is the tallest mountain",
    "tell me about dogs",
    "how do I learn the piano",
    "is there a god",
    "what is the population of China",
    "plan a trip to Rome",
    "what is machine learning",
    "write a haiku",
    "what are the news today",
    "who is your favourite singer",
    "how do birds fly",
    "what time does the shop open",
    "is my code correct",
    "fix this bug",
    "what colour is the sky",
    "how do I get rich",
    "when is Easter",
    "what is the speed of light",
    "draw a picture",
    "tell me about history",
    "what is democracy",
    "who discovered America",
    "count the stars",
    "what is your favourite colour",
    "do you like music",
    "what is football",
    "tell me about cats",
    "how do I tie a tie",
    "what does my dream mean",
    "who are the Beatles",
)

_PLACES = (
    "hall 1",
    "hall 2",
    "hall 3",
    "hall 4",
    "the cellar",
    "the yard",
    "the boiler room",
    "the north wing",
    "the south wing",
    "line 1",
    "line 2",
    "line 3",
    "the cold store",
    "the workshop",
    "the roof",
    "building A",
    "building B",
    "the loading bay",
)
_PLANTS = (
    "a dairy",
    "a paper mill",
    "a bakery",
    "a substation",
    "a water works",
    "a brewery",
    "a cold store",
    "a sawmill",
    "a shop",
    "a glass works",
    "a greenhouse",
    "a laundry",
    "a steel plant",
    "a chemical plant",
    "a ferry",
    "a data centre",
)
_ROLES = (
    "You are the assistant of {p}.",
    "You help the operators of {p}.",
    "You work in {p}.",
    "This node runs in {p}.",
    "You are a helpful assistant.",
    "Answer briefly.",
    "You control the devices of {p}.",
    "Be short and exact.",
    "You are an assistant for {p}. Use the tools.",
    "Use the tools when you can.",
)
_FILLERS = (
    "{D} is in {place}.",
    "{D} stands in {place}.",
    "{D} was serviced last week.",
    "{D} feeds {e}.",
    "{D} must not run above {v}.",
    "The shift begins at {n} o'clock.",
    "The {q} of {d} is checked every {n} hours.",
    "Call the foreman before you open a panel.",
    "{D} and {e} run together.",
    "Operators are in {place}.",
    "{D} is new.",
    "{D} is old and slow.",
    "There are {n} devices in {place}.",
    "Write down every alarm.",
    "The night shift has {n} people.",
    "{D} is the spare for {e}.",
    "Do not enter {place} without a helmet.",
    "Safety comes first.",
    "The {q} of {d} was {v} yesterday.",
    "Maintenance is planned for {place}.",
    "{D} belongs to {place}.",
    "The plant makes {n} tons a day.",
    "Everything is logged.",
    "The line stops for {n} minutes at noon.",
)


def plant_description(rng: random.Random, sentences: int) -> str:
    """A role and a number of sentences about devices and places; about ten tokens each."""
    parts = [rng.choice(_ROLES).format(p=rng.choice(_PLANTS))]
    for _ in range(sentences):
        kind, device = draw_device(rng)
        quantity = QUANTITIES[rng.choice(KINDS[kind])]
        value, _, spelling = draw_value(rng, quantity)
        shown = f"{value}{spelling}"
        parts.append(
            rng.choice(_FILLERS).format(
                D=device.capitalize(),
                d=device,
                e=draw_device(rng)[1],
                place=rng.choice(_PLACES),
                q=quantity.name,
                v=shown,
                n=rng.choice(NUMBERS),
            )
        )
    return " ".join(parts)


def plant_facts(rng: random.Random) -> tuple[str, str, str]:
    """(system prompt, question, answer) about where a device is or who runs together."""
    device, place = draw_device(rng)[1], rng.choice(_PLACES)
    fact = f"{device.capitalize()} is in {place}."
    before, after = (
        plant_description(rng, rng.randint(0, 4)),
        plant_description(rng, rng.randint(1, 4)).split(". ", 1)[1],
    )
    lines = [s for s in (before, after) if device.capitalize() not in s]
    lines.insert(rng.randint(min(1, len(lines)), len(lines)), fact)
    question = rng.choice(
        (f"where is {device}", f"where do I find {device}", f"in which place is {device}", f"where does {device} stand")
    )
    return " ".join(lines), question, fact


def result_sentence(rng: random.Random, name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A tool's result and the sentence that reports it; every figure of the result that matters is in the sentence."""
    device = str(arguments.get("device", ""))
    shown = device.capitalize()
    if rng.random() < 0.08:
        reason = rng.choice(
            ("no connection", "device is locked", "out of range", "not found", "time-out", "not allowed")
        )
        return {"error": reason}, f"That failed: {reason}."
    if name == "read_value":
        value, unit, _ = draw_value(rng, QUANTITIES[arguments["quantity"]])
        return {"value": value, "unit": unit}, f"The {arguments['quantity']} of {device} is {value} {_unit(unit)}."
    if name == "set_value":
        return {
            "ok": True
        }, f"The {arguments['quantity']} of {device} is set to {arguments['value']} {_unit(arguments['unit'])}."
    if name == "start_device":
        return {"ok": True}, f"{shown} is running."
    if name == "stop_device":
        return {"ok": True}, f"{shown} is stopped."
    if name == "list_alarms":
        return _alarms(rng, str(arguments["severity"]))
    if name == "acknowledge_alarm":
        return {"ok": True}, f"Alarm {arguments['alarm_id']} is acknowledged."
    if name == "set_alarm":
        limit = f"{arguments['direction']} {arguments['value']} {_unit(arguments['unit'])}"
        return {"ok": True}, f"An alarm is set for the {arguments['quantity']} of {device} {limit}."
    if name == "convert_unit":
        value = round(rng.uniform(0.5, 900), rng.choice((0, 1, 2)))
        return {
            "value": value,
            "unit": arguments["to_unit"],
        }, f"{arguments['value']} {arguments['from_unit']} is {value} {arguments['to_unit']}."
    if name == "get_time":
        time = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
        return {"time": time}, f"It is {time}."
    return {"ok": True}, f"{shown} will {arguments['action']} at {arguments['time']}."


def _unit(unit: str) -> str:
    return unit.replace("_", " ")


def _alarms(rng: random.Random, severity: str) -> tuple[dict[str, Any], str]:
    count = rng.choice((0, 0, 1, 1, 2, 3))
    alarms = []
    for _ in range(count):
        kind, device = draw_device(rng)
        level = severity if severity in SEVERITIES else rng.choice(SEVERITIES)
        alarms.append(
            {"id": rng.randint(1, 9999), "severity": level, "device": device, "quantity": rng.choice(KINDS[kind])}
        )
    named = "" if severity == "all" else f" {severity}"
    if not alarms:
        return {"alarms": []}, f"There are no{named} alarms."
    listed = "; ".join(f"{a['id']} ({a['severity']}) {a['device']} {a['quantity']}" for a in alarms)
    head = f"There is 1{named} alarm: " if count == 1 else f"There are {count}{named} alarms: "
    return {"alarms": alarms}, head + listed + "."
