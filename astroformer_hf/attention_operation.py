# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Neuron-astrocyte attention: self-attention computed by the plasticity of a tripartite synapse.

A *tripartite synapse* joins two neurons and a process of an astrocyte, a glial cell. The "Astromorphic Transformer"
(Mia, Bal and Sengupta, arXiv 2312.10925, "AT" below) lets such synapses compute attention at a cost that is linear in
the length. A sequence passes through them twice, per head:

    write mode   H_neuron = (1/m) phi(K)^T V        Hebbian plasticity of the neurons
                 H_astro  = (1/m) phi(R)^T V        Hebbian plasticity modulated by the astrocyte's processes
                 g        = (sum_t phi(k_t))^alpha  presynaptic plasticity: calcium, sub-linear in the activity

    read mode    C = phi(Q) g                       calcium response of the process, one number per token
                 P = 1 / C                          feedback of the astrocyte on the synapse
                 Y = P * (phi(Q) (H_neuron + H_astro))

The astrocyte code R, where the astrocyte's processes lie in space, comes from ``astrocyte_code.py``. Without it and
with alpha = 1, this is linear attention (Katharopoulos et al., ICML 2020) up to the constant 1/m.

In the causal form a token reads what was written up to itself, and all of that is in a state whose size does not
depend on the length.

Two forms stand here side by side:

- `neuron_astrocyte_network`: the biological network, token by token. Slow, to be read, and the oracle of the tests;
- `neuron_astrocyte_attention`: the same in matrix products. This is the one to call. What it is made of, write mode and
  read mode or both at once, are the passes of `attention_passes.py`; `attention_backends.py` has them computed in their
  plain form or by faster kernels.

