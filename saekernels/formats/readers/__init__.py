"""One file per format: how its files are recognised, and the SAE that they hold."""
