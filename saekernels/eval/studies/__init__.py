"""Further questions on the same passes; two studies do not know one another."""
