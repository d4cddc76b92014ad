"""Start libllama once per process and keep the tail of its log, which is the only place where it says why it failed."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections import deque
from collections.abc import Callable, Iterator

from llama_cpp import llama_cpp as ll

_LEVEL_WARN, _LEVEL_ERROR, _LEVEL_CONTINUE = 3, 4, 5
_MIB = re.compile(r"(compute|KV|output) buffer size\s*=\s*([\d.]+) MiB")


class Library:
    """The native library of this process. One instance, owned by the child's main; `close` at the end."""

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self._errors: deque[str] = deque(maxlen=8)
        self._mebibytes: dict[str, float] = {}
        self._on_line = on_line
        self._partial = ""
        self._callback = ll.llama_log_callback(self._log)
        ll.llama_log_set(self._callback, ctypes.c_void_p(0))
        ll.llama_backend_init()

    def _log(self, level: int, text: bytes, _: ctypes.c_void_p) -> None:
        line = text.decode("utf-8", "replace").rstrip("\n")
        if not line.strip(". "):
            return
        if level in (_LEVEL_WARN, _LEVEL_ERROR):
            self._errors.append(line.strip())
        if found := _MIB.search(line):
            self._mebibytes[found[1]] = self._mebibytes.get(found[1], 0.0) + float(found[2])
        if self._on_line is not None and level != _LEVEL_CONTINUE:
            self._on_line(line)

    @contextlib.contextmanager
    def heard(self, on_line: Callable[[str], None]) -> Iterator[None]:
        """Within it, `on_line` is given every piece of the log."""
        before, self._on_line = self._on_line, on_line
        try:
            yield
        finally:
            self._on_line = before

    def forget_log(self) -> None:
        """Drop what was collected, before an operation whose log matters."""
        self._errors.clear()
        self._mebibytes.clear()

    @property
    def complaint(self) -> str:
        """The last warnings and errors, as one line; empty if there were none."""
        return "; ".join(self._errors)

    def buffer_bytes(self, kind: str) -> int:
        """Size that the library logged for its `compute`, `KV` or `output` buffers since `forget_log`, in bytes."""
        return int(self._mebibytes.get(kind, 0.0) * 1024 * 1024)

    @property
    def offloads(self) -> bool:
        """Whether this build of the library can use a GPU."""
        return bool(ll.llama_supports_gpu_offload())

    @property
    def system(self) -> str:
        """CPU and GPU features this build uses, as the library words them."""
        return str(ll.llama_print_system_info().decode("utf-8", "replace").strip())
