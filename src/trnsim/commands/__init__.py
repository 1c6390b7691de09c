"""The commands, one module each: a typer function and ``register(app)``, which adds it."""
