"""Start libllama once per process and keep the tail of its log, which is the only place where it says why it failed."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as ll

_LEVEL_WARN, _LEVEL_ERROR, _LEVEL_CONTINUE = 3, 4, 5
_BUFFER = re.compile(r"(\S+) +(compute|KV|output) buffer size\s*=\s*([\d.]+) MiB")
_CELLS = re.compile(r"llama_(?:kv_cache|memory_recurrent)\S*: size\s*=\s*([\d.]+) MiB")
_MIB = 1024 * 1024


class Library:
    """The native library of this process. One instance, owned by the child's main; `close` at the end."""

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self._errors: deque[str] = deque(maxlen=8)
        self._mebibytes: dict[tuple[str, str], float] = {}
        self._cells_mebibytes = 0.0
        self._on_line = on_line
        self._partial = ""
        _hear(self._log)
        _load_backends(Path(ll.__file__).parent / "lib")
        ll.llama_backend_init()

    def _log(self, level: int, text: bytes, _: ctypes.c_void_p) -> None:
        line = text.decode("utf-8", "replace").rstrip("\n")
        if not line.strip(". "):
            return
        if level in (_LEVEL_WARN, _LEVEL_ERROR):
            self._errors.append(line.strip())
        if found := _BUFFER.search(line):
            place = (found[2], found[1])
            self._mebibytes[place] = self._mebibytes.get(place, 0.0) + float(found[3])
        elif found := _CELLS.search(line):
            self._cells_mebibytes += float(found[1])
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
        self._cells_mebibytes = 0.0

    @property
    def complaint(self) -> str:
        """The last warnings and errors, as one line; empty if there were none."""
        return "; ".join(self._errors)

    def buffer_bytes(self, kind: str) -> int:
        """Size that the library logged for its `compute`, `KV` or `output` buffers since `forget_log`, in bytes."""
        return sum(self.buffers(kind).values())

    def buffers(self, kind: str) -> dict[str, int]:
        """The same by device, as the library names them: `CPU`, `CUDA0`, `CUDA_Host`."""
        return {device: int(size * _MIB) for (what, device), size in self._mebibytes.items() if what == kind}

    @property
    def cells_bytes(self) -> int:
        """Size of the attention memory that was laid out since `forget_log`, also where nothing was allocated."""
        return int(self._cells_mebibytes * _MIB)

    @property
    def offloads(self) -> bool:
        """Whether this build of the library can use a GPU."""
        return bool(ll.llama_supports_gpu_offload())

    @property
    def system(self) -> str:
        """CPU and GPU features this build uses, as the library words them."""
        return str(ll.llama_print_system_info().decode("utf-8", "replace").strip())


def _hear(log: Callable[[int, bytes, ctypes.c_void_p], None]) -> None:
    """Have what the library logs told, for as long as the process lives: it calls whom it was told to, gone or not."""
    callback = ll.llama_log_callback(log)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(callback))
    ll.llama_log_set(callback, ctypes.c_void_p(0))


def _load_backends(directory: Path) -> None:
    """In a build for many machines each processor's code, and CUDA's, is a library of its own: have the best ones loaded.

    By itself ggml would look for them beside Python's executable and in the current directory, whoever owns that.
    """
    if _native("ggml_backend_reg_count", ctypes.c_size_t)() == 0:  # a build for one machine has its backends linked in
        _native("ggml_backend_load_all_from_path", None, ctypes.c_char_p)(str(directory).encode())


def _native(name: str, result: Any, *arguments: Any) -> Any:
    """A prototype of our own: the bindings have none for ggml's part of the library."""
    return ctypes.CFUNCTYPE(result, *arguments)(ctypes.cast(getattr(ll._lib, name), ctypes.c_void_p).value or 0)
