"""The old place of `ContrastDetector`, kept so that imports and configuration files of before still work."""

from mi_crow_lightning.hooks.detectors.contrast import ContrastDetector as ContrastDetector
