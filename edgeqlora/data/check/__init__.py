"""`data check`: what would go wrong with a data set."""
