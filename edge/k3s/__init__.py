"""What brings the node onto K3s: its chart, and drop-in directories for machines without a network."""
