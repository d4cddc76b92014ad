"""How model families write: chat templates, tool calls, reasoning tags. Pure text in, text out; no I/O, no native
library."""
