"""Plans: how a model is laid out over chips, and what follows for time, memory and cost."""
