"""libllama through the low-level bindings of llama-cpp-python: the only package that imports `llama_cpp`.

`library` starts the native library and collects its log, `model` holds weights and vocabulary, `context` holds the KV
cells
and runs forward passes, `chain` is a native sampler chain. libllama aborts the process on a broken precondition, so
every
precondition is checked here first, in Python. Facts about its behaviour: docs/adr/0001 and the ggml-org/llama.cpp
headers.
"""
