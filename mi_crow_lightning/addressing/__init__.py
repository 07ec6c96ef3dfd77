"""From signatures to layers: names, globs, indices and roles in the tree of modules.

Nothing here knows hooks.
"""
