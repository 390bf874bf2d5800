"""A run's folder: resumable, checksummed, shared by ranks."""
