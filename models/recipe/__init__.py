"""How the built-in model is made: world, wordings, dialogues, tokenizer, network, training, GGUF, quantization."""
