"""From per-token figures to totals and intervals; no file, no model."""
