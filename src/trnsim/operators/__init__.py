"""What an operator of a model costs on a chip, by implementation; ``kernel`` is that of our own kernels."""
