"""How numbers, tables, charts and pages look; knows no report, no model, no op."""
