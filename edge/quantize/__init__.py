"""`edge quantize`: a GGUF file or an ONNX model in fewer bits, and what that cost.

`kinds`, `text`, `task`, `report`, `wish` are pure. `run` is the parent's half, with `gguf_job` and `onnx.job` for what can be
refused without a native library. It starts a child (`supervise`), and never loads libllama, which ends its process when it does
not like something, nor onnxruntime. `worker` is the child: `work`, `compare` and `divergence` for GGUF, and the rest of `onnx`.
"""