Letters in shape comments: B batch, H heads, N tokens, m hidden neurons (the size of a query), F features that phi
makes of them (m, but the number of random features for "favor"), d head size (the size of a value).
"""

from typing import Any, Literal, NamedTuple, overload

import torch

from .attention_backends import choose_backend, fused_pass, resolve_code, run_pass
from .attention_contract import PASSES, CodeRecipe, MaterializedCode
from .attention_passes import (
    activities,
    astrocyte_feedback,
    calcium_response,
    full_precision,
    presynaptic_plasticity,
    working_dtype,
)
from .feature_maps import FEATURE_MAPS, default_random_projection, phi
from .token_layout import number_documents, starts_of_documents


class NeuronAstrocyteState(NamedTuple):
    """What the tripartite synapses remember of everything written so far; its size does not depend on the length.

    Attributes:
        hebbian: `(batch, heads, features, head_dim)`, the sum over tokens of (phi(k) + phi(r)) v^T; the 1/m is applied
            when it is read.
        calcium: `(batch, heads, features)`, the sum over tokens of phi(k); alpha is applied when it is read.
    """

    hebbian: torch.Tensor
    calcium: torch.Tensor


# --------------------------------------------------------------------------------------------------------------------
# The biological network, token by token
# --------------------------------------------------------------------------------------------------------------------


def neuron_astrocyte_network(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    output_final_state: bool = False,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, NeuronAstrocyteState]:
    """The network of the paper as it would run in tissue: one token after the other, write mode, then read mode.

    Same arguments, results and errors as `neuron_astrocyte_attention`, which explains them. Source: AT, section III.
    """
    _validate(query, key, value, astrocyte_code, padding_mask, alpha, feature_map, random_projection)
    documents = _documents(document_ids, query, key, padding_mask, causal, initial_state, output_final_state)
    working = working_dtype(query, key, value)
    if random_projection is None:
        random_projection = default_random_projection(feature_map, query.shape[-1], query.device)
    num_hidden_neurons = query.shape[-1]

    def phi(x: torch.Tensor) -> torch.Tensor:
        return FEATURE_MAPS[feature_map](x.to(working), random_projection)

    if initial_state is None:
        hebbian, calcium = _empty_state(phi(key[:, :, :0]), value)
    else:
        hebbian, calcium = _checked_state(initial_state, phi(key[:, :, :0]), value)

    hebbian_neuron = hebbian / num_hidden_neurons  # (B, H, F, d); what came before, by whichever plasticity
    hebbian_astro = torch.zeros_like(hebbian_neuron)

    def forget(where: torch.Tensor) -> None:
        """The synapses start anew in those sequences of the batch, `(batch,)` bool: another document begins."""
        nonlocal hebbian_neuron, hebbian_astro, calcium
        hebbian_neuron, hebbian_astro = (x.masked_fill(_to(x, where), 0) for x in (hebbian_neuron, hebbian_astro))
        calcium = calcium.masked_fill(_to(calcium, where), 0)

    def write(t: int, padding_mask: torch.Tensor | None = padding_mask) -> None:
        """Key and value of token t imprint the synapses."""
        nonlocal hebbian_neuron, hebbian_astro, calcium
        presynaptic = phi(key[:, :, t])  # (B, H, F)
        process = 0 * presynaptic if astrocyte_code is None else phi(astrocyte_code[..., t, :])
        postsynaptic = value[:, :, t].to(working)  # (B, H, d)
        if padding_mask is not None:
            padded = ~padding_mask[:, None, t, None]  # (B, 1, 1)
            presynaptic = presynaptic.masked_fill(padded, 0)
            process = process.masked_fill(padded, 0)
            postsynaptic = postsynaptic.masked_fill(padded, 0)
        hebbian_neuron = hebbian_neuron + _outer(presynaptic, postsynaptic) / num_hidden_neurons
        hebbian_astro = hebbian_astro + _outer(process, postsynaptic) / num_hidden_neurons
        calcium = calcium + presynaptic

    def read(t: int) -> torch.Tensor:
        """The query of token t is answered: `(batch, heads, head_dim)`."""
        activity = phi(query[:, :, t])  # (B, H, F)
        y = (activity[..., None] * (hebbian_neuron + hebbian_astro)).sum(-2)  # (B, H, d)
        if feedback:
            g = presynaptic_plasticity(calcium, alpha)  # (B, H, F)
            response = (activity * g).sum(-1, keepdim=True)  # C, (B, H, 1)
            y = y * astrocyte_feedback(response)
        return y

    answers = []
    with full_precision(query):
        if causal:
            for t in range(max(query.shape[2], key.shape[2])):
                if documents is not None and t > 0:
                    forget(documents[:, t] != documents[:, t - 1])
                if t < key.shape[2]:
                    write(t)
                if t < query.shape[2]:
                    answers.append(read(t))
        elif documents is not None:
            answers = [torch.zeros_like(hebbian[:, :, 0])] * query.shape[2]
            for document in range(int(documents.max()) + 1):
                own = documents == document  # (B, N)
                forget(own.any(-1))
                for t in range(key.shape[2]):
                    write(t, own if padding_mask is None else own & padding_mask)
                for t in range(query.shape[2]):
                    answers[t] = torch.where(_to(answers[t], own[:, t]), read(t), answers[t])
        else:
            for t in range(key.shape[2]):
                write(t)
            for t in range(query.shape[2]):
                answers.append(read(t))
    output = torch.stack(answers, dim=2) if answers else value[:, :, :0]

    output = output.to(value.dtype)  # (B, H, N, d)
    state = NeuronAstrocyteState((hebbian_neuron + hebbian_astro) * num_hidden_neurons, calcium)
    return (output, state) if output_final_state else output


def _to(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """`(batch,)` in as many dimensions as `x`."""
    return where.view(-1, *[1] * (x.dim() - 1))


def _outer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Products of all pairs: `(..., features)` and `(..., head_dim)` to `(..., features, head_dim)`."""
    return a[..., :, None] * b[..., None, :]


# --------------------------------------------------------------------------------------------------------------------
# The same in matrix products
# --------------------------------------------------------------------------------------------------------------------


@overload
def neuron_astrocyte_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    output_final_state: Literal[False] = False,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor: ...


@overload
def neuron_astrocyte_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    output_final_state: Literal[True],
    document_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, NeuronAstrocyteState]: ...


