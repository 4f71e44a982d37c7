"""Processes that answer requests side by side: `Hybrid(policy, workers=2)`.

Denoising a small model is mostly Python, and a process runs one thread of Python at a time: two
batches in it gain little over one. A worker has models, a batch and an interpreter of its own. It
is a fresh process, not a fork, so it works on every system; what is sent to it is pickled.
"""
