"""Routing analysis: what experts specialize in, how layers agree."""
