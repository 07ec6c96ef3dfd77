"""Hooks on a model: the site that torch calls, what happens around the call, and what may be registered."""
