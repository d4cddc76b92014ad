"""The built-in model: its files, the recipe that made them, and the evaluation that says how good it is."""
