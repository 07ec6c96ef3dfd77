"""Hooks inside the graphs of ``torch.compile``."""
