"""How much memory a model may take here, and how it is laid out in it."""
