"""The Gemma 4 and DiffusionGemma stack on a CPU, from a model folder to logits."""
