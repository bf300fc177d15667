# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What differs between the releases of transformers: the name of the cache, private names, and the range itself."""

import importlib.metadata
import inspect
import pkgutil
import re
import warnings

import pytest
import torch
from datasets import Dataset
from transformers import (
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from variants import ROOT, make_model, tiny_config

import astroformer_hf
from astroformer_hf import AstroformerConfig, AstroformerForCausalLM, version
from astroformer_hf.library_compatibility import CACHE_NAME, PRIVATE_NAMES


INSTALLED = version.Version(importlib.metadata.version("transformers"))


# --------------------------------------------------------------------------------------------------------------------
# The cache's name
# --------------------------------------------------------------------------------------------------------------------


def test_the_name_of_the_cache_is_that_of_the_library():
    """The one place that asks for a number: the feature test finds what the releases are known to do."""
    assert CACHE_NAME == ("cache" if INSTALLED >= version.Version("5.24") else "past_key_values")
    assert CACHE_NAME in inspect.signature(AstroformerForCausalLM.forward).parameters
    assert CACHE_NAME in inspect.signature(AstroformerForCausalLM.prepare_inputs_for_generation).parameters


@pytest.mark.parametrize("arm", ["neuron_astrocyte", "linear", "softmax"])
@pytest.mark.parametrize("head", ["AstroformerForCausalLM", "AstroformerModel"])
def test_either_name_gives_the_answers_of_the_whole(arm, head):
    model, ids = make_model(head, attention_type=arm, is_decoder=True), torch.randint(1, 50, (2, 11))
    expected = model(ids)[0][:, 9:]
    for name in ("cache", "past_key_values"):
        cache = model(ids[:, :9], use_cache=True)[CACHE_NAME]
        assert isinstance(cache, Cache)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            output = model(ids[:, 9:], **{name: cache})
        deprecated = [str(w.message) for w in caught if issubclass(w.category, FutureWarning)]
        if name == "past_key_values" and CACHE_NAME == "cache":
            assert len(deprecated) == 1 and "`past_key_values` is deprecated" in deprecated[0]
            assert "Use `cache` instead" in deprecated[0]
        else:
            assert not deprecated
        torch.testing.assert_close(output[0], expected, rtol=1e-4, atol=1e-4)
        assert output[CACHE_NAME] is cache and cache.get_seq_length() == 11
    with pytest.raises(ValueError, match="[Bb]oth|two names"):
        model(ids[:, :1], cache=cache, past_key_values=cache)


@pytest.mark.parametrize("arm", ["neuron_astrocyte", "softmax"])
def test_trainer_predicts_with_a_decoder(arm, tmp_path):
    """The cache is not gathered as if it were logits."""
    model = make_model("AstroformerForCausalLM", attention_type=arm)
    ids = torch.randint(1, 50, (5, 8))
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in ids.tolist()])
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    found = Trainer(model=model, args=arguments).predict(data)
    assert isinstance(found.predictions, type(found.label_ids)) and found.predictions.shape == (5, 8, 50)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found.predictions), model(ids).logits, rtol=1e-4, atol=1e-4)


def test_caches_stay_where_they_are_when_hidden_states_move():
    """accelerate's hooks move the keyword arguments of a layer to its device, and leave these alone."""
    for name in ("AstroformerForCausalLM", "AstroformerModel"):
        assert CACHE_NAME in make_model(name, is_decoder=True)._skip_keys_device_placement


# --------------------------------------------------------------------------------------------------------------------
# Private names
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_private_names_are_there(name):
    owner, _, attribute = name.rpartition(".")
    assert hasattr(pkgutil.resolve_name(owner), attribute)


def test_private_names_are_all_listed():
    """Of the library's classes, what ours override; and what the package's source says of torch and transformers."""
    used = set()
    for class_name in astroformer_hf.__all__:
        cls = getattr(astroformer_hf, class_name)
        if inspect.isclass(cls) and issubclass(cls, PreTrainedModel):
            for owner in (PreTrainedModel, GenerationMixin):
                mine = {n for n in vars(cls) if re.match("_[^_]", n) and n in vars(owner)} - {"_auto_class"}
                used |= {f"transformers.{owner.__name__}.{n}" for n in mine}
    source = "\n".join(path.read_text() for path in (ROOT / "astroformer_hf").glob("*.py"))
    code = source.replace((ROOT / "astroformer_hf/library_compatibility.py").read_text(), "")
    used |= set(re.findall(r"torch\._[\w.]+", code))
    assert len(used) > 5
    assert used <= PRIVATE_NAMES.keys()
    for line in re.findall(
        r"^from transformers\.(?:utils\.\w+|models\..*|modeling_layers) import .*", source, re.MULTILINE
    ):
        module, _, names = line.removeprefix("from ").partition(" import ")
        for name in names.split(", "):
            assert f"{module}.{name}" in PRIVATE_NAMES, line
    assert not re.search(r"_get_default_generation_params|merge_with_config_defaults", source)


def test_fields_of_a_generation_configuration_are_taken():
    """Older files carry them in config.json; none may be taken for a misspelt field."""
    for name in GenerationConfig().to_dict():
        if name not in AstroformerConfig.__dataclass_fields__:
            assert getattr(AstroformerConfig(**{name: None}), name, None) is None


# --------------------------------------------------------------------------------------------------------------------
# The range
# --------------------------------------------------------------------------------------------------------------------

IMPORT_WITH = """
import importlib.metadata, sys, warnings
true_version = importlib.metadata.version
importlib.metadata.version = lambda name: sys.argv[1] if name == "transformers" else true_version(name)
import transformers
transformers.AutoConfig.from_pretrained(sys.argv[2], trust_remote_code=True)
transformers.AutoConfig.from_pretrained(sys.argv[2], trust_remote_code=True)
"""


@pytest.mark.parametrize("found", ["5.19.2", "5.20.0", "5.24.9", "5.25.0", "6.0.0"])
def test_below_the_floor_is_an_error_and_above_the_tested_releases_a_warning_once(found, tmp_path, strangers):
    tiny_config().save_pretrained(tmp_path / "model")
    for file in ("configuration_astroformer.py", "version.py"):  # as they come with a checkpoint
        (tmp_path / "model" / file).write_text((ROOT / "astroformer_hf" / file).read_text())
    (tmp_path / "import.py").write_text(IMPORT_WITH)
    result = strangers.run(tmp_path / "import.py", found, tmp_path / "model", cwd=tmp_path, check=False)
    is_supported = version.Version("5.20") <= version.Version(found) < version.Version("6")
    assert (result.returncode == 0) == is_supported, result.stderr
    if not is_supported:
        assert f"needs transformers>=5.20,<6 (here it has version {found})" in result.stderr
    words = f"was tested with transformers up to {version.TESTED_TRANSFORMERS}, and here it has version {found}"
    assert result.stderr.count(words) == (found == "5.25.0")
