"""The look at an activation in the host's memory, compiled by numba, which may be missing."""
