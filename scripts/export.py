#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Exports a trained model to ONNX or `torch.export`, checks the file against PyTorch, and quantizes it to int8.

    python scripts/export.py --model outputs/imdb --format onnx --output_dir outputs/imdb_onnx
    python scripts/export.py --model outputs/imdb --format torch --output_dir outputs/imdb_torch
    python scripts/export.py --model outputs/imdb --format onnx --quantize int8 --evaluate --dataset_dir my_data \
        --output_dir outputs/imdb_onnx

Takes models for text, token and image classification and masked and causal language models (these without their cache:
one forward pass over the whole text). Batch and length stay dynamic; images have the size that the model was made for.

--output_dir becomes a folder that `transformers.exporters.ExportedModel.from_pretrained` loads, with the tokenizer or
image processor: `model.onnx` and its weights `model.onnx.data`, or `model.pt2`; `export.json`, what the library needs
to run it; `results.json`, what was checked and measured. With --quantize int8, the subfolder `int8` is the same of the
model with int8 weights. --evaluate measures the accuracy of a classifier before and after, and the time it takes.
"""

import importlib.util
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import train_text_classification
import transformers
from datasets import Image
from looking.checkpoint import takes_images
from packaging.version import Version
from torch.utils.data import DataLoader
from tqdm import tqdm
from training import provenance
from training.data import dataset_title, load_examples
from training.files import refuse_same_folder, write_json
from training.images import Collator, digits
from training.labels import Labels
from training.metrics import Classification
from training.provenance import command, hardware, versions
from training.tokenization import check_max_length, longest_input
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
)


MODELS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForCausalLM": AutoModelForCausalLM,
    "ForImageClassification": AutoModelForImageClassification,
}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
NEEDED = {"transformers": "5.23", "torch": "2.11"}  # the first with `ExportedModel`, and what its exporter asks for
TRACED_SIZE = (3, 150)  # batch and length of the example that is traced
OF_EXPORTS = ("export.json", "model.onnx", "model.onnx.data", "model.pt2")
OF_OTHERS = ("*.safetensors", "run_options.json", "checkpoint-*")
OF_BOTH = ("config.json", "results.json")
CHECKED_SIZES = ((1, 1), (1, 5), (4, 17), (2, 64), (3, 65), (2, 200), (1, 700))


@dataclass
class ExportArguments:
    """The export."""

    model: str = field(metadata={"help": "Folder of a trained model, or its name on the Hub."})
    output_dir: str = field(metadata={"help": "Folder for the exported model."})
    format: str = field(default="onnx", metadata={"help": "onnx, or torch for torch.export."})
    quantize: str | None = field(
        default=None, metadata={"help": "int8: write a second model, of int8 weights, to the subfolder int8."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the checkpoint."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a model of the Hub."})
    tolerance: float = field(
        default=1e-4, metadata={"help": "Largest difference to PyTorch, as a share of the largest logit."}
    )
    evaluate: bool = field(
        default=False, metadata={"help": "Measure accuracy and time of a classifier on the validation split."}
    )
    batch_size: int = field(default=64, metadata={"help": "Of the evaluation."})
    seed: int = field(default=42, metadata={"help": "Draws what is checked, and of the data --max_eval_samples."})

    def __post_init__(self):
        if self.format not in PACKAGES:
            raise ValueError(f"--format must be one of {', '.join(PACKAGES)}, got {self.format!r}")
        if self.quantize not in (None, "int8"):
            raise ValueError(f"--quantize must be int8, got {self.quantize!r}")
        if self.quantize and self.format != "onnx":
            raise ValueError(f"--quantize int8 needs --format onnx, got --format {self.format}")
        if not self.tolerance > 0:
            raise ValueError(f"--tolerance must be positive, got {self.tolerance}")


@dataclass
class DataArguments(train_text_classification.DataArguments):
    """The data of --evaluate, as of the training scripts."""

    max_length: int | None = field(
        default=None, metadata={"help": "Tokens read of each text. Default: all that the model takes."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the image. Default: image, or img."})


def require_packages(export_format):
    """Raises ImportError, with what to install, unless a format's packages are there."""
    found = versions(NEEDED)
    old = [f"{name}>={low}" for name, low in NEEDED.items() if Version(found[name]) < Version(low)]
    missing = [name for name in PACKAGES[export_format] if importlib.util.find_spec(name) is None]
    if old or missing:
        here = ", ".join(f"{name} {version}" for name, version in found.items())
        raise ImportError(
            f"--format {export_format} needs {', '.join([*old, *missing])} (here are {here}); install with\n"
            f"    pip install {' '.join(map(repr, [*old, *missing]))}"
        )


