"""Speed, measured: model shapes with random weights, the comparison with llama-server, and the experiments behind ADRs."""
