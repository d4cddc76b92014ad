"""The fleet's side of enrollment: its certificate authority, tokens, nodes, and the page that shows them."""