def load(args):
    """The model, in float32 and in evaluation mode, and its tokenizer or image processor.

    Raises:
        ValueError: it is a model for a task that is not exported, or that reads in segments; or it lacks weights.
    """
    source = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    config = AutoConfig.from_pretrained(args.model, **source)
    architecture = (config.architectures or [""])[0]
    auto_class = next((found for ending, found in MODELS.items() if architecture.endswith(ending)), None)
    if auto_class is None:
        raise ValueError(
            f"--model {args.model!r} is an {architecture or 'unknown architecture'}; exported are "
            f"{', '.join(f'...{ending}' for ending in MODELS)}"
        )
    if (segment_length := getattr(config, "segment_length", None)) is not None:
        raise ValueError(
            f"--model {args.model!r} reads in segments (segment_length={segment_length}): a graph has a fixed number "
            "of them, so that texts of any length need the model itself. torch.export takes it for one length"
        )
    model, loading = auto_class.from_pretrained(args.model, dtype=torch.float32, output_loading_info=True, **source)
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"]))
        raise ValueError(f"--model must be a trained {architecture}; {args.model} has no weights for {missing}")
    model = model.eval()
    processor = AutoImageProcessor if takes_images(model) else AutoTokenizer
    return model, processor.from_pretrained(args.model, **source)


def clear(output_dir):
    """Makes a folder, and removes what an earlier export left there.

    Raises:
        ValueError: it is of something else, such as a training run, whose files would be overwritten.
    """
    folders = [output_dir, output_dir / "int8"]
    for folder in folders:
        is_export = any((folder / name).exists() for name in OF_EXPORTS)
        found = [path for name in (*OF_OTHERS, *(() if is_export else OF_BOTH)) for path in folder.glob(name)]
        if found:
            raise ValueError(
                f"--output_dir {output_dir} has {found[0].name}, and is not that of an export: "
                "its files would be overwritten. Name another folder"
            )
    for name in ("results.json", *OF_EXPORTS):
        (output_dir / name).unlink(missing_ok=True)
    if any((folders[1] / name).exists() for name in OF_EXPORTS):
        shutil.rmtree(folders[1])
    output_dir.mkdir(parents=True, exist_ok=True)


