"""The Activations tab of TensorBoard.

It is a reader that stands alone: it imports TensorBoard and numpy, and nothing else of this package. TensorBoard finds
it by the entry point in `pyproject.toml`, when it starts.
"""
