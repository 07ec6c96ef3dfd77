"""A run as one HTML file, to send around: the views of the Activations tab, with the data inside.

write_page   a folder of event files -> the page
Page         its size, its runs, and what it leaves out
"""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
