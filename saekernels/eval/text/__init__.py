"""From documents to windows, batches, slices and strata; no model."""
