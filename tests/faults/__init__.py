"""Fault injection on real processes: they are killed and their connections cut under load."""
