"""The fleet's side of enrollment: who may come in, who is in, what each may do, and a page that shows them.

A composition of its own, started by `edge fleet serve`; nothing of a node imports it. Needs the extra `fleet`.
"""
