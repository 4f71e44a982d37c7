"""The model in plain PyTorch, for small models on a CPU: weights, layers, cache, passes."""
