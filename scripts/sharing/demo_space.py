# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Writes the folder of a Hugging Face Space with the demo of a checkpoint, for `demo.py --space`."""

import importlib.metadata
import platform
import shutil
import tempfile
from pathlib import Path

import jinja2
import looking
from huggingface_hub import SpaceCardData
from looking.checkpoint import load, takes_images
from looking.page import build_demo, default_title, describe_attention
from looking.reading import has_calcium
from training.files import ROOT, write_whole

import astroformer_hf


LOOKING = Path(looking.__file__).parent
PACKAGE = Path(astroformer_hf.__file__).parent
PACKAGES = ("torch", "transformers", "safetensors", "matplotlib", "pillow")  # gradio comes with the Space
APP = '''\
"""Starts the demo; the folder `looking` has it."""

from pathlib import Path

from looking.checkpoint import load
from looking.page import build_demo, launch


HERE = Path(__file__).resolve().parent
model, processor = load({source})
demo = build_demo(model, processor, title={title!r}, examples={examples})

if __name__ == "__main__":
    launch(demo)
'''


def write_space(folder, model_name, revision=None, trust_remote_code=False, title=None, examples=()):
    """Writes the folder of a Space; what else is in the folder, such as `.git`, stays.

    It carries all that it runs but the packages of `requirements.txt`: the code of the demo, that of `astroformer_hf`,
    of which only a part travels with a checkpoint (not `look_inside`), and a model from a local folder. So it runs as
    it was written, whatever is released later. A model from the Hub is loaded from there.

    Args:
        folder (`Path`): where it goes.
        model_name (`str`): folder of a trained classifier, or its name on the Hub.
        revision (`str`, *optional*), trust_remote_code (`bool`): as of `load`.
        title (`str`, *optional*): heading of the page and name of the Space; the name of the model by default.
        examples (list of `str`): texts, or image files, which are copied.

    Raises:
        ValueError: the model is not a classifier, or the folder is the one that the model is in.
    """
    model, processor = load(model_name, revision, trust_remote_code)
    title = title or default_title(model)
    build_demo(model, processor, title, examples)  # before anything is written: it checks them
    folder.mkdir(parents=True, exist_ok=True)
    is_local = Path(model_name).is_dir()
    if is_local and Path(model_name).resolve() == (folder / "model").resolve():
        raise ValueError(f"--space {str(folder)!r} would overwrite --model {model_name!r}")

    copy(ROOT / "LICENSE", folder / "LICENSE")
    for package in (LOOKING, PACKAGE):
        for path in package.glob("*.py"):
            copy(path, folder / package.name / path.name)
    if is_local:
        with tempfile.TemporaryDirectory(dir=folder) as saved:
            model.save_pretrained(saved)
            processor.save_pretrained(saved)
            for path in Path(saved).iterdir():
                copy(path, folder / "model" / path.name)
    source = 'HERE / "model"' if is_local else f"{model_name!r}, {revision!r}, {trust_remote_code}"
    shown = repr(list(examples))
    if takes_images(model):
        names = [Path(path).name for path in examples]
        if len(set(names)) < len(names):
            names = [f"{i}_{name}" for i, name in enumerate(names)]
        for path, name in zip(examples, names, strict=True):
            copy(Path(path), folder / "examples" / name)
        shown = "[{}]".format(", ".join(f'HERE / "examples" / {name!r}' for name in names))
    write_text(folder / "app.py", APP.format(source=source, title=title, examples=shown))

    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in PACKAGES}  # no local builds
    write_text(folder / "requirements.txt", "".join(f"{name}=={version}\n" for name, version in versions.items()))
    models = None if is_local else [model_name]
    gradio_version = importlib.metadata.version("gradio")
    card_data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=gradio_version,
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        license="apache-2.0",
        models=models,
        tags=["astroformer", "neuron-astrocyte-attention"],
    )
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "model_cards"), keep_trailing_newline=True, trim_blocks=True
    )
    readme = templates.get_template("space.md.jinja").render(
        card_data=card_data.to_yaml(),
        title=title,
        takes_images=takes_images(model),
        has_calcium=has_calcium(model),
        attention=describe_attention(model),
        models=models,
        gradio_version=gradio_version,
    )
    write_text(folder / "README.md", readme)
    print(f"{folder} is a Space. Try it with  python {folder / 'app.py'}")
    print(f"Push it with  hf upload NAME {folder} --repo-type space")


def copy(source, target):
    target.parent.mkdir(exist_ok=True)
    write_whole(target, lambda path: shutil.copyfile(source, path))


def write_text(path, text):
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
