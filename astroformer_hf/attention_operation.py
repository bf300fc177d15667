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

Three switches go beyond the paper's letter, inside its biology. With w_s = phi(k_s) + phi(r_s), what token s writes:

    H_t = f_t H_{t-1} + w_t v_t^T                   log_decay: synapses leak, and the calcium likewise; f_t is left of
    c_t = f_t c_{t-1} + w_t                         all when token t comes. Bidirectionally from each end, times the
                                                    share that is left after the time between two tokens
    Y_t = (phi(q_t) * c_t^(alpha-1)) H_t / C_t      presynaptic_target "synapse": alpha acts on the synapse, too, so
                                                    that one that has seen little speaks louder (short-term
                                                    depression); with "response", the paper's, in C alone
    c_t counts w_t                                  calcium_sources "all": calcium enters a process from its neighbours,
                                                    too; with "neurons", the paper's, it counts phi(k_t)

Why "synapse": where alpha acts in C alone, all synapses of a head keep their proportions. The answer is the one of
alpha = 1 times one number per token, (phi(q_t) c_t) / (phi(q_t) c_t^alpha): louder or softer, never another choice.

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
from .attention_checks import check_inputs, check_switches, checked_documents
from .attention_contract import PASSES, CodeRecipe, MaterializedCode, Pass
from .attention_passes import (
    calcium_response,
    full_precision,
    imprints,
    presynaptic_plasticity,
    presynaptic_release,
    released,
    released_weights,
    with_feedback,
    working_dtype,
)
from .attention_state import (
    BidirectionalState,
    NeuronAstrocyteState,
    State,
    checked_state,
    sides_of,
    state_or_empty,
    tensors_of_state,
)
from .decayed_sums import time_elapsed
from .feature_maps import FEATURE_MAPS, default_random_projection, phi


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
    presynaptic_target: str = "response",
    calcium_sources: str = "neurons",
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
    proximity: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: State | None = None,
    output_final_state: bool = False,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, State]:
    """The network of the paper as it would run in tissue: one token after the other, write mode, then read mode.

    Same arguments, results and errors as `neuron_astrocyte_attention`, which explains them. Source: AT, section III.
    """
    check_inputs(query, key, value, astrocyte_code, padding_mask, alpha, feature_map, random_projection)
    check_switches(
        query,
        key,
        presynaptic_target=presynaptic_target,
        calcium_sources=calcium_sources,
        log_decay=log_decay,
        proximity=proximity,
        causal=causal,
        initial_state=initial_state,
        output_final_state=output_final_state,
    )
    keeps_states = initial_state is not None or output_final_state
    documents = checked_documents(document_ids, query, key, padding_mask, causal, keeps_states)
    working = working_dtype(query, key, value)
    if random_projection is None:
        random_projection = default_random_projection(feature_map, query.shape[-1], query.device)
    num_hidden_neurons = query.shape[-1]

    def phi(x: torch.Tensor) -> torch.Tensor:
        return FEATURE_MAPS[feature_map](x.to(working), random_projection)

    both_ways = log_decay is not None and not causal
    before, after = sides_of(initial_state)

    # the synapses of all heads: H_neuron + H_astro, and the calcium
    hebbian, calcium = state_or_empty(before, phi(key[:, :, :0]), value)
    hebbian = hebbian / num_hidden_neurons  # (B, H, F, d); what came before, by whichever plasticity

    def forget(where: torch.Tensor) -> None:
        """The synapses start anew in those sequences of the batch, `(batch,)` bool: another document begins."""
        nonlocal hebbian, calcium
        hebbian, calcium = (x.masked_fill(_to(x, where), 0) for x in (hebbian, calcium))

    def leak(t: int) -> None:
        """The time passes that there is between token t and the one before it; none before padding."""
        nonlocal hebbian, calcium
        if log_decay is not None:
            left = log_decay[:, :, t, None].to(working).exp()  # f_t, (B, H, 1)
            if padding_mask is not None:
                left = left.masked_fill(~padding_mask[:, None, t, None], 1)
            hebbian, calcium = hebbian * left[..., None], calcium * left

    def write(t: int, padding_mask: torch.Tensor | None = padding_mask, share: torch.Tensor | float = 1.0) -> None:
        """Key and value of token t imprint the synapses, which keep a share of it, `(heads, 1)`."""
        nonlocal hebbian, calcium
        presynaptic = phi(key[:, :, t])  # (B, H, F)
        process = 0 * presynaptic if astrocyte_code is None else phi(astrocyte_code[..., t, :])
        postsynaptic = value[:, :, t].to(working)  # (B, H, d)
        if padding_mask is not None:
            padded = ~padding_mask[:, None, t, None]  # (B, 1, 1)
            presynaptic = presynaptic.masked_fill(padded, 0)
            process = process.masked_fill(padded, 0)
            postsynaptic = postsynaptic.masked_fill(padded, 0)
        postsynaptic = postsynaptic * share
        hebbian_neuron = _outer(presynaptic, postsynaptic) / num_hidden_neurons
        hebbian_astro = _outer(process, postsynaptic) / num_hidden_neurons
        hebbian = hebbian + hebbian_neuron + hebbian_astro
        calcium = calcium + share * (presynaptic + process if calcium_sources == "all" else presynaptic)

    def read(t: int, hebbian: torch.Tensor, calcium: torch.Tensor) -> torch.Tensor:
        """The query of token t is answered: `(batch, heads, head_dim)`."""
        activity = phi(query[:, :, t])  # (B, H, F)
        reading = activity
        if presynaptic_target == "synapse":
            reading = activity * presynaptic_release(calcium, alpha)
        y = (reading[..., None] * hebbian).sum(-2)  # (B, H, d)
        if feedback:
            g = presynaptic_plasticity(calcium, alpha)  # (B, H, F)
            response = (activity * g).sum(-1, keepdim=True)  # C, (B, H, 1)
            y = with_feedback(y, response)
        return y

    answers = []
    final_after = None
    with full_precision(query):
        if causal:
            for t in range(max(query.shape[2], key.shape[2])):
                if documents is not None and t > 0:
                    forget(documents[:, t] != documents[:, t - 1])
                if t < key.shape[2]:
                    leak(t)
                    write(t)
                if t < query.shape[2]:
                    answers.append(read(t, hebbian, calcium))
        elif both_ways:
            from_start = []
            for t in range(key.shape[2]):
                if documents is not None and t > 0:
                    forget(documents[:, t] != documents[:, t - 1])
                leak(t)
                write(t)
                from_start.append((hebbian, calcium))
            final = hebbian, calcium
            hebbian, calcium = state_or_empty(after, phi(key[:, :, :0]), value)
            hebbian = hebbian / num_hidden_neurons
            for t in reversed(range(key.shape[2])):
                if documents is not None and t + 1 < key.shape[2]:
                    forget(documents[:, t] != documents[:, t + 1])
                if query.shape[2] > 0:
                    answers.append(read(t, hebbian + from_start[t][0], calcium + from_start[t][1]))
                write(t)
                leak(t)
            answers.reverse()
            final_after = NeuronAstrocyteState(hebbian * num_hidden_neurons, calcium)
            hebbian, calcium = final
        elif proximity is not None:
            for t in range(query.shape[2]):
                forget(torch.ones(len(query), dtype=torch.bool, device=query.device))
                for other in range(key.shape[2]):
                    write(other, share=proximity[:, t, other, None].to(working))
                answers.append(read(t, hebbian, calcium))
        elif documents is not None:
            answers = [torch.zeros_like(hebbian[:, :, 0])] * query.shape[2]
            for document in range(int(documents.max()) + 1):
                own = documents == document  # (B, N)
                forget(own.any(-1))
                for t in range(key.shape[2]):
                    write(t, own if padding_mask is None else own & padding_mask)
                for t in range(query.shape[2]):
                    answers[t] = torch.where(_to(answers[t], own[:, t]), read(t, hebbian, calcium), answers[t])
        else:
            for t in range(key.shape[2]):
                write(t)
            for t in range(query.shape[2]):
                answers.append(read(t, hebbian, calcium))
    output = torch.stack(answers, dim=2) if answers else value[:, :, :0]

    output = output.to(value.dtype)  # (B, H, N, d)
    if not output_final_state:
        return output
    state = NeuronAstrocyteState(hebbian * num_hidden_neurons, calcium)
    return output, state if final_after is None else BidirectionalState(state, final_after)


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
    presynaptic_target: str = "response",
    calcium_sources: str = "neurons",
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
    proximity: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: State | None = None,
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
    presynaptic_target: str = "response",
    calcium_sources: str = "neurons",
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    log_decay: None = None,
    proximity: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    output_final_state: Literal[True],
    document_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, NeuronAstrocyteState]: ...