def neuron_astrocyte_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    output_final_state: bool = False,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, NeuronAstrocyteState]:
    """Neuron-astrocyte attention (AT, section III): attention as write mode and read mode of tripartite synapses.

    Time and memory are linear in the length. Sums, powers and the division run in float32 whatever the inputs' dtype
    (float64 stays float64), also under autocast; the output has the dtype of `value`. A query that finds nothing
    written is answered with 0.

    Args:
        query (`torch.Tensor`): `(batch, heads, length, hidden_neurons)`, before the feature map.
        key (`torch.Tensor`): `(batch, heads, length, hidden_neurons)`, before the feature map.
        value (`torch.Tensor`): `(batch, heads, length, head_dim)`.
        astrocyte_code (`torch.Tensor`, *optional*): R, `(heads, length, hidden_neurons)` or with a leading batch,
            before the feature map. Without it H_astro is 0.
        padding_mask (`torch.Tensor`, *optional*): bool, `(batch, length)`, True where a token is real. A padded token
            writes nothing, neither to H_neuron and H_astro nor to the calcium. Without it all tokens are real.
        alpha (`float`, defaults to 1.0): exponent of the calcium in (0, 1], presynaptic plasticity; 1 is linear.
        feature_map (`str`, defaults to `"elu"`): phi, one of "elu" (elu(x) + 1), "relu", "exp" (saturating at
            exp(30)) and "favor" (positive random features of the softmax kernel; Kozachkov, Kastanenka and Krotov,
            PNAS 2023, and Choromanski et al., ICLR 2021).
        feedback (`bool`, defaults to `True`): whether the astrocyte divides the answer by the calcium response C.
        random_projection (`torch.Tensor`, *optional*): `(random_features, hidden_neurons)`, for "favor" only. Without
            it 256 features are drawn from a fixed seed.
        causal (`bool`, defaults to `False`): whether a token reads only what was written up to and including itself.
        initial_state (`NeuronAstrocyteState`, *optional*): what was written before this call.
        output_final_state (`bool`, defaults to `False`): whether to return the state as well.
        document_ids (`torch.Tensor`, *optional*): `(batch, length)` whole numbers, for rows in which several documents
            stand one after the other: a token reads its own document only, and the synapses start anew with each. The
            document of a token that is padding does not matter. Causally the first document of a row goes on from
            `initial_state`, and the final state is that of its last; bidirectionally neither is to be had.

    Returns:
        The output, `(batch, heads, length, head_dim)`; with `output_final_state`, a tuple of the output and the
        `NeuronAstrocyteState` that holds `initial_state` and all that this call wrote. A long input can so be written
        in pieces and read once: the queries of a piece may have length 0 (write only), as may its keys (read only). A
        causal input can be split anywhere; each piece brings the astrocyte code of its own positions.

    Raises:
        ValueError: for shapes or values that do not fit; the message gives them.
    """
    _validate(query, key, value, astrocyte_code, padding_mask, alpha, feature_map, random_projection)
    documents = _documents(document_ids, query, key, padding_mask, causal, initial_state, output_final_state)
    output, state, _ = attend(
        query=query,
        key=key,
        value=value,
        astrocyte_code=None if astrocyte_code is None else MaterializedCode(astrocyte_code),
        padding_mask=padding_mask,
        alpha=alpha,
        feature_map=feature_map,
        feedback=feedback,
        random_projection=random_projection,
        causal=causal,
        initial_state=initial_state,
        document_ids=documents,
    )
    if not output_final_state:
        return output
    assert state is not None, "only documents that are not causal have none, and those are refused"
    return output, state


def _tensors_of(recipe: CodeRecipe | None) -> list[torch.Tensor]:
    return [] if recipe is None else [x for x in recipe if torch.is_tensor(x)]


class Attended(NamedTuple):
    """What `attend` returns.

    Attributes:
        output: `(batch, heads, length, head_dim)`.
        state: the final `NeuronAstrocyteState`; None for several documents that are not causal.
        code_state: that of the astrocyte code after the last token; None for a code that has none.
    """

    output: torch.Tensor
    state: NeuronAstrocyteState | None
    code_state: Any


