"""What the hardware really says of itself: GPU, board, host. What it does not say is absent, never a zero."""
