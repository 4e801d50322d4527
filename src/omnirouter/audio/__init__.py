"""Audio: reading files, features, and what training does to frames."""
