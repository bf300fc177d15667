# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Astroformer models: what all share, and the text models'."""

from .version import __version__  # first: it checks the releases of what is imported here


# isort: split
import difflib
import functools
import math
import re
import sys
from collections.abc import Collection
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from .astrocyte_code import ASTROCYTE_CODES
from .attention_checks import CALCIUM_SOURCES, PRESYNAPTIC_TARGETS
from .feature_maps import FEATURE_MAPS
from .model_classes import TEXT_MODELS, auto_map
from .saved_fields import check_saved_fields


CHOICES: dict[str, Collection[str]] = {
    "attention_type": ("neuron_astrocyte", "linear", "softmax"),
    "feature_map": FEATURE_MAPS.keys(),  # and what is registered there later
    "astrocyte_code": ASTROCYTE_CODES.keys(),
    "calcium_normalization": ("mean", "sum"),
    "synaptic_decay": ("none", "learned", "gated"),
    "presynaptic_target": PRESYNAPTIC_TARGETS,
    "calcium_sources": CALCIUM_SOURCES,
    "hebbian_rule": ("correlation", "covariance"),
    "memory_retention": ("none", "streaming", "ltp"),
    "pooling": ("mean", "cls", "last"),
}
# What a field means that a saved configuration does not have, because it is older than the field. Not the default of a
# new model, which may be another.
BEFORE_IT_EXISTED = {
    "synaptic_decay": "none",
    "presynaptic_target": "response",
    "calcium_sources": "neurons",
    "hebbian_rule": "correlation",
}
# The attention by the letter of the paper.
PAPER = {
    "feature_map": "elu",
    "astrocyte_code": "learned",
    "astrocyte_scale": 1.0,
    "astrocyte_resting_activity": 1.0,
    "presynaptic_alpha": 0.5,
    "calcium_normalization": "sum",
    **BEFORE_IT_EXISTED,
}
REGISTRIES = {"feature_map": "register_feature_map", "astrocyte_code": "register_astrocyte_code"}
POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "num_hidden_neurons",
    "num_random_features",
    "num_channels",
    "segment_length",
    "astrocyte_resting_activity",
    "astrocyte_scale",
    "initializer_range",
    "layer_norm_eps",
)
# Larger values mean a damaged or hostile file; building such a model would take all memory.
MAX_VALUES = {
    "vocab_size": 10**8,
    "hidden_size": 10**6,
    "num_hidden_layers": 2000,
    "num_attention_heads": 10**5,
    "intermediate_size": 10**7,
    "max_position_embeddings": 10**9,
    "type_vocab_size": 10**6,
    "num_hidden_neurons": 10**5,
    "num_random_features": 10**6,
    "num_channels": 10**5,
    "num_memory_tokens": 10**6,
    "segment_length": 10**9,
}
PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")

# Keywords that the library itself may hand to a configuration, beside its fields.
LIBRARY_KEYWORDS = {
    "attn_implementation",
    "auto_map",
    "cls_token_id",
    "mask_token_id",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "sep_token_id",
    "torch_dtype",
    "unk_token_id",
} | set(GenerationConfig().to_dict())


def tell_peft(model_type: str) -> None:
    """Registers which modules the adapters of peft adapt by default, if it has been imported.

    Projections are called as Llama's, and what peft adapts there it adapts here. The normalisations are not.
    """
    constants = sys.modules.get("peft.utils.constants")
    for name, modules_of_types in vars(constants).items() if constants is not None else ():
        if not re.fullmatch("TRANSFORMERS_MODELS_TO_[A-Z0-9]+_(TARGET|FEEDFORWARD)_MODULES_MAPPING", name):
            continue
        if "LNTUNING" in name:
            modules_of_types.setdefault(model_type, ["attention_norm", "mlp_norm", "norm"])
        elif "llama" in modules_of_types:
            modules_of_types.setdefault(model_type, modules_of_types["llama"])


