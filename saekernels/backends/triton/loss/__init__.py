"""linear_ce_kl."""
