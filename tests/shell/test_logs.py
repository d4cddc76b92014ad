"""Log lines: an event and its fields, as text and as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys

import pytest

from edge.logs import JsonLines, TextLines, start_logging


def record(**extra: object) -> logging.LogRecord:
    return logging.getLogger("edge.test").makeRecord(
        "edge.test", logging.INFO, "f", 1, "engine ready", (), None, extra=extra
    )


def test_text_shows_fields_and_quotes_what_needs_it() -> None:
    line = TextLines().format(record(event="engine_ready", seconds=1.5, reason='a "b"', request_id="r1"))
    assert line.endswith('info    engine ready seconds=1.5 reason="a \\"b\\"" request_id=r1')


def test_json_is_one_object_with_event_and_fields() -> None:
    found = json.loads(JsonLines().format(record(event="engine_ready", seconds=1.5, reason="two\nlines")))
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "info",
        "logger": "edge.test",
        "event": "engine_ready",
        "message": "engine ready",
        "seconds": 1.5,
        "reason": "two\nlines",
    }


def test_an_exception_is_kept_whole() -> None:
    try:
        raise ValueError("odd")
    except ValueError:
        failed = record(event="request_failed")
        failed.exc_info = sys.exc_info()
    assert "ValueError: odd" in json.loads(JsonLines().format(failed))["traceback"]
    assert "ValueError: odd" in TextLines().format(failed)


def test_what_is_no_text_or_no_json_number_is_logged_all_the_same() -> None:
    odd = record(event="engine_ready", file="mod\udce8le.gguf", seconds=1 << 70)
    assert json.loads(JsonLines().format(odd))["file"] == "mod\udce8le.gguf"
    assert r'file="mod\udce8le.gguf"' in TextLines().format(odd)


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert TextLines().format(record(reason="\x1b[2J\x9b2Jgrün")).endswith(r'reason="\u001b[2J\u009b2Jgr\u00fcn"')
    assert TextLines().format(record(reason="grün")).endswith("reason=grün")


def test_a_log_that_nobody_reads_stops_nothing_and_what_is_lost_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    with os.fdopen(read, "rb", buffering=0) as reader, os.fdopen(write, "w", encoding="utf-8") as writer:
        monkeypatch.setattr(sys, "stderr", writer)
        start_logging("info", "json")
        log = logging.getLogger("edge.test")
        try:
            for number in range(3000):
                log.warning(
                    "nobody reads this", extra={"event": "trial", "number": number, "text": "é" * (number % 7 * 999)}
                )
            seen = reader.read(1 << 20)
            log.warning("somebody does", extra={"event": "trial"})
            seen += reader.read(1 << 20)
        finally:
            root.handlers[:] = before
            root.setLevel(level)
    lines = [json.loads(line) for line in seen.splitlines() if line.endswith(b"}")]  # one may be cut short
    *read_lines, lost, last = lines
    assert [line["number"] for line in read_lines] == list(range(len(read_lines)))
    assert (lost["event"], lost["lines"]) == ("log_lines_lost", 3000 - len(read_lines))
    assert last["message"] == "somebody does"
