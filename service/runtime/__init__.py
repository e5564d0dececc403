"""The running service: its parts, their start, their watch and their end."""
