# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Other versions, older releases, damaged files and hostile configurations: what should load does, all else is refused
in words, soon, and before it takes the machine's memory."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from loopback_hub import File, LoopbackHub, Repository
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from variants import ROOT, make_model, tiny_config

import astroformer_hf
from astroformer_hf import (
    AstroformerConfig,
    AstroformerForSequenceClassification,
    AstroformerModel,
    swap_attention,
    version,
)


RELEASES = ROOT / "tests/releases"
HUGE = 10**9


# --------------------------------------------------------------------------------------------------------------------
# Versions
# --------------------------------------------------------------------------------------------------------------------


def test_other_versions_are_refused_by_name():
    version.check_requirements({"torch": ">=2"})
    with pytest.raises(ImportError, match=r"(?s)needs torch>=99 \(here it has version 2.*pip install 'torch>=99'"):
        version.check_requirements({"torch": ">=99", "transformers": ">=5"})
    with pytest.raises(ImportError, match=r"no-such-package>=1 \(here it is not installed\)"):
        version.check_requirements({"no-such-package": ">=1"})


# An older transformers has no `PreTrainedConfig`; that is not what the message should be about.
OLD_LIBRARY = """
import importlib.metadata, sys, transformers
true_version = importlib.metadata.version
importlib.metadata.version = lambda name: "4.57.1" if name == "transformers" else true_version(name)
del transformers._class_to_module["PreTrainedConfig"]
transformers.AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


def test_code_in_a_checkpoint_refuses_an_older_library(tmp_path, strangers):
    AstroformerModel(tiny_config()).save_pretrained(tmp_path / "model")
    (tmp_path / "load.py").write_text(OLD_LIBRARY)
    result = strangers.run(tmp_path / "load.py", tmp_path / "model", check=False)
    assert result.returncode != 0
    assert (
        f"Astroformer {version.__version__} needs transformers>=5.20,<6 (here it has version 4.57.1)" in result.stderr
    )
    assert "pip install 'transformers>=5.20,<6'" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("reads_config", [False, True], ids=["from_pretrained", "from_json_file"])
@pytest.mark.parametrize("folder", sorted(RELEASES.glob("*/*/")), ids=lambda f: f"{f.parent.name}-{f.name}")
def test_checkpoints_of_older_releases_load(folder, reads_config):
    (class_name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model_class, options = getattr(astroformer_hf, class_name), {}
    if reads_config:
        options["config"] = model_class.config_class.from_json_file(folder / "config.json")
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    expected = load_file(folder / "expected.safetensors")
    logits = expected.pop("logits")
    with torch.no_grad():
        torch.testing.assert_close(model(**expected).logits, logits)
    assert logits.std() > 0.1


def test_an_older_encoder_within_another_model_keeps_its_effects(tmp_path):
    folder = RELEASES / "0.2.0/text_activity"
    encoder, sizes = AutoModel.from_pretrained(folder), {"num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16}
    decoder = BertLMHeadModel(BertConfig(is_decoder=True, add_cross_attention=True, **sizes))
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    model.save_pretrained(tmp_path)
    content, of_then = (json.loads((f / "config.json").read_text()) for f in (tmp_path, folder))
    content["encoder"] = {name: value for name, value in content["encoder"].items() if name in of_then}
    (tmp_path / "config.json").write_text(json.dumps(content))
    loaded, info = EncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    inputs = {"input_ids": torch.arange(1, 8)[None], "decoder_input_ids": torch.arange(1, 4)[None]}
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
    # what is asked for beside the file still counts
    changed = AutoConfig.for_model(**{**of_then, "synaptic_decay": "learned"})
    assert changed.synaptic_decay == "learned" and changed.presynaptic_target == "response"


def test_a_configuration_says_which_release_saved_it(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    tiny_config().save_pretrained(tmp_path)
    content = json.loads(path.read_text())
    assert content["astroformer_version"] == astroformer_hf.__version__
    # every field is written out, so that a later release may change its defaults
    assert set(AstroformerConfig.__annotations__) <= set(content)

    warnings = []
    monkeypatch.setattr("astroformer_hf.saved_fields.logger.warning_once", warnings.append)
    AutoConfig.from_pretrained(tmp_path)
    assert warnings == []
    path.write_text(json.dumps({**content, "astroformer_version": "99.1"}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert len(warnings) == 1 and "99.1" in warnings[0] and "Update" in warnings[0]
    config.save_pretrained(tmp_path)
    assert json.loads(path.read_text())["astroformer_version"] == astroformer_hf.__version__


def test_a_checkpoint_of_a_derived_class_warns_where_it_loads_as_another(tmp_path, monkeypatch):
    class Derived(AstroformerForSequenceClassification):
        pass

    warnings = []
    monkeypatch.setattr("astroformer_hf.loading.logger.warning", warnings.append)
    Derived(tiny_config()).save_pretrained(tmp_path)
    Derived.from_pretrained(tmp_path)
    assert warnings == []
    AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert len(warnings) == 1 and "saved as Derived" in warnings[0]
    AstroformerForSequenceClassification(tiny_config()).save_pretrained(tmp_path)
    AstroformerModel.from_pretrained(tmp_path)
    assert len(warnings) == 1


# --------------------------------------------------------------------------------------------------------------------
# Damaged and hostile files
# --------------------------------------------------------------------------------------------------------------------


def of_config(**changes):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def of_weights(change):
    def damage(folder):
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def only_a_few_layers_of_many(folder):
    """A large model of which the file holds two layers: the others would be initialised, in 380 GiB."""
    wide = AstroformerForSequenceClassification(tiny_config(hidden_size=2048, intermediate_size=8192))
    wide.save_pretrained(folder)
    of_config(num_hidden_layers=2000)(folder)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was read')",)


def pickle_instead_of_safetensors(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


DAMAGES = {
    "truncated weights": (of_weights(lambda content: content[:-100]), OSError, "case.* damaged .* not fully covered"),
    "truncated header": (of_weights(lambda content: content[:100]), OSError, "damaged"),
    "empty weights": (of_weights(lambda content: b""), OSError, "damaged"),
    "web page as weights": (of_weights(lambda content: b"<html>not found</html>"), OSError, "damaged"),
    "large header": (of_weights(lambda content: b"\xff" * 7 + b"\0" + content), OSError, "damaged"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), OSError, "no file named model.safetensors"),
    "pickle": (pickle_instead_of_safetensors, OSError, "no file named model.safetensors"),
    "truncated config": (lambda folder: (folder / "config.json").write_text('{"model_t'), OSError, "valid JSON"),
    "other shapes": (of_config(hidden_size=64), RuntimeError, "ignore_mismatched_sizes"),
    "vocabulary": (of_config(vocab_size=HUGE), ValueError, "vocab_size must be at most 100,000,000, got 1,000,000,000"),
    "layers": (of_config(num_hidden_layers=HUGE), ValueError, "num_hidden_layers must be at most 2,000, got"),
    "labels": (of_config(num_labels=HUGE), ValueError, "num_labels must be a number from 1 to 1,000,000, got"),
    "no labels": (of_config(num_labels=-1), ValueError, "num_labels must be a number from 1"),
    "neurons": (of_config(num_hidden_neurons=HUGE), ValueError, "num_hidden_neurons must be at most"),
    "features": (of_config(feature_map="favor", num_random_features=HUGE), ValueError, "num_random_features must be"),
    "token types": (of_config(type_vocab_size=HUGE), ValueError, "type_vocab_size must be at most"),
    "digits": (of_config(hidden_size=10**400), ValueError, "hidden_size must be at most"),
    "width": (of_config(hidden_size=10**6), ValueError, "describes a model of .* parameters, .* GiB"),
    "learned table": (of_config(max_position_embeddings=HUGE), ValueError, "describes a model of .* parameters"),
    "few of many layers": (only_a_few_layers_of_many, ValueError, "describes a model of .* parameters"),
    "infinite scale": (of_config(astrocyte_scale=float("inf")), ValueError, "astrocyte_scale must be positive, got"),
    "no number": (of_config(initializer_range=float("nan")), ValueError, "initializer_range must be positive, got nan"),
    "text for a number": (of_config(vocab_size="50"), Exception, "vocab_size.*expected int, got str"),
    "number format": (of_config(dtype="evil"), ValueError, "dtype must be one of .* got 'evil'"),
    "activation": (of_config(hidden_act="os.system"), ValueError, "hidden_act must be one of .* got 'os.system'"),
    "number format, twice": (
        of_config(torch_dtype="float32", dtype="nn"),
        ValueError,
        "dtype must be one of .* got 'nn'",
    ),
    "pickle by name": (
        of_config(transformers_weights="adapter_model.bin"),
        ValueError,
        "transformers_weights must name a safetensors file beside it, got 'adapter_model.bin'",
    ),
    "index by name": (
        of_config(transformers_weights="a.safetensors.index.json"),
        ValueError,
        "transformers_weights must name a safetensors file beside it, got 'a.safetensors.index.json'",
    ),
    "weights above": (of_config(transformers_weights="../a.safetensors"), ValueError, "transformers_weights must name"),
    "kernels": (of_config(attn_implementation="evil/kernel"), ValueError, "attn_implementation must not name a repos"),
    "code above": (of_config(auto_map={"AutoModel": "../evil.Model"}), ValueError, "auto_map must name classes"),
    "code elsewhere": (of_config(auto_map={"AutoModel": "/tmp/evil.Model"}), ValueError, "auto_map must name classes"),
    "version": (of_config(astroformer_version="evil"), ValueError, "astroformer_version must be a version, got 'evil'"),
}
LOAD_ALL = """
import json, pathlib, resource, sys, time
import torch, transformers, astroformer_hf
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in GiB
answers, before = {}, peak()
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    began = time.monotonic()
    try:
        transformers.AutoModelForSequenceClassification.from_pretrained(folder / "case")
        answers[folder.name] = {"types": [], "message": "loaded"}
    except Exception as error:
        types = [kind.__name__ for kind in type(error).__mro__]
        answers[folder.name] = {"types": types, "message": str(error)}
    answers[folder.name]["seconds"] = time.monotonic() - began
