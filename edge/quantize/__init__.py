"""`edge quantize`: a GGUF file in fewer bits, and what that cost.

`kinds`, `text`, `task`, `report` are pure; `divergence` is arithmetic over numpy. `run` is the parent's half: it checks, starts
a child, and never loads libllama, which ends its process when it does not like something. `worker` and `work` are the child.
"""
