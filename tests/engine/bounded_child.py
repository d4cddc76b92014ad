"""A language model's child that may map no more than its environment says: allocations beyond that fail for real."""

import os
import resource
import sys

BOUND = "ADDRESS_SPACE_BYTES"

if __name__ == "__main__":
    # Before any library is loaded, and by the child itself: whoever else did it could come when all is allocated.
    resource.setrlimit(resource.RLIMIT_AS, (int(os.environ[BOUND]),) * 2)
    from edge.engine.worker import main

    os._exit(main(sys.argv[1:]))