answers["grown by GiB"] = peak() - before
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory, scripts):
    """What loading says to each damaged folder, in one process that may take 8 GiB."""
    root, program = tmp_path_factory.mktemp("damaged"), tmp_path_factory.mktemp("program") / "load_all.py"
    program.write_text(LOAD_ALL)
    model = AstroformerForSequenceClassification(tiny_config(astrocyte_code="learned"))
    for name, (damage, *_) in {"intact": (lambda folder: None,), **DAMAGES}.items():
        folder = root / name / "case"
        model.save_pretrained(folder)
        damage(folder)
    return json.loads(scripts.run(program, root).stdout.splitlines()[-1])


def test_damaged_files_take_neither_memory_nor_time(answers):
    assert answers["intact"]["message"] == "loaded"
    assert answers["grown by GiB"] < 1
    assert all(answers[name]["seconds"] < 60 for name in DAMAGES)


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_refused_in_words(name, answers):
    _, kind, pattern = DAMAGES[name]
    answer = answers[name]
    assert kind.__name__ in answer["types"], answer
    assert re.search(pattern, answer["message"], re.DOTALL), answer


def of_original(**changes):
    def damage(folder):
        path = folder / "config.json"
        content = json.loads(path.read_text())
        content["original_config"] |= changes
        path.write_text(json.dumps(content))

    return damage


def split_elsewhere(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


OF_SWAPPED = {
    "pickle": (pickle_instead_of_safetensors, OSError, "no file named model.safetensors"),
    "index": (split_elsewhere, ValueError, "must name safetensors files beside it, got '../elsewhere.safetensors'"),
    "truncated": (of_weights(lambda content: content[:100]), OSError, "of '.*model' are damaged"),
    "kernels": (of_original(attn_implementation="evil/kernel"), ValueError, "attn_implementation must not name a rep"),
    "kernels within": (
        of_original(text_config={"_attn_implementation": "evil/kernel"}),
        ValueError,
        "_attn_implementation must not name a repository",
    ),
    "weights": (of_original(transformers_weights="a.bin"), ValueError, "transformers_weights must name a safetensors"),
    "code": (of_config(auto_map={"AutoModel": "../evil.Model"}), ValueError, "auto_map must name classes"),
    "version": (of_config(astroformer_version="evil"), ValueError, "astroformer_version must be a version, got 'evil'"),
    "newer option": (
        of_config(attention_swap={"layers": [0], "later": 1}),
        ValueError,
        "attention_swap has 'later', which this release does not know",
    ),
}


@pytest.mark.parametrize("name", OF_SWAPPED)
def test_damaged_files_of_swapped_models_are_refused_in_words(name, tmp_path):
    damage, kind, pattern = OF_SWAPPED[name]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, folder = swap_attention(LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))), tmp_path / "model"
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["astroformer_version"] == version.__version__
    AutoModelForCausalLM.from_pretrained(folder)
    damage(folder)
    with pytest.raises(kind, match=pattern):
        AutoModelForCausalLM.from_pretrained(folder)


