"""Directions from the activations of two classes of texts, and how well each layer separates them."""
