"""Front ends of frameworks: models on simulated chips."""
