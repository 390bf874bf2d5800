"""What several commands share: arguments, sources, inputs, output."""
