"""`edge quantize` for ONNX models. `job` is the parent's half and imports no native library; the rest is the child's.

`graph` looks at models, `formats` and `fp8` write them, `reading` runs sentences through them, `agreement` is arithmetic, and
`work` is one job from end to end.
"""
