"""One model at several points of its training: the same figures at each, and what a splice is worth in training."""
