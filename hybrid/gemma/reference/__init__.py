"""The same model as transformers computes it: a backend, and what tests compare with."""
