"""Published serving runs beside predicted ones."""