@overload
def neuron_astrocyte_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    presynaptic_target: str = "response",
    calcium_sources: str = "neurons",
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    log_decay: torch.Tensor,
    proximity: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: State | None = None,
    output_final_state: Literal[True],
    document_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, State]: ...


def neuron_astrocyte_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    presynaptic_target: str = "response",
    calcium_sources: str = "neurons",
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
    proximity: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: State | None = None,
    output_final_state: bool = False,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, State]:
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
        presynaptic_target (`str`, defaults to `"response"`): where alpha acts, in the calcium "response" alone, or
            there and at the "synapse", whose weight is read times calcium^(alpha - 1).
        calcium_sources (`str`, defaults to `"neurons"`): whose activity the calcium counts, of the "neurons" alone,
            phi(k), or of "all", phi(k) + phi(r).
        feature_map (`str`, defaults to `"elu"`): phi, one of "elu" (elu(x) + 1), "relu", "exp" (saturating at
            exp(30)) and "favor" (positive random features of the softmax kernel; Kozachkov, Kastanenka and Krotov,
            PNAS 2023, and Choromanski et al., ICLR 2021).
        feedback (`bool`, defaults to `True`): whether the astrocyte divides the answer by the calcium response C.
        random_projection (`torch.Tensor`, *optional*): `(random_features, hidden_neurons)`, for "favor" only. Without
            it 256 features are drawn from a fixed seed.
        log_decay (`torch.Tensor`, *optional*): `(batch, heads, length)`, or with a batch of 1, the logarithm of the
            share f_t, at most 0, of all that was written that is left when token t comes. At padded tokens, where no
            time passes, it does not matter. Unless `causal`, the same time lies between two tokens whichever is read.
            Without it nothing is lost.
        proximity (`torch.Tensor`, *optional*): `(heads, length, length)`, for tokens that do not lie on a line: the
            share, from 0 to 1, of what token s wrote that token t finds. Not with `causal`, states or documents; time
            and memory are quadratic.
        causal (`bool`, defaults to `False`): whether a token reads only what was written up to and including itself.
        initial_state (`NeuronAstrocyteState`, *optional*): what was written before this call. With `log_decay`, unless
            `causal`, it is a `BidirectionalState`.
        output_final_state (`bool`, defaults to `False`): whether to return the state as well.
        document_ids (`torch.Tensor`, *optional*): `(batch, length)` whole numbers, for rows in which several documents
            stand one after the other: a token reads its own document only, and the synapses start anew with each. The
            document of a token that is padding does not matter. Causally the first document of a row goes on from
            `initial_state`, and the final state is that of its last; bidirectionally neither is to be had.

    Returns:
        The output, `(batch, heads, length, head_dim)`; with `output_final_state`, a tuple of the output and the
        `NeuronAstrocyteState` that holds `initial_state` and all that this call wrote. A long input can so be written
        in pieces and read once: the queries of a piece may have length 0 (write only), as may its keys (read only). A
        causal input can be split anywhere; each piece brings the astrocyte code of its own positions. With `log_decay`,
        unless `causal`, it is a `BidirectionalState`: each piece is written once from both ends, and then read where it
        stands, between the states of the others.

    Raises:
        ValueError: for shapes or values that do not fit; the message gives them.
    """
    check_inputs(query, key, value, astrocyte_code, padding_mask, alpha, feature_map, random_projection)
    check_switches(
        query,
        key,
        presynaptic_target=presynaptic_target,
        calcium_sources=calcium_sources,
        log_decay=log_decay,
        proximity=proximity,
        causal=causal,
        initial_state=initial_state,
        output_final_state=output_final_state,
    )
    keeps_states = initial_state is not None or output_final_state
    documents = checked_documents(document_ids, query, key, padding_mask, causal, keeps_states)
    output, state, _ = attend(
        query=query,
        key=key,
        value=value,
        astrocyte_code=None if astrocyte_code is None else MaterializedCode(astrocyte_code),
        padding_mask=padding_mask,
        alpha=alpha,
        presynaptic_target=presynaptic_target,
        calcium_sources=calcium_sources,
        feature_map=feature_map,
        feedback=feedback,
        random_projection=random_projection,
        log_decay=log_decay,
        proximity=proximity,
        causal=causal,
        initial_state=initial_state,
        output_final_state=output_final_state,
        document_ids=documents,
    )
    if not output_final_state:
        return output
    assert state is not None, "what has none was refused"
    return output, state


def _tensors_of(recipe: CodeRecipe | None) -> list[torch.Tensor]:
    return [] if recipe is None else [x for x in recipe if torch.is_tensor(x)]


class Attended(NamedTuple):
    """What `attend` returns.

    Attributes:
        output: `(batch, heads, length, head_dim)`.
        state: the final state; None for several documents that are not causal, and for tokens at given distances, and
            where nobody asked for it and it is not at hand.
        code_state: that of the astrocyte code after the last token; None for a code that has none.
    """

    output: torch.Tensor
    state: State | None
    code_state: Any


def attend(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: CodeRecipe | None,
    padding_mask: torch.Tensor | None,
    alpha: float,
    presynaptic_target: str = "response",
    calcium_sources: str = "neurons",
    feature_map: str,
    feedback: bool,
    random_projection: torch.Tensor | None,
    log_decay: torch.Tensor | None = None,
    proximity: torch.Tensor | None = None,
    causal: bool,
    initial_state: State | None,
    output_final_state: bool = True,
    document_ids: torch.Tensor | None = None,
    output_scale: float | torch.Tensor = 1.0,
) -> Attended:
    """`neuron_astrocyte_attention` without its checks, as a layer calls it.

    Args:
        astrocyte_code (`CodeRecipe`, *optional*): R, or what it is made of.
        feature_map (`str`): also "identity", for queries, keys and R that are features already.
        output_final_state (`bool`, defaults to `True`): whether the state is asked for; without it, and without an
            initial one, a call has less to do.
        document_ids (`torch.Tensor`, *optional*): as of `number_documents`.
        output_scale (`float` or `torch.Tensor`): factor of the output, `(batch, 1, length or 1, 1)`. If it is the same
            for all tokens of a sequence, it costs nothing: the Hebbian weights are scaled instead.
    """
    num_hidden_neurons, output_dtype = query.shape[-1], value.dtype
    states = tensors_of_state(initial_state)
    if working_dtype(query, key, value, *states) == torch.float64:
        query, key, value = query.double(), key.double(), value.double()
        if isinstance(astrocyte_code, MaterializedCode):
            astrocyte_code = astrocyte_code._replace(code=astrocyte_code.code.double())
    if log_decay is not None:
        log_decay = log_decay.to(working_dtype(key)).expand(key.shape[0], -1, -1)
        if padding_mask is not None:
            log_decay = log_decay.masked_fill(~padding_mask[:, None], 0)

    # what is to be computed, and by which backend
    inputs: dict[str, Any] = {
        "padding_mask": padding_mask,
        "document_ids": document_ids,
        "log_decay": log_decay,
        "proximity": proximity,
        "alpha": alpha,
        # where they make no difference, as every backend takes them
        "presynaptic_target": presynaptic_target if alpha != 1 else "response",
        "calcium_sources": calcium_sources if astrocyte_code is not None else "neurons",
        "feedback": feedback,
        "output_dtype": output_dtype,
    }
    passes = _passes(query, key, document_ids, log_decay, proximity, causal)
    kernels_apply_phi = feature_map == "identity" or FEATURE_MAPS[feature_map].in_kernels
    # a causal call that only writes, or only reads, makes R first: write mode's own code would look both ways
    if kernels_apply_phi and not (causal and passes[0].name == "write_mode"):
        passes[0] = fused_pass(passes[0], astrocyte_code)
    tensors = [query, key, value, *states, *_tensors_of(astrocyte_code)]
    tensors += [x for x in (log_decay, proximity) if x is not None]
    backend = choose_backend(passes, inputs, tensors)

    with full_precision(query):
        passes[0], of_code, code_state = resolve_code(
            astrocyte_code,
            passes[0],
            backend,
            key=key.to(working_dtype(key)),
            causal=causal,
            padding_mask=padding_mask,
            document_ids=document_ids,
        )
        if not kernels_apply_phi:
            query, key, of_code["astrocyte_code"] = _features(
                query, key, of_code["astrocyte_code"], feature_map, random_projection
            )
            feature_map = "identity"
        inputs.update(of_code, query=query, key=key, value=value, feature_map=feature_map)
        state: State | None
        if len(passes) == 1:
            if query.shape[2] == 0:  # it only writes; whatever is asked, the answer is dropped
                inputs["query"] = key
            inputs["scale"] = (1.0 if torch.is_tensor(output_scale) else output_scale) / num_hidden_neurons
            before, after = sides_of(initial_state)
            has_state = (causal or log_decay is not None) and (initial_state is not None or output_final_state)
            inputs.update(dict.fromkeys(passes[0].states))
            if has_state:
                inputs["hebbian"], inputs["calcium"] = state_or_empty(before, key, value)
                if not causal:
                    inputs["later_hebbian"], inputs["later_calcium"] = state_or_empty(after, key, value)
            results = run_pass(passes[0], backend, inputs)
            output, state = results["output"][:, :, : query.shape[2]], None
            if has_state:
                state = NeuronAstrocyteState(results["hebbian"], results["calcium"])
                if not causal:
                    later = NeuronAstrocyteState(results["later_hebbian"], results["later_calcium"])
                    state = BidirectionalState(state, later)
            if torch.is_tensor(output_scale):
                # as (b, n, h, d), its order in memory: a compiled graph would leave it, and copy it back
                scaled = output.transpose(1, 2) * output_scale.transpose(1, 2)
                output = scaled.transpose(1, 2).to(output_dtype)
        else:
            results = run_pass(passes[0], backend, inputs)
            hebbian, calcium = results["hebbian"], results["calcium"]
            if initial_state is not None:
                assert not isinstance(initial_state, BidirectionalState)
                so_far = checked_state(initial_state, key, value)
                hebbian, calcium = so_far.hebbian + hebbian, so_far.calcium + calcium
            state = NeuronAstrocyteState(hebbian, calcium)
            weights = released_weights(hebbian, calcium, alpha, presynaptic_target)
            inputs["hebbian"] = weights * (output_scale / num_hidden_neurons)
            inputs["plasticity"] = presynaptic_plasticity(calcium, alpha) if feedback else None
            output = run_pass(passes[1], backend, inputs)["output"]
        if code_state is None and astrocyte_code is not None:
            code_state = astrocyte_code.state_after(results)
    return Attended(output, state, code_state)


def _passes(
    query: torch.Tensor,
    key: torch.Tensor,
    document_ids: torch.Tensor | None,
    log_decay: torch.Tensor | None,
    proximity: torch.Tensor | None,
    causal: bool,
) -> list[Pass]:
    """The passes that a call consists of, with R as a tensor."""
    writes, reads = key.shape[2] > 0, query.shape[2] > 0
    if proximity is not None:
        return [PASSES["write_and_read_at_distances"]]
    if log_decay is not None and not causal:
        return [PASSES["write_and_read_both_ways"]]
    if causal and writes and (reads or log_decay is not None) or causal and document_ids is not None:
        return [PASSES["write_and_read_causally"]]
    if document_ids is not None:
        return [PASSES["write_and_read_documents"]]
    return [PASSES["write_mode"], PASSES["read_mode"]]


def neuron_astrocyte_attention_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    presynaptic_target: str = "response",
    calcium_sources: str = "neurons",
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
    proximity: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: State | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """The attention map that `neuron_astrocyte_attention` applies without ever building it, for looking at.

    Entry (t, s) is P_t phi(q_t) (phi(k_s) + phi(r_s)) / m, times the share of it that is left, so that the map times
    the values is the output. Rows sum to 1/m where the calcium counts all that is written and alpha is 1 or acts at the
    synapse, and only there. Arguments as for `neuron_astrocyte_attention`. What `initial_state` holds is counted in the
    calcium but has no columns: its tokens are no longer known one by one.

    Returns:
        `torch.Tensor` of shape `(batch, heads, length, length)` in the dtype of `query`. Memory is quadratic.
    """
    check_inputs(query, key, key, astrocyte_code, padding_mask, alpha, feature_map, random_projection)
    check_switches(
        query,
        key,
        presynaptic_target=presynaptic_target,
        calcium_sources=calcium_sources,
        log_decay=log_decay,
        proximity=proximity,
        causal=causal,
        initial_state=initial_state,
        output_final_state=False,
    )
    documents = checked_documents(document_ids, query, key, padding_mask, causal, initial_state is not None)
    num_hidden_neurons = query.shape[-1]
    with full_precision(query):
        if not FEATURE_MAPS[feature_map].in_kernels:
            query, key, astrocyte_code = _features(query, key, astrocyte_code, feature_map, random_projection)
            feature_map = "identity"
        imprint, source = imprints(key, astrocyte_code, padding_mask, feature_map, calcium_sources)
        activity = phi(query.to(imprint.dtype), feature_map)
        share = shares(log_decay, proximity, padding_mask, documents, causal, imprint)  # (B or 1, H or 1, N, N)
        calcium = share @ source
        before, after = sides_of(initial_state)
        elapsed = None if log_decay is None else _elapsed(log_decay, padding_mask)
        for state, is_later in ((before, False), (after, True)):
            if state is None:
                continue
            found = state.calcium[:, :, None].to(calcium.dtype)
            if elapsed is not None:
                left = (elapsed[..., -1:] - elapsed if is_later else elapsed).exp()
                found = found * left[..., None].to(calcium.dtype)
            if documents is not None:  # the first goes on from it
                found = found * (documents == documents[:, :1])[:, None, :, None]
            calcium = calcium + found
        weights = released(activity, calcium, alpha, presynaptic_target) @ imprint.transpose(-1, -2) * share
        weights = weights / num_hidden_neurons  # (B, H, N, N)
        if feedback:
            weights = with_feedback(weights, calcium_response(activity, calcium, alpha))
    return weights.to(query.dtype)


def _elapsed(log_decay: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
    """As of `time_elapsed`, over a whole text at once: in float64, where the device has it, for the differences between
    neighbours far from the beginning."""
    log_decay = log_decay.to(torch.float32 if log_decay.device.type == "mps" else torch.float64)
    if padding_mask is not None:
        log_decay = log_decay.masked_fill(~padding_mask[:, None], 0)
    return time_elapsed(log_decay)


def shares(
    log_decay: torch.Tensor | None,
    proximity: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    documents: torch.Tensor | None,
    causal: bool,
    like: torch.Tensor,
) -> torch.Tensor:
    """Of what token s wrote, the share that token t finds: `(batch or 1, heads or 1, length, length)`."""
    length = like.shape[2]
    share = like.new_ones(1, 1, length, length)
    if log_decay is not None:
        elapsed = _elapsed(log_decay, padding_mask)
        share = (-(elapsed[..., :, None] - elapsed[..., None, :]).abs()).to(like.dtype).exp()
    if proximity is not None:
        share = proximity.to(like.dtype)
    if documents is not None:
        share = share * (documents[:, None, :, None] == documents[:, None, None, :]).to(like.dtype)
    return share.tril() if causal else share


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
