"""The central fleet: who answers what this node cannot answer in time."""
