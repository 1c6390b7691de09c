"""Many chips: how they are linked, how collectives move data between them, and how long that takes."""
