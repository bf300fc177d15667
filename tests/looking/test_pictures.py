# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Pictures of every kind become what the library's pipelines make of them, or are refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from variants import make_model


pytest.importorskip("datasets", reason="the scripts need the extra 'train'")
from looking.pictures import MODES, as_rgb
from looking.reading import check_picture, read_image
from training.images import Collator, make_image_processor, patch_size_for
from transformers import pipeline


GRADIENT = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
ORIENTATION = 0x0112  # the tag in EXIF


def test_pictures_of_eight_bits_are_taken():
    for mode in MODES:
        picture = as_rgb(Image.new(mode, (8, 6)))
        assert picture.mode == "RGB" and picture.size == (8, 6), mode
    colours = Image.effect_mandelbrot((8, 6), (-2, -1, 1, 1), 100).convert("RGB")
    assert as_rgb(colours).tobytes() == colours.tobytes()


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pictures_whose_values_pil_would_clip_are_refused(mode):
    picture = Image.fromarray(GRADIENT) if mode == "I;16" else Image.fromarray(GRADIENT).convert(mode)
    assert picture.mode == mode
    message = f"mode '{mode}', of more than 8 bits a channel"
    with pytest.raises(ValueError, match=message):
        check_picture(picture)
    collate = Collator(make_image_processor(16), "image", "label", int)
    with pytest.raises(ValueError, match=message):
        collate([{"image": picture, "label": 0}])


def test_a_picture_stands_upright_as_in_a_pipeline(tmp_path):
    model, processor = make_model("AstroformerForImageClassification"), make_image_processor(16)
    picture = Image.effect_mandelbrot((16, 16), (-2, -1, 1, 1), 100).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    classify = pipeline("image-classification", model=model, image_processor=processor)
    expected = {answer["label"]: answer["score"] for answer in classify(str(tmp_path / "turned.png"))}
    answer, _ = read_image(model, processor, Image.open(tmp_path / "turned.png"))
    assert answer == pytest.approx(expected, abs=1e-5)
    lying, _ = read_image(model, processor, picture)
    assert lying != pytest.approx(expected, abs=1e-3)


def test_the_patches_of_any_size_divide_it():
    assert [patch_size_for(size) for size in (8, 28, 32, 50, 224)] == [1, 4, 4, 5, 28]
    assert all(size % patch_size_for(size) == 0 for size in range(1, 300))


def test_a_graph_of_the_older_onnx_exporter_takes_images_of_one_size(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    model = make_model("AstroformerForImageClassification", num_hidden_layers=1)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values).logits

    path, pixels = str(tmp_path / "model.onnx"), torch.randn(2, 3, 16, 16)
    names = {"input_names": ["pixels"], "output_names": ["logits"]}
    axes = {"pixels": {0: "batch", 2: "height", 3: "width"}}
    torch.onnx.export(Logits().eval(), (pixels,), path, dynamo=False, dynamic_axes=axes, **names)
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(["logits"], {"pixels": pixels[:1].numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(pixels[:1]).logits, rtol=1e-4, atol=1e-5)
    for size in ((8, 32), (17, 18), (32, 32)):
        with pytest.raises(Exception, match="Expand"):
            session.run(["logits"], {"pixels": torch.randn(2, 3, *size).numpy()})
