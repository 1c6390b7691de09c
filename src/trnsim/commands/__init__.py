"""The commands of ``trnsim`` that have a module of their own."""
