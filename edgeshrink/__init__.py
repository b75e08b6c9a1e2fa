"""Compress PyTorch models until they fit a device, and prove it on the host."""

__version__ = "0.1.0"
