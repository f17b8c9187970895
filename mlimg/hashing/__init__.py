"""Digests: made of what is read and sent, and remembered."""
