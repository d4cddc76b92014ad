"""A stand-in for the central fleet: it answers from memory, at a pace of its own, and costs few cores.

`python -m bench.stand_in PORT [--ttft-ms 100] [--itl-ms 20]`. What a node does with a fleet can be measured beside it on one
small box; how good a real fleet's answers are cannot.
"""

from __future__ import annotations

import argparse
import asyncio
import json

_MODELS = {"object": "list", "data": [{"id": "edge-builtin", "object": "model"}]}
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(body: dict[str, object] | None) -> bytes:
    data = b"data: " + (b"[DONE]" if body is None else json.dumps({**_SHARED, **body}).encode()) + b"\n\n"
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


_SHARED = {"id": "chatcmpl-stand-in", "object": "chat.completion.chunk", "created": 1, "model": "stand-in"}
_WORD = _chunk({"choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]})
_END = _chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})


def _whole(count: int) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": " word" * count}, "finish_reason": "length"}
    usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
    data = json.dumps({**_SHARED, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ttft_s: float, itl_s: float) -> None:
    """One connection."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = next((int(x[15:]) for x in head.split(b"\r\n") if x.startswith(b"content-length:")), 0)
            body = json.loads(await reader.readexactly(length)) if length else {}
            if head.startswith(b"get"):
                data = json.dumps(_MODELS).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data)
                )
                writer.write(data)
                continue
            await asyncio.sleep(ttft_s)
            count = int(body.get("max_tokens") or 16)
            if not body.get("stream"):
                await asyncio.sleep(count * itl_s)
                writer.write(_whole(count))
                continue
            writer.write(_HEAD)
            for number in range(count):
                writer.write(_WORD)
                await (writer.drain() if number == count - 1 else asyncio.sleep(itl_s))
            usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
            writer.write(_END + _chunk({"choices": [], "usage": usage}) + _chunk(None) + b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def run(port: int, ttft_s: float, itl_s: float) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(lambda r, w: serve(r, w, ttft_s, itl_s), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--ttft-ms", type=float, default=100.0)
    parser.add_argument("--itl-ms", type=float, default=20.0)
    a = parser.parse_args()
    asyncio.run(run(a.port, a.ttft_ms / 1000, a.itl_ms / 1000))


if __name__ == "__main__":
    main()
