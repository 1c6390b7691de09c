"""Our own NKI kernels, one file an operator, each with its shape contract."""
