"""Who this node is: its key, its certificate, and what the fleet told it when it enrolled (EST, RFC 7030)."""
