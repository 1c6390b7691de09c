"""Published training runs beside predictions: which rows count, what they leave open, fits and folds."""