def example_inputs(model, batch_size, length, generator):
    """Random inputs of a model: images; or texts of random tokens, of which the second is padded on the left and the
    third on the right, by a third of their length."""
    config = model.config
    if takes_images(model):
        size = config.image_size
        height_and_width = (size, size) if isinstance(size, int) else tuple(size)
        return {"pixel_values": torch.randn(batch_size, config.num_channels, *height_and_width, generator=generator)}
    input_ids = torch.randint(config.vocab_size, (batch_size, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1:2, : length // 3] = 0
    attention_mask[2:3, length - length // 3 :] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def export(model, export_format, inputs):
    """An `ExportedModel` with dynamic batch and, for text, length."""
    from transformers.exporters import DynamoConfig, DynamoExporter, OnnxConfig, OnnxExporter

    dynamic = dict.fromkeys(range(1 if takes_images(model) else 2), torch.export.Dim.DYNAMIC)
    options = {"dynamic": True, "dynamic_shapes": {name: dynamic for name in inputs}}
    flags = {"use_cache": False} if getattr(model.config, "is_decoder", False) else {}
    if export_format == "torch":
        return DynamoExporter().export(model, {**inputs, **flags}, DynamoConfig(**options))
    return OnnxExporter().export(model, {**inputs, **flags}, OnnxConfig(**options))


def quantized(exported, inputs):
    """An ONNX `ExportedModel` with weights in int8."""
    from transformers.exporters import ExportedModel, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    # matrix products and the table of the embeddings, which hold nearly all weights
    settings = OnnxRuntimeDynamicConfig(op_types_to_quantize=["MatMul", "Gemm", "Gather"])
    component = exported.components["model"]
    program = OnnxRuntimeQuantizer(settings).quantize(component.program, inputs, exported.export_format)
    component = replace(component, program=program)
    return ExportedModel({"model": component}, exported.export_format, config=exported.config)


def load_exported(folder, export_format, trust_remote_code):
    """The saved export, on as many threads as PyTorch has."""
    from transformers.exporters import ExportedModel

    options = {}
    if export_format == "onnx":
        import onnxruntime

        options["session_options"] = onnxruntime.SessionOptions()
        options["session_options"].intra_op_num_threads = torch.get_num_threads()
    return ExportedModel.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)


def largest_difference(model, exported, generator, longest=None):
    """The largest difference between the logits of the two over batches of several sizes, of `longest` tokens at most,
    as a share of the largest logit of a batch. What either says of padding is left out."""
    differences = []
    for batch_size, length in CHECKED_SIZES:
        inputs = example_inputs(model, batch_size, min(length, longest or length), generator)
        with torch.no_grad():
            expected = model(**inputs).logits
        got = exported(**inputs).logits
        if expected.dim() == 3:
            real = inputs["attention_mask"] != 0
            expected, got = expected[real], got[real]
        differences.append((got - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    return torch.stack(differences).max().item()  # NaN stays


def num_bytes(folder):
    """Size of a program with its weights."""
    return sum(path.stat().st_size for path in folder.glob("model.*"))


# --------------------------------------------------------------------------------------------------------------------
# What int8 costs
# --------------------------------------------------------------------------------------------------------------------


def evaluation_batches(model, processor, args, data_args):
    """Name of the split, and its batches, each of which has `labels`; those of text with texts of like length."""
    columns = (data_args.label_column,)
    if takes_images(model):
        examples = load_examples(data_args, args.seed, columns, offline=digits)
    else:
        examples = load_examples(data_args, args.seed, (data_args.text_column, *columns))
    (_, train), (name, split) = list(examples.items())[:2]
    labels = Labels(train, data_args.label_column)
    known = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if labels.problem_type != "single_label_classification" or labels.names != known:
        raise ValueError(f"--evaluate needs data with one label each of {known}, got {labels.names}")
    if takes_images(model):
        wanted = [data_args.image_column] if data_args.image_column else ["image", "img"]
        column = next((column for column in wanted if column in split.column_names), None)
        if column is None:
            raise ValueError(f"the data has no column {' or '.join(wanted)}; it has {split.column_names}")
        split = split.cast_column(column, Image())
        collate = Collator(processor, column, data_args.label_column, labels.encode)
    else:
        max_length = max_length_of(model, processor, data_args)

        def encode(batch):
            options = {"truncation": max_length is not None, "max_length": max_length}
            # segment ids are all 0, and not exported
            encoded = processor(batch[data_args.text_column], **options, return_token_type_ids=False)
            encoded["labels"] = [labels.encode(label) for label in batch[data_args.label_column]]
            return encoded

        split = split.map(encode, batched=True, remove_columns=split.column_names, desc=f"Tokenizing {name}")
        split = split.select(np.argsort([len(ids) for ids in split["input_ids"]], kind="stable"))
        collate = DataCollatorWithPadding(processor)
    return name, DataLoader(split, batch_size=args.batch_size, collate_fn=collate)


def max_length_of(model, tokenizer, data_args):
    """The tokens that the evaluation reads of a text; None for all.

    Raises:
        ValueError: --max_length asks for more than the model takes, or for none but the special ones.
    """
    longest = longest_input(model.config, tokenizer)
    if data_args.max_length is None:
        return longest
    if longest is not None and data_args.max_length > longest:
        raise ValueError(
            f"--max_length must be at most {longest}, which is all that the model takes, got {data_args.max_length}"
        )
    check_max_length(data_args.max_length, tokenizer)
    return data_args.max_length


@torch.no_grad()
def measure(runs, batches):
    """Accuracy and seconds of several models on the same batches, each batch given to one after the other.

    Args:
        runs (`dict`): callables by name, each from the inputs by name to an output with `logits`.
        batches: iterable of dicts of inputs and `labels`.

    Returns:
        `(metrics, predictions)`: a dict for each name, and its predicted classes as an array.
    """
    seconds, predictions, references = dict.fromkeys(runs, 0.0), {name: [] for name in runs}, []
    for i, batch in enumerate(tqdm(batches, desc="Evaluating")):
        inputs = dict(batch)
        references.append(inputs.pop("labels"))
        for name, run in runs.items():
            if i == 0:
                run(**inputs)  # what is built or planned at the first call is not counted
            began = time.perf_counter()
            logits = run(**inputs).logits
            seconds[name] += time.perf_counter() - began
            predictions[name].append(logits.argmax(-1))
    references = torch.cat(references).numpy()
    predictions = {name: torch.cat(parts).numpy() for name, parts in predictions.items()}
    metrics = {
        name: {
            **Classification().compute(predictions=predictions[name], references=references),
            "seconds": round(seconds[name], 3),
        }
        for name in runs
    }
    return metrics, predictions


def main(arguments=None):
    parser = HfArgumentParser((ExportArguments, DataArguments), description=__doc__.split("\n\n")[0])
    args, data_args = parser.parse_args_into_dataclasses(arguments)
    require_packages(args.format)
    transformers.set_seed(args.seed)
    refuse_same_folder(args.output_dir, "model", args.model)
    model, processor = load(args)
    if args.evaluate and not type(model).__name__.endswith(("ForSequenceClassification", "ForImageClassification")):
        raise ValueError(f"--evaluate measures classifiers of texts and images, not {type(model).__name__}")
    if args.evaluate:
        split, batches = evaluation_batches(model, processor, args, data_args)
    output_dir = Path(args.output_dir)
    clear(output_dir)
    folders = {"float32": output_dir, **({"int8": output_dir / "int8"} if args.quantize else {})}
    generator = torch.Generator().manual_seed(args.seed)
    batch_size, length = TRACED_SIZE
    longest = None if takes_images(model) else longest_input(model.config, processor)
    traced = example_inputs(model, batch_size, min(length, longest or length), generator)

    exports, record = {}, {}
    exported = export(model, args.format, dict(traced))
    for name, folder in folders.items():
        if name == "int8":
            exported = quantized(exported, traced)
        exported.save_pretrained(folder)
        processor.save_pretrained(folder)
        # a .pt2 is a pickle, which runs code as it is read; this one was written a moment ago
        exports[name] = load_exported(folder, args.format, args.trust_remote_code or args.format == "torch")
        difference = largest_difference(model, exports[name], generator, longest)
        record[name] = {"largest_difference": difference, "bytes": num_bytes(folder)}
        print(f"{name}: {record[name]['bytes']:,} bytes in {folder}; largest difference to PyTorch {difference:.1e}")
        if name == "float32" and not difference <= args.tolerance:
            sys.exit(
                f"the exported model differs from PyTorch by {difference:.1e} of the largest logit, which is more "
                f"than --tolerance {args.tolerance}: do not use {folder}"
            )

    evaluation = {}
    if args.evaluate:
        metrics, predictions = measure({"pytorch": model, **exports}, batches)
        for name, values in metrics.items():
            record.setdefault(name, {}).update(values)
            agreement = float((predictions[name] == predictions["pytorch"]).mean())
            record[name]["agreement"] = agreement
            print(
                f"{name}: accuracy {values['accuracy']:.4f}, agrees with PyTorch on {agreement:.2%}, "
                f"{values['seconds']:.1f} s"
            )
        evaluation = {
            "dataset": dataset_title(data_args, "scikit-learn digits"),
            "split": split,
            "eval_samples": len(batches.dataset),
            "batch_size": args.batch_size,
            **({} if takes_images(model) else {"max_length": max_length_of(model, processor, data_args)}),
        }
    write_json(
        output_dir / "results.json",
        {
            "model": args.model,
            "architecture": type(model).__name__,
            "arm": getattr(model.config, "attention_type", model.config.model_type),
            "format": args.format,
            "parameters": model.num_parameters(),
            **evaluation,
            "models": record,
            "tolerance": args.tolerance,
            "seed": args.seed,
            "command": command(__file__, arguments),
            "versions": versions((*provenance.PACKAGES, "onnx", "onnxscript", "onnxruntime")),
            "hardware": hardware(),
        },
    )
    print(f"The exported model and results.json are in {output_dir}")


if __name__ == "__main__":
    main()