def test_no_pickle_is_read_even_if_asked(tmp_path):
    AstroformerModel(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors must be True, got False"):
        AstroformerModel.from_pretrained(tmp_path, use_safetensors=False)
    with pytest.raises(ValueError, match="weights_only must be True, got False"):
        AstroformerModel.from_pretrained(tmp_path, weights_only=False)
    AstroformerModel.from_pretrained(tmp_path, use_safetensors=None)
    # also where there is nothing to read
    config, state = tiny_config(), AstroformerModel(tiny_config()).state_dict()
    loaded = AstroformerModel.from_pretrained(None, config=config, state_dict=state)
    assert torch.equal(loaded.norm.weight, state["norm.weight"])
    source = "\n".join(
        path.read_text() for folder in ("astroformer_hf", "scripts") for path in ROOT.glob(f"{folder}/**/*.py")
    )
    assert not re.search(r"torch\.load|pickle\.load|import pickle|allow_pickle", source)


def test_sharded_weights_with_a_missing_shard_are_refused(tmp_path):
    make_model("AstroformerForSequenceClassification").save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    AstroformerForSequenceClassification.from_pretrained(tmp_path)
    shards[1].unlink()
    with pytest.raises(OSError, match=shards[1].name):
        AstroformerForSequenceClassification.from_pretrained(tmp_path)


SHARDS_ELSEWHERE = [
    "pytorch_model.bin",
    "../model.safetensors",
    "/tmp/model.safetensors",
    "a/b.safetensors",
    "x.bin",
    7,
]


@pytest.mark.parametrize("dtype", [None, "auto"])
@pytest.mark.parametrize("shard", SHARDS_ELSEWHERE)
def test_an_index_that_names_anything_but_safetensors_beside_it_is_refused(tmp_path, shard, dtype, monkeypatch):
    folder = tmp_path / "model"
    model = make_model("AstroformerForSequenceClassification")
    model.save_pretrained(folder, max_shard_size="20KB")
    if dtype == "auto":  # then the library reads a shard before all others
        of_config(dtype=None)(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["classifier.weight"] = shard
    index.write_text(json.dumps(content))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    read = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: read.append(args))
    monkeypatch.setattr("transformers.modeling_utils.safe_open", lambda *args, **kwargs: read.append(args))
    message = f"model.safetensors.index.json must name safetensors files beside it, got {shard!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        AstroformerForSequenceClassification.from_pretrained(folder, dtype=dtype)
    assert read == []


def test_an_index_that_is_no_index_is_refused(tmp_path):
    make_model("AstroformerModel").save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    for content in ("", "[]", "{}", '{"weight_map": 1}'):
        index.write_text(content)
        with pytest.raises(OSError, match="model.safetensors.index.json is damaged"):
            AstroformerModel.from_pretrained(tmp_path)


def test_an_index_on_the_hub_is_checked_too(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    make_model("AstroformerForSequenceClassification").save_pretrained(folder, max_shard_size="20KB")
    files = {path.name: File(path.read_bytes(), False) for path in folder.iterdir()}
    with LoopbackHub() as hub:
        index = json.loads(files["model.safetensors.index.json"].content)
        index["weight_map"]["classifier.weight"] = "pytorch_model.bin"
        bad = {
            **files,
            "model.safetensors.index.json": File(json.dumps(index).encode(), False),
            "pytorch_model.bin": File(pickle.dumps(Bomb()), False),
        }
        for name, content in (("user/good", files), ("user/bad", bad)):
            hub.repositories["model", name] = Repository(private=False)
            hub.repositories["model", name].commit("main", content, "upload")
        hub.be_found(monkeypatch, tmp_path / "cache")
        AstroformerForSequenceClassification.from_pretrained("user/good")
        with pytest.raises(ValueError, match="must name safetensors files beside it, got 'pytorch_model.bin'"):
            AstroformerForSequenceClassification.from_pretrained("user/bad")
        assert not any("pytorch_model.bin" in path for _, path in hub.requests)


@pytest.mark.parametrize("field, value", [("image_size", HUGE), ("num_channels", HUGE), ("patch_size", 0)])
def test_hostile_image_configurations_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        astroformer_hf.AstroformerVisionConfig(**{field: value})


def test_what_users_may_say_is_taken():
    references = {name: f"user/name--{value}" for name, value in AstroformerConfig.auto_map_of_class.items()}
    references["AutoTokenizer"] = ["tokenization.Tokenizer", None]
    assert AstroformerConfig(auto_map=references).auto_map == AstroformerConfig.auto_map_of_class
    config = AstroformerConfig(num_labels=np.int64(3), dtype=torch.bfloat16, attn_implementation="sdpa")
    assert config.num_labels == 3 and config.dtype == torch.bfloat16


def test_models_larger_than_the_machine_may_be_built_without_memory(monkeypatch, tmp_path):
    tiny = AstroformerModel(tiny_config())
    tiny.save_pretrained(tmp_path)
    monkeypatch.setattr("astroformer_hf.loading.memory_of_machine", lambda with_gpus=False: 1000)
    with torch.device("meta"):
        AstroformerModel(tiny_config())
    with pytest.raises(ValueError, match="describes a model"):
        AstroformerModel.from_pretrained(tmp_path)
    loaded = AstroformerModel.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(loaded.norm.weight, tiny.norm.weight)
