"""A child that hangs, as its load says: "loading" for ever, or once it is ready, its pipe outliving it."""

import subprocess
import sys
import time

from edge.engine.pipe import Pipe
from edge.messages import Load, Loaded, Progress, to_child
from tests.api.fake_engine import facts

pipe = Pipe(int(sys.argv[1]), to_child)
load = next(iter(pipe.receive()))
assert isinstance(load, Load)
pipe.send([Progress("hanging", 0.5)])
if load.path != "loading":
    heir = ["sleep", "30"]  # in the place of a kernel that does not let go of it
    subprocess.Popen(heir, pass_fds=(int(sys.argv[1]),), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    pipe.send([Loaded(facts(), 0.1, 0.0)])
time.sleep(60)
