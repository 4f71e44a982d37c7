"""The same model with passes compiled ahead of time (AOTInductor): compiling and calling them."""
