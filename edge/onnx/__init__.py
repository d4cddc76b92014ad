"""Models that answer with numbers, beside the language models: embeddings, reranking, classification, detection, and tensors as
they are. In ONNX form through onnxruntime, as GGUF through libllama."""