def attend(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: CodeRecipe | None,
    padding_mask: torch.Tensor | None,
    alpha: float,
    feature_map: str,
    feedback: bool,
    random_projection: torch.Tensor | None,
    causal: bool,
    initial_state: NeuronAstrocyteState | None,
    document_ids: torch.Tensor | None = None,
    output_scale: float | torch.Tensor = 1.0,
) -> Attended:
    """`neuron_astrocyte_attention` without its checks, as a layer calls it.

    Args:
        astrocyte_code (`CodeRecipe`, *optional*): R, or what it is made of.
        document_ids (`torch.Tensor`, *optional*): as of `number_documents`.
        output_scale (`float` or `torch.Tensor`): factor of the output, `(batch, 1, length or 1, 1)`. If it is the same
            for all tokens of a sequence, it costs nothing: the Hebbian weights are scaled instead.
    """
    num_hidden_neurons, output_dtype = query.shape[-1], value.dtype
    if working_dtype(query, key, value, *(initial_state or ())) == torch.float64:
        query, key, value = query.double(), key.double(), value.double()
        if isinstance(astrocyte_code, MaterializedCode):
            astrocyte_code = astrocyte_code._replace(code=astrocyte_code.code.double())

    # what is to be computed, and by which backend
    inputs: dict[str, Any] = {"padding_mask": padding_mask}
    passes = [PASSES["write_mode"], PASSES["read_mode"]]
    if document_ids is not None or causal and query.shape[2] > 0 and key.shape[2] > 0:
        passes = [PASSES["write_and_read_causally" if causal else "write_and_read_documents"]]
        inputs["document_ids"] = document_ids
    kernels_apply_phi = FEATURE_MAPS[feature_map].in_kernels
    # a causal call that only writes, or only reads, makes R first: write mode's own code would look both ways
    if kernels_apply_phi and not (causal and passes[0].name == "write_mode"):
        passes[0] = fused_pass(passes[0], astrocyte_code)
    tensors = [query, key, value, *(initial_state or ()), *_tensors_of(astrocyte_code)]
    backend = choose_backend(passes, inputs, tensors)

    with full_precision(query):
        passes[0], of_code, code_state = resolve_code(
            astrocyte_code, passes[0], backend, key=key.to(working_dtype(key)), causal=causal, **inputs
        )
        if not kernels_apply_phi:
            query, key, of_code["astrocyte_code"] = _features(
                query, key, of_code["astrocyte_code"], feature_map, random_projection
            )
            feature_map = "identity"
        state = None if initial_state is None else _checked_state(initial_state, key, value)
        inputs.update(of_code, key=key, value=value, feature_map=feature_map)
        if len(passes) == 1:
            if causal:
                hebbian, calcium = state or _empty_state(key, value)
                inputs.update(hebbian=hebbian, calcium=calcium)
            results = run_pass(
                passes[0],
                backend,
                **inputs,
                query=query,
                alpha=alpha,
                feedback=feedback,
                scale=(1.0 if torch.is_tensor(output_scale) else output_scale) / num_hidden_neurons,
                output_dtype=output_dtype,
            )
            output = results["output"]
            if causal:
                state = NeuronAstrocyteState(results["hebbian"], results["calcium"])
            if torch.is_tensor(output_scale):
                # as (b, n, h, d), its order in memory: a compiled graph would leave it, and copy it back
                scaled = output.transpose(1, 2) * output_scale.transpose(1, 2)
                output = scaled.transpose(1, 2).to(output_dtype)
        else:
            results = run_pass(passes[0], backend, **inputs)
            written = NeuronAstrocyteState(results["hebbian"], results["calcium"])
            state = written if state is None else NeuronAstrocyteState(*map(torch.add, state, written))
            output = run_pass(
                passes[1],
                backend,
                query=query,
                hebbian=state.hebbian * (output_scale / num_hidden_neurons),
                plasticity=presynaptic_plasticity(state.calcium, alpha) if feedback else None,
                feature_map=feature_map,
                output_dtype=output_dtype,
            )["output"]
        if code_state is None and astrocyte_code is not None:
            code_state = astrocyte_code.state_after(results)
    return Attended(output, state, code_state)


