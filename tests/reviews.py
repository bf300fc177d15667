# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""A small data set of reviews whose label can be learned in a few steps."""

import torch


def write_reviews(folder, number=160):
    """A folder of csv files whose label, one of two words, hides in the text."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for split, rows in (("train", number), ("validation", 40)):
        lines = ["text,label"]
        for i in range(rows):
            filler = " ".join(f"w{n}" for n in torch.randint(0, 30, (i % 11 + 3,), generator=generator).tolist())
            lines.append(f"{filler} {('awful', 'lovely')[i % 2]} {filler},{('neg', 'pos')[i % 2]}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder
