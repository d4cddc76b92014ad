"""Models in ONNX form beside the language models: embeddings, reranking, classification, and tensors as they are."""