class TableRows:
    """The field `max_position_embeddings`: always kept and saved, but there to be read only where it bounds the input.

    Tools such as sentence-transformers, lm-eval and `generate` take this attribute, wherever they find it, for the
    longest input, and cut what is longer.
    """

    default = 512

    def __get__(self, config: Any, owner: type | None = None) -> int:
        if config is None:  # how a dataclass asks for the default
            return self.default
        if config.longest_input is None:
            raise AttributeError("max_position_embeddings bounds nothing: this model takes any length")
        return config.num_table_positions

    def __set__(self, config: Any, value: int) -> None:
        config._table_rows = value  # under another name, since the library reads what it finds in `vars(config)`


@strict
class AstroformerBaseConfig(PreTrainedConfig):
    """The fields that text and image models share, and their checks; `AstroformerConfig` explains them."""

    auto_map_of_class: ClassVar[
        dict[str, str]
    ] = {}  # where each Auto class finds its code in a saved folder, whichever of them was saved

    keys_to_ignore_at_inference = ["past_key_values", "cache", "memory"]  # a cache's name changed in transformers 5.24

    # How the library divides a model over processes (`DistributedConfig`): by heads and columns, and in units.
    base_model_tp_plan: ClassVar[dict[str, str] | None] = {
        "layers.*.attention.q_proj": "colwise",
        "layers.*.attention.k_proj": "colwise",
        "layers.*.attention.v_proj": "colwise",
        "layers.*.attention.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    # Of the attention. The defaults are what trains best: for recall some heads must remember long at first, and the
    # resting astrocyte be as loud as three neurons; for neighbouring characters some heads must forget soon.
    presets: ClassVar[dict[str, dict[str, Any]]] = {"best": {}, "paper": PAPER}
    base_model_fsdp_plan: ClassVar[dict[str, str]] = {"layers.*": "free_full_weight", "norm": "keep_full_weight"}

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    classifier_dropout: float | int | None = None
    is_decoder: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pooling: str = "mean"

    attention_type: str = "neuron_astrocyte"
    feature_map: str = "exp"
    num_hidden_neurons: int | None = None
    num_random_features: int = 256
    presynaptic_alpha: float | int = 0.5
    use_astrocyte_hebbian: bool = True
    use_calcium_feedback: bool = True
    astrocyte_scale: float | int = 3.0
    astrocyte_code: str = "activity"
    astrocyte_resting_activity: float | int = 3.0
    calcium_normalization: str = "mean"
    synaptic_decay: str | None = None
    initial_memory_spans: list[float | int] | tuple[float | int, ...] = (1.0, 16.0, 128.0, 1024.0)
    presynaptic_target: str = "synapse"
    calcium_sources: str = "all"
    hebbian_rule: str = "correlation"

    segment_length: int | None = None
    num_memory_tokens: int = 8
    memory_retention: str = "none"
    memory_backprop: str | int = "replay"

    astroformer_version: str | None = __version__

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Has each class take fields of an earlier release for what they meant then, by whatever way they come."""
        has_own_init = "__init__" in cls.__dict__
        super().__init_subclass__(**kwargs)
        if has_own_init:
            return
        made_by_library: Any = cls.__init__

        @functools.wraps(made_by_library)
        def __init__(self: Any, *args: Any, **fields: Any) -> None:
            if "auto_map" in fields:  # which files have, also within one of a composite model
                fields = {**BEFORE_IT_EXISTED, **fields}
            made_by_library(self, *args, **fields)

        setattr(cls, "__init__", __init__)  # noqa: B010 (type checkers refuse the assignment)

    def __post_init__(self, **kwargs: Any) -> None:
        if self.synaptic_decay is None:
            self.synaptic_decay = self.default_decay if self.attention_type == "neuron_astrocyte" else "none"
        self._reject_misspelt(kwargs)
        check_saved_fields({**kwargs, "dtype": self.dtype, "astroformer_version": self.astroformer_version})
        self.validate_architecture()
        if self.num_hidden_neurons is None:
            self.num_hidden_neurons = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
        self.auto_map = dict(self.auto_map_of_class)
        self.astroformer_version = __version__  # of what saves it next

    default_decay: ClassVar[str] = "gated"  # of the arm "neuron_astrocyte"

    @property
    def longest_input(self) -> int | None:
        """Tokens that an input may have at most; None where any length is taken."""
        return None

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Any:
        """A configuration by the name of its attention.

        Args:
            name (`str`): "best", the defaults, every effect where it trains best: synapses that leak through a gate,
                alpha at the synapse, calcium of all sources; or "paper", the attention to the letter of "Delving Deeper
                Into Astromorphic Transformers" (arXiv 2312.10925): a learned table of positions as loud as the neurons,
                sums instead of means, alpha in the calcium response alone, nothing that leaks.
            changes: other fields.

        Raises:
            ValueError: there is no preset of that name.
        """
        if name not in cls.presets:
            raise ValueError(f"preset must be one of {', '.join(map(repr, cls.presets))}, got {name!r}")
        return cls(**{**cls.presets[name], **changes})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As of every library configuration, but fields among the keywords are checked together with the others, and a
        field that is newer than what was saved is off."""
        own_fields = cls.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
        changes = {name: kwargs.pop(name) for name in own_fields & kwargs.keys()}
        return super().from_dict({**BEFORE_IT_EXISTED, **config_dict, **changes}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As of every library configuration."""
        tell_peft(self.model_type)  # which asks a model here for its type, before it looks up what to adapt
        return super().to_dict()

    def validate_architecture(self) -> None:
        """Checks every field and the fields against each other; the library calls it again before saving."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                hint = ""
                if name in REGISTRIES:
                    hint = f"; one of your own must be registered before, by {REGISTRIES[name]}"
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}{hint}"
                )
        for name in POSITIVE:
            value = getattr(self, "_table_rows" if name == "max_position_embeddings" else name, None)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value!r}")
            if value is not None and value > MAX_VALUES.get(name, math.inf):
                raise ValueError(f"{name} must be at most {MAX_VALUES[name]:,}, got {value:,}")
        for name in PROBABILITIES:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value!r}")
        if not 0 < self.presynaptic_alpha <= 1:
            raise ValueError(f"presynaptic_alpha must be in (0, 1], got {self.presynaptic_alpha!r}")
        spans = self.initial_memory_spans
        if not spans or not all(0 < span < math.inf for span in spans):
            raise ValueError(f"initial_memory_spans must be positive numbers of tokens, got {spans!r}")
        if self.hebbian_rule == "covariance":
            m = self.num_hidden_neurons or self.hidden_size // self.num_attention_heads
            if FEATURE_MAPS[self.feature_map].num_features(m, self.num_random_features) != m:
                raise ValueError(
                    "hebbian_rule 'covariance' needs a feature_map with one feature for each hidden neuron, got "
                    f"{self.feature_map!r}"
                )
            if self.attention_type == "softmax" and self.is_decoder:
                raise ValueError(
                    "hebbian_rule must be 'correlation' for decoders of attention_type 'softmax', whose cache has no "
                    "place for the covariance, got 'covariance'"
                )
        self._check_segments()
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}, got {self.hidden_act!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got hidden_size {self.hidden_size} and "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @property
    def longest_sequence(self) -> int | None:
        """Tokens of a segment with its memory tokens, where the model reads in segments; else None."""
        if self.segment_length is None:
            return None
        return self.segment_length + self.num_memory_tokens * (2 if self.is_decoder else 1)

    def _check_segments(self) -> None:
        """Checks the fields of a model that reads in segments."""
        backprop = self.memory_backprop
        is_number = isinstance(backprop, int) and not isinstance(backprop, bool) and 0 <= backprop < 2**31
        if backprop not in ("replay", "full") and not is_number:
            raise ValueError(
                "memory_backprop must be 'replay', 'full' or the number of memories that gradients go through, 0 or "
                f"more, got {backprop!r}"
            )
        if not 0 <= self.num_memory_tokens <= MAX_VALUES["num_memory_tokens"]:
            raise ValueError(
                f"num_memory_tokens must be from 0 to {MAX_VALUES['num_memory_tokens']:,}, got {self.num_memory_tokens}"
            )
        if self.segment_length is None:
            return
        if self.is_decoder and self.memory_retention == "ltp":
            raise ValueError(
                "memory_retention must be 'streaming' or 'none' for decoders, which do not know how many segments are "
                "to come, got 'ltp'"
            )

    @classmethod
    def _reject_misspelt(cls, keywords: dict[str, Any]) -> None:
        fields = list(cls.__dataclass_fields__)
        for keyword in keywords:
            if keyword in LIBRARY_KEYWORDS or keyword.startswith("_"):
                continue
            alike = difflib.get_close_matches(keyword, fields, n=1, cutoff=0.85)
            if alike:
                raise ValueError(f"{cls.__name__} has no field {keyword!r}; did you mean {alike[0]!r}?")


@strict
class AstroformerConfig(AstroformerBaseConfig):
    r"""Configuration of an Astroformer text model. Names are BERT's where BERT has one.

    The attention of "Delving Deeper Into Astromorphic Transformers" (Mia, Bal and Sengupta, arXiv 2312.10925) is made
    of several effects, each with a field of its own, so that each can be turned off alone.

    Args:
        vocab_size (`int`, defaults to 30522): number of different tokens.
        hidden_size (`int`, defaults to 768): size of a token's hidden state.
        num_hidden_layers (`int`, defaults to 12): number of blocks.
        num_attention_heads (`int`, defaults to 12): heads per block; divides `hidden_size`.
        intermediate_size (`int`, defaults to 3072): width of a block's feed-forward layer.
        hidden_act (`str`, defaults to `"gelu"`): activation of the feed-forward layer.
        hidden_dropout_prob (`float`, defaults to 0.1): dropout of embeddings and of every block's two outputs.
        attention_probs_dropout_prob (`float`, defaults to 0.1): dropout of attention. "softmax" drops entries of the
            attention map; the other arms, which have no map, drop the values of whole tokens before they are written (a
            synapse that fails to release).
        max_position_embeddings (`int`, defaults to 512): rows of the "learned" astrocyte code, the longest input that
            it takes, generated tokens included. The other codes and arms take any length; with them the attribute is
            kept and saved, but not there to be read, because tools would cut their inputs by it. `longest_input` says
            what bounds an input: these rows, or None.
        type_vocab_size (`int`, defaults to 2): number of different `token_type_ids`.
        initializer_range (`float`, defaults to 0.02): standard deviation of initial weights.
        layer_norm_eps (`float`, defaults to 1e-12): epsilon of the layer normalisations.
        pad_token_id (`int`, *optional*, defaults to 0): id of the padding token.
        bos_token_id, eos_token_id (`int`, *optional*): ids of the first and last token of a text.
        classifier_dropout (`float`, *optional*): dropout before the classifier; `hidden_dropout_prob` by default.
        is_decoder (`bool`, defaults to `False`): whether attention is causal: a token sees only those before it.
            `AstroformerForCausalLM` sets it.
        use_cache (`bool`, defaults to `True`): whether decoders return the state from which the next token continues.
        tie_word_embeddings (`bool`, defaults to `True`): whether language models share input and output embeddings.
        pooling (`str`, defaults to `"mean"`): how a sequence becomes one vector, "mean" over its real tokens, "cls",
            its first real token, or "last", its last one. A causal model's first token sees nothing else, so that its
            classifiers refuse "cls".
        attention_type (`str`, defaults to `"neuron_astrocyte"`): the arm; "linear" (Katharopoulos et al., 2020) and
            "softmax" are the comparisons in the same skeleton. "linear" is "neuron_astrocyte" with
            `use_astrocyte_hebbian=False, presynaptic_alpha=1, synaptic_decay="none"`.
        feature_map (`str`, defaults to `"exp"`): phi, "elu" (elu(x) + 1), "relu", "exp" or "favor" (random features).
        num_hidden_neurons (`int`, *optional*): m, the size of queries and keys per head; the head size by default.
        num_random_features (`int`, defaults to 256): features of the "favor" map.
        presynaptic_alpha (`float`, defaults to 0.5): presynaptic plasticity, the exponent in (0, 1] of the calcium; 1
            turns it off.
        use_astrocyte_hebbian (`bool`, defaults to `True`): whether the astrocyte modulates Hebbian plasticity
            (H_astro).
        use_calcium_feedback (`bool`, defaults to `True`): whether the astrocyte divides by the calcium response (P).
        astrocyte_scale (`float`, defaults to 3.0): scale of the coupling exp(-scale * distance) between processes.
        astrocyte_code (`str`, defaults to `"activity"`): R, "learned" (the paper's table of relative positions),
            "sinusoidal" (the same for any length) or "activity" (each process integrates its neighbours).
        astrocyte_resting_activity (`float`, defaults to 3.0): how loud the astrocyte is before training: phi(b) of its
            resting level b, in units of the activity of an untrained neuron. 1 is as loud as the neurons.
        calcium_normalization (`str`, defaults to `"mean"`): whether calcium and Hebbian weights are read as a mean over
            the tokens, a concentration, or literally as their "sum". With "sum" the attention's output grows with the
            number of tokens n as n^(1 - alpha), and as n without feedback. With alpha at the synapse and feedback both
            are the same.
        synaptic_decay (`str`, *optional*): whether synapses and calcium leak, at a rate per head that is "learned", or
            "gated" by the token that comes; "gated" by default, but "none" in the arms "linear" and "softmax". In
            "softmax" the scores fall with the same distance (ALiBi with learned rates).
        initial_memory_spans (sequence of `float`, defaults to `(1.0, 16.0, 128.0, 1024.0)`): how many tokens the heads
            remember before training, where synapses leak: the first and the last head's, or more, from which the
            others' are interpolated in their logarithm.
        presynaptic_target (`str`, defaults to `"synapse"`): where `presynaptic_alpha` acts, in the calcium "response"
            alone, the paper's form, or at the "synapse" as well (short-term depression).
        calcium_sources (`str`, defaults to `"all"`): what raises the calcium, the "neurons" alone, the paper's
            form, or "all", the astrocyte's own processes as well.
        hebbian_rule (`str`, defaults to `"correlation"`): plasticity by the product of activities, the paper's form, or
            by their "covariance" as well: a term of its own, with a learned gain per head, in any arm.
        segment_length (`int`, *optional*): read a text in segments of so many tokens, each behind memory tokens that
            carry what came before (`segments.py`). Unset, a text is read at once.
        num_memory_tokens (`int`, defaults to 8): memory tokens; 0 leaves segments without a memory.
        memory_retention (`str`, defaults to `"none"`): how strong the memory is after each segment: always as strong
            ("none"), by the segment's share of what the astrocyte holds so far ("streaming"), or by its share of all
            segments ("ltp", the form of RMAAT, for encoders and texts in one call). The latter falls by the factor e in
            six segments, the former faster at first.
        memory_backprop (`str` or `int`, defaults to `"replay"`): gradients through the memory: through all segments, of
            which each is computed again ("replay", AMRB: memory hardly grows with their number) or kept ("full"), or,
            with replay, through so many memories at most.
        astroformer_version (`str`): the release that saved a checkpoint; a newer one than this gives a warning.

    Raises:
        ValueError: a value out of range, or a keyword that looks like a misspelt field.
        StrictDataclassFieldValidationError: a value of the wrong type.
    """

    model_type = "astroformer"
    auto_map_of_class = auto_map("astroformer", "AstroformerConfig", TEXT_MODELS)
    num_position_dimensions = 1

    vocab_size: int = 30522
    max_position_embeddings: int = TableRows()  # type: ignore[assignment]  # see there
    type_vocab_size: int = 2
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def num_table_positions(self) -> int:
        """Rows of the "learned" astrocyte code."""
        return self._table_rows if self.longest_sequence is None else self.longest_sequence

    @property
    def longest_input(self) -> int | None:
        """Tokens that an input may have at most, generated ones included: the rows of the "learned" astrocyte code.
        None for all else, which takes any length, and where a text is read in segments."""
        if self.segment_length is not None:
            return None
        has_code = self.attention_type == "neuron_astrocyte" and self.use_astrocyte_hebbian
        code = ASTROCYTE_CODES.get(self.astrocyte_code)
        return self.num_table_positions if has_code and code is not None and code.has_table else None

    def __eq__(self, other: object) -> bool:
        """Whether the other is a configuration of the same class and fields."""
        return type(other) is type(self) and other.to_dict() == self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, as the library saves them."""
        fields = super().to_dict()
        fields["max_position_embeddings"] = fields.pop("_table_rows")
        return fields

    def validate_architecture(self) -> None:
        """Checks every field and the fields against each other; the library calls it again before saving."""
        super().validate_architecture()
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must be in [0, vocab_size={self.vocab_size}), got {self.pad_token_id}")
