# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The model card of a converted model: what was swapped, and what it costs."""

from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from training.files import ROOT, write_whole


# What a model is for, by the end of its class's name.
TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}


FINAL_STAGES = ("distilled", "transferred", "swapped")  # whose quality is the model's, the first of them that is there


def task_of(original):
    """The pipeline that a model of the library is for."""
    name = type(original).__name__
    is_image = original.main_input_name == "pixel_values"
    default = "image-feature-extraction" if is_image else "feature-extraction"
    return next((task for end, task in TASKS.items() if name.endswith(end)), default)


def license_of(source):
    """The license of a model as its card tells it; "other" where it tells none."""
    try:
        path = Path(source) / "README.md"
        card = ModelCard.load(path if path.is_file() else source)
    except Exception:  # no card, no such name, no network: there is no license to be read
        return "other"
    return card.data.license or "other"


def write_card(path, results, original):
    """Fills `model_cards/converted.md.jinja` from the record of a conversion of the model `original`."""
    name, data, task = Path(path).resolve().parent.name, Path(results["data"]).name, task_of(original)
    measured = next(results["quality"][stage] for stage in FINAL_STAGES if stage in results["quality"])
    card_data = ModelCardData(
        license=results["license"],
        library_name="transformers",
        pipeline_tag=task,
        tags=["astroformer", "neuron-astrocyte-attention", "linear-attention"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=data,
                dataset_name=data,
                dataset_split=results["options"]["validation_split"],
                metric_type=metric,
                metric_value=round(value, 4),
            )
            for metric, value in measured.items()
            if metric != "tokens"
        ],
    )
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "model_cards"), keep_trailing_newline=True, trim_blocks=True
    )
    templates.globals["zip"] = zip
    content = templates.get_template("converted.md.jinja").render(
        card_data=card_data.to_yaml(),
        model_name=name,
        results=results,
        swap=results["attention_swap"],
        original=Path(results["model"]).name,
        is_causal=original.can_generate(),
        task=task,
    )
    write_whole(path, ModelCard(content).save)
