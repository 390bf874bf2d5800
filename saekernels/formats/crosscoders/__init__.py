"""Reads crosscoders, which read and write several layers or models at once; a file for each tool."""
