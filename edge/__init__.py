"""edge: an inference node for small machines, behind an OpenAI-compatible API."""

__version__ = "0.1.0"
