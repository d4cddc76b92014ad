"""A child that gets no memory for a grammar: it ends in the words of Rust, in which the library behind grammars is written."""

import resource
import sys

import psutil
from llguidance import LLTokenizer

from edge.engine.pipe import Pipe
from edge.messages import to_child

pipe = Pipe(int(sys.argv[1]), to_child)
next(iter(pipe.receive()))
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms,) * 2)
made = []
while True:
    made.append(LLTokenizer("byte"))
