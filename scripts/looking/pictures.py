# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Pictures as models see them."""

from PIL import ImageOps


# Modes of at most 8 bits a channel. Of others PIL would keep what lies between 0 and 255, and clip the rest.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def check_mode(image):
    """Raises a ValueError if a `PIL.Image` has more than 8 bits a channel."""
    if image.mode not in MODES:
        raise ValueError(
            f"The picture has the mode {image.mode!r}, of more than 8 bits a channel; please bring its values to 0 to "
            "255 and save it with 8 bits."
        )


def as_rgb(image):
    """A `PIL.Image` in red, green and blue, upright as its camera says, as in pipelines of the library.

    Raises:
        ValueError: it has more than 8 bits a channel.
    """
    check_mode(image)
    return ImageOps.exif_transpose(image).convert("RGB")
