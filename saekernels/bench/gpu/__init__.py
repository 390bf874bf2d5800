"""The GPU scorecard: right answers first, then times against baselines, ceilings, predictions and targets."""
