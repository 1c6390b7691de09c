"""Published times of collectives beside ours: which rows, the fits of the constants and their folds, the report."""
