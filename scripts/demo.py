#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""A page in the browser that classifies a text or an image, and colours it by the calcium response of the astrocyte.

    python scripts/demo.py --model outputs/imdb --examples "A film of rare beauty." "Two hours of my life, gone."
    python scripts/demo.py --model outputs/cifar10 --examples cat.png ship.png
    python scripts/demo.py --model outputs/imdb --title "Film reviews" --space outputs/space

With --space DIR, the folder of a Hugging Face Space with this demo is written instead of serving it.

In Python, `build_demo(model, processor)` is the page as `gradio.Blocks`, to be launched or put into another page.
"""

import argparse
import os
from pathlib import Path

from looking.checkpoint import load
from looking.page import build_demo, launch
from looking.reading import MEAN, read_image, read_text
from sharing.demo_space import write_space


__all__ = ["MEAN", "build_demo", "launch", "load", "main", "read_image", "read_text"]


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder of a trained classifier, or its name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub (default: main)")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run code of a tokenizer or image processor that comes with the checkpoint, never of a model",
    )
    parser.add_argument("--title", help="heading of the page (default: the name of the model)")
    parser.add_argument("--examples", nargs="+", default=[], help="texts, or image files, to choose from")
    parser.add_argument(
        "--server_name", default="127.0.0.1", help="address to serve at; 0.0.0.0 for all of the machine"
    )
    parser.add_argument("--server_port", type=int, help="port to serve at (default: the first free one from 7860)")
    parser.add_argument(
        "--share", action="store_true", help="make a public link for three days, through gradio's servers"
    )
    parser.add_argument("--space", type=Path, help="write the folder of a Hugging Face Space there instead of serving")
    return parser.parse_args(arguments)


def main(arguments=None):
    args = parse_arguments(arguments)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if args.space is not None:
        write_space(args.space, args.model, args.revision, args.trust_remote_code, args.title, args.examples)
        return
    demo = build_demo(*load(args.model, args.revision, args.trust_remote_code), args.title, args.examples)
    launch(demo, server_name=args.server_name, server_port=args.server_port, share=args.share)


if __name__ == "__main__":
    main()
