"""Plans: how long a model takes to train or serve on a system, in how much memory, at what cost."""
