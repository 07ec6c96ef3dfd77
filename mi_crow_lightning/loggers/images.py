"""An image for the loggers that take images: TensorBoard, and those with Lightning's ``log_image``."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any, Protocol, runtime_checkable

from mi_crow_lightning.figures.images import Image
from mi_crow_lightning.loggers.tensorboard import summary_writer, write_summary

__all__ = ["ImageLogger", "takes_images", "write_image"]


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that shows images, as Lightning's ``WandbLogger`` does."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> Any:
        """Log images."""


def takes_images(logger: object) -> bool:
    """Return whether `write_image` can write to a logger; on ranks other than 0, ``False`` for TensorBoard's."""
    return isinstance(logger, ImageLogger) or summary_writer(logger) is not None


def write_image(loggers: Iterable[object], tag: str, image: Image, step: int) -> None:
    """Write an image to every logger that takes images.

    Args:
        loggers: Lightning loggers, e.g. ``trainer.loggers``.
        tag: the name of the image.
        image: the file.
        step: the position on the x axis.
    """
    for logger in loggers:
        writer = summary_writer(logger)
        if writer is not None:
            write_summary(writer, _summary(tag, image), step)
        elif isinstance(logger, ImageLogger):
            from PIL.Image import open as opened  # Pillow comes with matplotlib

            logger.log_image(tag, [opened(BytesIO(image.png))], step=step)


def _summary(tag: str, image: Image) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    colours = 4  # red, green, blue and how opaque
    file = Summary.Image(encoded_image_string=image.png, width=image.width, height=image.height, colorspace=colours)
    return Summary(value=[Summary.Value(tag=tag, image=file)])
