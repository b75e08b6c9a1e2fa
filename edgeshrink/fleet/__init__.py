"""Releases of a fleet: what is published, signed, and pulled by devices."""
