"""Draft with a diffusion language model, refine with an autoregressive one, under a policy."""
