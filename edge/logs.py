"""One format for every log line: an event, its fields, and the time. Text for people, JSON for collectors.

Code logs with the standard library: `log.info("engine ready", extra={"event": "engine_ready", "seconds": 1.2})`.
Whatever stands in `extra` becomes a field. A prompt's text never does.
"""

from __future__ import annotations

import json
import logging
import select
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


_PIECE_LETTERS = select.PIPE_BUF // 4
"""A pipe that can be written to takes so much at once; a letter has four bytes at most."""


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time: a progress bar on the terminal puts itself in between. Where nobody reads what
    is written, lines are lost and counted: the event loop logs too, and must not stand still for it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self._lost = 0
        self._end = ""
        """Of a line that was lost when part of it was written."""

    def emit(self, record: logging.LogRecord) -> None:
        """One event. Never raises."""
        try:
            if self._lost and self._write(self.format(logging.makeLogRecord({**_LOST, "lines": self._lost}))):
                self._lost = 0
            if not self._write(self.format(record)):
                self._lost += 1
        except Exception:
            self.handleError(record)

    def _write(self, line: str) -> bool:
        """Whether it was taken as a whole."""
        stream, text = self.stream, self._end + line + self.terminator
        for start in range(0, len(text), _PIECE_LETTERS):
            if not _is_taken(stream):
                if start:
                    self._end = self.terminator
                return False
            stream.write(text[start : start + _PIECE_LETTERS])
            stream.flush()
        self._end = ""
        return True

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


_LOST = {
    "name": __name__,
    "levelno": logging.WARNING,
    "levelname": "WARNING",
    "msg": "lines of this log were lost: nobody read them",
    "event": "log_lines_lost",
}


def _is_taken(stream: TextIO) -> bool:
    """Whether what is written goes on at once. True for all but pipes and sockets that are full."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # it is none of the kernel's
        return True


def start_logging(level: str, form: Literal["text", "json"]) -> None:
    """Send every log event of this process to standard error."""
    handler = _CurrentStderr()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    change_level(level)
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, root.level))
    for chatty in (
        "httpx",
        "httpcore",
        "hpack",
        "alembic",
    ):  # below warnings they write down every request's headers, keys among them
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Its warnings are about clients that send nonsense or leave, and would let them fill the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


def change_level(level: str) -> None:
    """From now on, events of that level and above are written."""
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, _CurrentStderr):
            handler.setLevel(level.upper())
    heard = any(not isinstance(handler, _CurrentStderr) for handler in root.handlers)
    root.setLevel(min(logging.INFO, logging.getLevelName(level.upper())) if heard else level.upper())


def listen(handler: logging.Handler) -> None:
    """Let `handler` see events from level info on, whatever is written to standard error."""
    root = logging.getLogger()
    for writer in root.handlers:
        if isinstance(writer, _CurrentStderr):
            writer.setLevel(root.level)
    root.addHandler(handler)
    root.setLevel(min(logging.INFO, root.level))


def fields(record: logging.LogRecord) -> dict[str, object]:
    """What the caller put into `extra`, less the event's name."""
    return {k: v for k, v in vars(record).items() if k not in _STANDARD and k != "event"}


class JsonLines(logging.Formatter):
    """One JSON object per event: time, level, logger, event, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", None) or "message",
            "message": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # a file name that is no text, or a number beyond 64 bits
            return json.dumps(event, default=str)


class TextLines(logging.Formatter):
    """`time level message key=value ...`"""

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {key}={_quoted(value)}" for key, value in fields(record).items())
        line = f"{_time(record)} {record.levelname.lower():7} {record.getMessage()}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quoted(value: object) -> str:
    text = str(value)
    plain = text.isprintable()
    return text if text and plain and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=not plain)
