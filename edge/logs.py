"""One format for every log line: an event, its fields, and the time. Text for people, JSON for collectors.

Code logs with the standard library: `log.info("engine ready", extra={"event": "engine_ready", "seconds": 1.2})`.
Whatever stands in `extra` becomes a field. A prompt's text never does.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time: a progress bar on the terminal puts itself in between."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


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
