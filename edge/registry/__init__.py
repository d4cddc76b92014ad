"""Which models this node knows, and whether their files can be served."""