def neuron_astrocyte_attention_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """The attention map that `neuron_astrocyte_attention` applies without ever building it, for looking at.

    Entry (t, s) is P_t phi(q_t) (phi(k_s) + phi(r_s)) / m, so that the map times the values is the output. Rows sum to
    1/m where alpha is 1 and there is no astrocyte code, and only there. Arguments as for `neuron_astrocyte_attention`.
    What `initial_state` holds is counted in the calcium but has no columns: its tokens are no longer known one by one.

    Returns:
        `torch.Tensor` of shape `(batch, heads, length, length)` in the dtype of `query`. Memory is quadratic.
    """
    documents = _documents(document_ids, query, key, padding_mask, causal, initial_state, False)
    _validate(query, key, key, astrocyte_code, padding_mask, alpha, feature_map, random_projection)
    num_hidden_neurons = query.shape[-1]
    with full_precision(query):
        if not FEATURE_MAPS[feature_map].in_kernels:
            query, key, astrocyte_code = _features(query, key, astrocyte_code, feature_map, random_projection)
            feature_map = "identity"
        presynaptic, process = activities(key, astrocyte_code, padding_mask, feature_map)
        activity = phi(query.to(presynaptic.dtype), feature_map)
        weights = activity @ (presynaptic + process).transpose(-1, -2) / num_hidden_neurons  # (B, H, N, N)
        visible = None
        if documents is not None:  # (B, 1, N, N)
            visible = (documents[:, None, :, None] == documents[:, None, None, :]).to(weights.dtype)
            weights = weights * visible
        if causal:
            weights = weights.tril()
        if feedback:
            if visible is not None:
                calcium = (visible.tril() if causal else visible) @ presynaptic
            else:
                calcium = presynaptic.cumsum(-2) if causal else presynaptic.sum(-2)
            if initial_state is not None:
                before = initial_state.calcium[:, :, None] if causal else initial_state.calcium
                if documents is not None:  # the first goes on from it
                    before = before * (documents == documents[:, :1])[:, None, :, None]
                calcium = calcium + before
            weights = weights * astrocyte_feedback(calcium_response(activity, calcium, alpha))
    return weights.to(query.dtype)


# --------------------------------------------------------------------------------------------------------------------
# Precision, defaults and validation
# --------------------------------------------------------------------------------------------------------------------


