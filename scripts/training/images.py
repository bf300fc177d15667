# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Images: the offline digits, batches, and augmentation."""

import torch
from datasets import Dataset, DatasetDict, Image
from looking.pictures import as_rgb
from PIL import Image as PilImage
from sklearn.datasets import load_digits
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil


def digits():
    """scikit-learn's 8 x 8 handwritten digits, every fifth for validation: a `DatasetDict` of `image` and `label`."""
    data = load_digits()
    images = [PilImage.fromarray((image * 255 / 16).round().astype("uint8")) for image in data.images]
    rows = Dataset.from_dict({"image": images, "label": data.target}).cast_column("image", Image())
    return DatasetDict(
        train=rows.select([i for i in range(len(rows)) if i % 5]),
        validation=rows.select(range(0, len(rows), 5)),
    )


def check_images(name, split, column):
    """Raises a ValueError that names the first row of a split without an image, if there is one."""
    if split.data.column(column).null_count == 0:
        return
    for row, image in enumerate(split.cast_column(column, Image(decode=False))[column]):
        if image is None:
            raise ValueError(f"row {row} of split {name!r}, column {column!r}: there is no image")


def patch_size_for(image_size):
    """The pixels of a patch: an eighth of the image or, where that does not divide it, the nearest that does."""
    divisors = [size for size in range(1, image_size + 1) if image_size % size == 0]
    return min(divisors, key=lambda size: abs(size - image_size / 8))


def common_size(images):
    """The size that all of the given square images have, or 224."""
    sizes = {image.size for image in images}
    width, height = next(iter(sizes))
    return width if len(sizes) == 1 and width == height else 224


def make_image_processor(image_size):
    """An image processor that resizes any image to a square of so many pixels, in colour, with values from -1 to 1."""
    return ViTImageProcessorPil(size={"height": image_size, "width": image_size}, do_convert_rgb=True)


class Collator:
    """Turns examples into a batch: the image processor, then, for training, augmentation.

    Args:
        image_processor: makes pixel values of PIL images.
        image_column, label_column (`str`): columns of an example.
        encode (function): makes of a label what the model takes.
    """

    def __init__(self, image_processor, image_column, label_column, encode):
        self.image_processor = image_processor
        self.image_column, self.label_column = image_column, label_column
        self.encode = encode

    def __call__(self, examples):
        images = [as_rgb(example[self.image_column]) for example in examples]
        labels = [self.encode(example[self.label_column]) for example in examples]
        pixel_values = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values, "labels": torch.tensor(labels)}


def augment(pixel_values, mirror):
    """Shifts each image by up to an eighth of its size, into its own reflection, and mirrors half of them if asked to.

    Args:
        pixel_values (`torch.Tensor`): `(batch, channels, height, width)`.
        mirror (`bool`): whether to mirror.

    Returns:
        `torch.Tensor` of the same shape.
    """
    batch_size, channels, height, width = pixel_values.shape
    reach = [size // 8 for size in (height, width)]
    padded = torch.nn.functional.pad(pixel_values, (reach[1], reach[1], reach[0], reach[0]), mode="reflect")
    # drawn on the CPU, whatever the device, so that a seed means the same everywhere
    rows, columns = (
        torch.randint(2 * r + 1, (batch_size, 1)) + torch.arange(size)
        for r, size in zip(reach, (height, width), strict=True)
    )
    if mirror:
        columns = torch.where(torch.rand(batch_size, 1) < 0.5, columns, columns.flip(1))
    rows, columns = rows.to(pixel_values.device), columns.to(pixel_values.device)
    padded = padded.gather(2, rows[:, None, :, None].expand(-1, channels, -1, padded.shape[3]))
    return padded.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))