def _features(
    query: torch.Tensor,
    key: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    feature_map: str,
    random_projection: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Query, key and astrocyte code, which may be None, as their features phi(.) in the working dtype."""
    if random_projection is None:
        random_projection = default_random_projection(feature_map, query.shape[-1], query.device)
    working = working_dtype(query, key)
    query, key = (phi(x.to(working), feature_map, random_projection) for x in (query, key))
    if astrocyte_code is not None:
        astrocyte_code = phi(astrocyte_code.to(working), feature_map, random_projection)
    return query, key, astrocyte_code


def _empty_state(key: torch.Tensor, value: torch.Tensor) -> NeuronAstrocyteState:
    """The state of synapses to which nothing was written; the last dimension of `key` is the features'."""
    shape, working = (*key.shape[:2], key.shape[3], value.shape[3]), working_dtype(key, value)
    return NeuronAstrocyteState(value.new_zeros(shape, dtype=working), value.new_zeros(shape[:3], dtype=working))


def _checked_state(state: NeuronAstrocyteState, key: torch.Tensor, value: torch.Tensor) -> NeuronAstrocyteState:
    """`state` in the working dtype, after a check of its shapes; the last dimension of `key` is the features'."""
    hebbian, calcium = state
    hebbian_shape = (*key.shape[:2], key.shape[3], value.shape[3])
    if hebbian.shape != hebbian_shape or calcium.shape != hebbian_shape[:3]:
        raise ValueError(
            f"initial_state must hold hebbian of shape {hebbian_shape} and calcium of shape {hebbian_shape[:3]}, "
            f"got {tuple(hebbian.shape)} and {tuple(calcium.shape)}"
        )
    working = working_dtype(key, value, hebbian)
    return NeuronAstrocyteState(hebbian.to(working), calcium.to(working))


def _documents(
    document_ids: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    padding_mask: torch.Tensor | None,
    causal: bool,
    initial_state: NeuronAstrocyteState | None,
    output_final_state: bool,
) -> torch.Tensor | None:
    """`document_ids`, checked, as `number_documents` numbers them; None without."""
    if document_ids is None:
        return None
    batch_size, _, length, _ = key.shape
    if document_ids.shape != (batch_size, length) or document_ids.is_floating_point():
        raise ValueError(
            f"document_ids must be whole numbers of shape {(batch_size, length)}, got {document_ids.dtype} of shape "
            f"{tuple(document_ids.shape)}"
        )
    if query.shape[2] != length:
        raise ValueError(f"document_ids need queries and keys of the same length, got {query.shape[2]} and {length}")
    if not causal and (initial_state is not None or output_final_state):
        raise ValueError(
            "document_ids have no initial_state or final state unless causal=True: each document of a row has a state "
            "of its own"
        )
    if length == 0:
        return None
    documents = number_documents(starts_of_documents(document_ids, padding_mask), padding_mask)
    if document_ids.device.type == "cpu" and not torch.compiler.is_compiling():  # where the look costs nothing
        for row, ids in enumerate(document_ids):
            ids = ids if padding_mask is None else ids[padding_mask[row]]
            if len(ids.unique()) < len(ids.unique_consecutive()):
                raise ValueError(
                    "document_ids must not return to a document that has ended: the tokens of each stand together, got "
                    f"{ids.unique_consecutive().tolist()} in row {row}"
                )
    return documents


def _validate(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    alpha: float,
    feature_map: str,
    random_projection: torch.Tensor | None,
) -> None:
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"feature_map must be one of {sorted(FEATURE_MAPS)}, got {feature_map!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1:
        raise ValueError(f"alpha must be a number in (0, 1], got {alpha!r}")

    shapes = f"got query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)}"
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, (batch, heads, length, size); {shapes}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be of a floating-point dtype, got {tensor.dtype}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must have the same number of hidden neurons (last dimension); {shapes}")
    if not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        raise ValueError(f"query, key and value must agree in batch and heads; {shapes}")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"key and value must have the same length; {shapes}")
    if query.shape[2] != key.shape[2] and 0 not in (query.shape[2], key.shape[2]):
        raise ValueError(f"query and key must have the same length, unless one of them is empty; {shapes}")

    batch_size, num_heads, length, num_hidden_neurons = key.shape
    if astrocyte_code is not None:
        expected = (num_heads, length, num_hidden_neurons)
        if astrocyte_code.shape not in (expected, (batch_size, *expected)):
            raise ValueError(
                f"astrocyte_code must have shape {expected}, or that with a leading batch of {batch_size}, "
                f"got {tuple(astrocyte_code.shape)}"
            )
    if padding_mask is not None:
        if padding_mask.dtype != torch.bool:
            raise ValueError(f"padding_mask must be bool, True where a token is real, got {padding_mask.dtype}")
        if padding_mask.shape != (batch_size, length):
            raise ValueError(f"padding_mask must have shape {(batch_size, length)}, got {tuple(padding_mask.shape)}")
    if random_projection is not None:
        if not FEATURE_MAPS[feature_map].has_random_projection:
            raise ValueError(
                "random_projection belongs to a feature_map of random features such as 'favor', got feature_map "
                f"{feature_map!r}"
            )
        if random_projection.dim() != 2 or random_projection.shape[1] != num_hidden_neurons:
            raise ValueError(
                f"random_projection must have shape (random_features, {num_hidden_neurons}), "
                f"got {tuple(random_projection.shape)}"
            )
