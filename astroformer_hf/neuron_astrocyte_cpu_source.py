# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The C++ source of `neuron_astrocyte_cpu.py`, which explains how it is built and called.

It is text in a Python module because only Python modules travel with a checkpoint. What C++ and Python must agree on,
the fields of the arguments, the numbers of the feature maps and the constants, is not written in it twice:
`generate_source` puts it in from Python.
"""

import ctypes
from collections.abc import Sequence
from string import Template

from .cpu_source import INCLUDES, common_source, struct_fields


def generate_source(
    *, arguments: type[ctypes.Structure], feature_maps: Sequence[str], calcium_floor: float, exp_ceiling: float
) -> str:
    """The complete C++ source.

    Args:
        arguments (`type[ctypes.Structure]`): what every function takes. Its numbers and pointers to float32 become
            fields of the C++ struct `Arguments`; a field that is itself a structure `_Name` has the type `Name`, which
            the source defines.
        feature_maps (`Sequence[str]`): the names of the feature maps, in the order of their numbers in
            `arguments.feature_map`.
        calcium_floor (`float`): the smallest calcium that counts.
        exp_ceiling (`float`): where the feature map "exp" saturates.
    """
    return Template(TEMPLATE).substitute(
        includes=INCLUDES,
        common=common_source("float"),
        feature_maps=", ".join(name.upper() for name in feature_maps),
        calcium_floor=_float_literal(calcium_floor),
        exp_ceiling=_float_literal(exp_ceiling),
        fields=struct_fields(arguments, "float"),
    )


def _float_literal(value: float) -> str:
    return f"{float(value)!r}f"


TEMPLATE = r"""
// Letters in comments: B batch, H heads, N tokens, F features (phi of the hidden neurons), d head size. A p after a
// size in a name or shape, as in Fp, means that it is padded to whole vectors.

$includes
namespace {

$common
// ---- what it needs beside them -------------------------------------------------------------------------------------

enum { BLOCK = 48 };  // tokens that are taken through a pass together, while they lie in the nearest cache

// Natural logarithm of a positive normal number.
inline Vector logarithm(Vector x) {
    // x = 2^n (1 + r) with 1 + r in [sqrt(1/2), sqrt(2)); 0x3f3504f3 is sqrt(1/2)
    const IntegerVector bits = (IntegerVector)x - 0x3f3504f3;
    const Vector n = __builtin_convertvector(bits >> 23, Vector);
    const Vector r = (Vector)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
    Vector y = r * 7.0376836292e-2f - 1.1514610310e-1f;
    y = y * r + 1.1676998740e-1f;
    y = y * r - 1.2420140846e-1f;
    y = y * r + 1.4249322787e-1f;
    y = y * r - 1.6668057665e-1f;
    y = y * r + 2.0000714765e-1f;
    y = y * r - 2.4999993993e-1f;
    y = y * r + 3.3333331174e-1f;
    y = (y * r - 0.5f) * (r * r) + r;
    return y + n * 0.693147181f;
}

// ---- what Python passes --------------------------------------------------------------------------------------------

struct Mask {  // (B, N), not 0 where a token is real; no data if all are
    const uint8_t* data;
    int64_t batch, row;
    bool is_real(int64_t b, int64_t t) const { return !data || data[b * batch + t * row]; }
};

struct Documents {  // (B, N), the number of each token's document, contiguous along a row; no data if a row is one
    const int64_t* data;
    int64_t batch;
    bool starts(int64_t b, int64_t t) const {
        return t == 0 || (data && data[b * batch + t] != data[b * batch + t - 1]);
    }
    int64_t end(int64_t b, int64_t t, int64_t length) const {  // of the document that starts at t
        if (!data) return length;
        do t++;
        while (t < length && !starts(b, t));
        return t;
    }
};

// Of every function; each uses some. States are contiguous: hebbian, d_hebbian and end_hebbian (B, H, F, d), calcium
// and plasticity (B, H, F), where `end_` means after the last token and `d_` the gradient. Of the astrocyte code
// "activity": weight (H, F, F), bias (H, F), and the sums of the tokens before, total (B, H, F) and count (B).
// Of synapses that leak: log_decay and d_log_decay (B, H, N). Read in both directions, `later_` means of the tokens
// after these, `end_later_` before the first of them, and the gradients of the `end_` states are `d_end_`. Where tokens
// do not lie on a line: proximity (H, N, N).
struct Arguments {
$fields

    bool makes_code() const { return weight; }
    // whether tokens read by `TokenReader`; if not, there is a shorter way
    bool reads_otherwise() const { return at_synapse || log_decay; }
    int64_t all_heads() const { return batch * heads; }  // of all sequences
    // whether there is a state before the tokens, and one asked for after them; if not, nothing came before
    bool has_states() const { return hebbian; }
    // whether the tokens on either side of the border before token t have to do with each other
    bool hands_on(int64_t b, int64_t t) const { return t == 0 || t == length ? has_states() : !documents.starts(b, t); }
};

// The equations are those of `attention_operation.py`.
enum FeatureMap { $feature_maps };
const float CALCIUM_FLOOR = $calcium_floor, EXP_CEILING = $exp_ceiling;

// ---- the equations, element by element -----------------------------------------------------------------------------

// phi(x). Comparisons are such that NaN stays NaN.
template <FeatureMap MAP>
inline Vector phi(Vector x) {
    const Vector zero = {};
    if (MAP == ELU) return exponential(x > zero ? zero : x) + (x > zero ? x : zero);
    if (MAP == RELU) return x < zero ? zero : x;
    if (MAP == EXP) return exponential(x > EXP_CEILING ? broadcast(EXP_CEILING) : x);
    return x;
}

// phi of the last n values of a row, and 0 (not phi(0)) in the other lanes.
template <FeatureMap MAP>
inline Vector phi_tail(const float* p, int64_t n) {
    return mask_tail(phi<MAP>(load_partial(p, n)), n);
}

// d phi(x) / dx, given x and phi(x).
template <FeatureMap MAP>
inline Vector phi_derivative(Vector x, Vector activity) {
    const Vector zero = {}, one = broadcast(1.0f);
    if (MAP == ELU) return x > zero ? one : activity;
    if (MAP == RELU) return x > zero ? one : zero;
    if (MAP == EXP) return x > EXP_CEILING ? zero : activity;
    return one;
}

// g = z^alpha of the calcium z and, unless `derivative` is null, dg / dz = alpha z^(alpha - 1).
inline void presynaptic_plasticity(const float* calcium, float alpha, int64_t n, float* plasticity,
                                          float* derivative) {
    for (int64_t j = 0; j < n; j += LANES) {
        const Vector z = load(calcium + j), zero = {}, floored = z < CALCIUM_FLOOR ? broadcast(CALCIUM_FLOOR) : z;
        const Vector g = alpha == 1 ? z : exponential(alpha * logarithm(floored));
        store(plasticity + j, z > CALCIUM_FLOOR ? g : z != z ? z : zero);
        if (derivative) store(derivative + j, z > CALCIUM_FLOOR ? alpha * g / floored : zero);
    }
}

// kappa = z^(alpha - 1), what a synapse releases in proportion to its weight; g = kappa z. 0 where there is no calcium.
inline Vector presynaptic_release(Vector z, float alpha) {
    const Vector zero = {}, one = broadcast(1.0f), floored = z < CALCIUM_FLOOR ? broadcast(CALCIUM_FLOOR) : z;
    const Vector release = alpha == 1 ? one : exponential((alpha - 1) * logarithm(floored));
    return z > CALCIUM_FLOOR ? release : z != z ? z : zero;
}

// P = 1 / C, 0 where the process found no calcium; NaN stays NaN.
inline float astrocyte_feedback(float response) {
    return response > CALCIUM_FLOOR || response != response ? 1 / response : 0;
}

// ---- blocks of tokens, between tensors and the cache; there their rows are padded with zeros to whole vectors -------

struct Sizes {
    const Arguments& args;
    const int64_t F, d, Fp, dp;
    explicit Sizes(const Arguments& args)
        : args(args), F(args.features), d(args.head_dim), Fp(padded(F)), dp(padded(d)) {}
};

struct TokenRange {  // tokens first to last, exclusive, of head h of sequence b
    int64_t b, h, first, last;
};

enum Padding { KEEP_PADDING, ZERO_PADDING };  // whether rows of tokens that are not real become 0

struct TokenBlock : Sizes {
    const int64_t b, h, start, rows;

    TokenBlock(const Arguments& args, const TokenRange& range, int64_t start)
        : Sizes(args), b(range.b), h(range.h), start(start), rows(min(BLOCK, range.last - start)) {}

    bool is_real(int64_t t) const { return args.mask.is_real(b, start + t); }

    // y (rows x Fp) = (or +=) phi(x)
    template <Store STORE = OVERWRITE>
    void load_activity(const View& x, Padding padding, float* y) const {
        switch ((FeatureMap)args.feature_map) {
            case ELU: return load_activity_of<ELU, STORE>(x, padding, y);
            case RELU: return load_activity_of<RELU, STORE>(x, padding, y);
            case EXP: return load_activity_of<EXP, STORE>(x, padding, y);
            case IDENTITY: return load_activity_of<IDENTITY, STORE>(x, padding, y);
        }
    }

    template <FeatureMap MAP, Store STORE>
    void load_activity_of(const View& x, Padding padding, float* y) const {
        for (int64_t t = 0; t < rows; t++, y += Fp) {
            if (padding == ZERO_PADDING && !is_real(t)) {
                if (STORE == OVERWRITE) set_zero(y, Fp);
                continue;
            }
            const float* row = x.at(b, h, start + t);
            if (x.row > F) prefetch_row(row + BLOCK * x.row, F);
            for (int64_t j = 0; j < F; j += LANES) {
                const Vector activity = j + LANES <= F ? phi<MAP>(load(row + j)) : phi_tail<MAP>(row + j, F - j);
                store(y + j, STORE == ACCUMULATE ? load(y + j) + activity : activity);
            }
        }
    }

    // d_x = (or +=) the gradient of x, from y = phi(x) and its gradient d_y (rows x Fp)
    void store_gradient(const View& x, Padding padding, const float* y, const float* d_y, const View& d_x,
                        Store how = OVERWRITE) const {
        switch ((FeatureMap)args.feature_map) {
            case ELU: return store_gradient_of<ELU>(x, padding, y, d_y, d_x, how);
            case RELU: return store_gradient_of<RELU>(x, padding, y, d_y, d_x, how);
            case EXP: return store_gradient_of<EXP>(x, padding, y, d_y, d_x, how);
            case IDENTITY: return store_gradient_of<IDENTITY>(x, padding, y, d_y, d_x, how);
        }
    }

    template <FeatureMap MAP>
    void store_gradient_of(const View& x, Padding padding, const float* y, const float* d_y, const View& d_x,
                           Store how) const {
        for (int64_t t = 0; t < rows; t++, y += Fp, d_y += Fp) {
            float* d_row = d_x.at(b, h, start + t);
            if (padding == ZERO_PADDING && !is_real(t)) {
                if (how == OVERWRITE) set_zero(d_row, F);
                continue;
            }
            const float* row = x.at(b, h, start + t);
            for (int64_t j = 0; j < F; j += LANES) {
                Vector gradient = load(d_y + j) * phi_derivative<MAP>(load_partial(row + j, F - j), load(y + j));
                if (how == ACCUMULATE) gradient += load_partial(d_row + j, F - j);
                store_partial(d_row + j, gradient, F - j);
            }
        }
    }

    // y (rows x dp) = x, of the head size
    void load_rows(const View& x, Padding padding, float* y) const {
        for (int64_t t = 0; t < rows; t++, y += dp) {
            if (padding == ZERO_PADDING && !is_real(t)) {
                set_zero(y, dp);
                continue;
            }
            const float* row = x.at(b, h, start + t);
            if (x.row > d) prefetch_row(row + BLOCK * x.row, d);
            for (int64_t j = 0; j < d; j += LANES) store(y + j, load_partial(row + j, d - j));
        }
    }

    // The same rows where they lie if they need neither columns nor tokens cleared, else in `buffer`.
    Matrix view_rows(const View& x, Padding padding, float* buffer) const {
        if (d != dp || (padding == ZERO_PADDING && args.mask.data)) {
            load_rows(x, padding, buffer);
            return {buffer, dp};
        }
        if (x.row > d)
            for (int64_t t = 0; t < rows; t++) prefetch_row(x.at(b, h, start + t + BLOCK), d);
        return {x.at(b, h, start), x.row};
    }

    void store_rows(const float* y, const View& x) const {
        for (int64_t t = 0; t < rows; t++, y += dp)
            for (int64_t j = 0; j < d; j += LANES) store_partial(x.at(b, h, start + t) + j, load(y + j), d - j);
    }

    // phi(K) + phi(R), which values are written with, and phi(K) alone, which calcium is the sum of
    void load_imprint(const View& code, float* imprint, float* presynaptic) const {
        load_activity(args.key, ZERO_PADDING, presynaptic);
        copy(imprint, presynaptic, rows * Fp);
        if (code.data) load_activity<ACCUMULATE>(code, ZERO_PADDING, imprint);
    }
};

// c (m x n) = a b, where b (k x n), a state or its gradient, may hold nothing yet.
inline void read_state(int64_t m, int64_t k, int64_t n, Matrix a, Matrix b, MutableMatrix c) {
    if (!is_zero(b.data, k * b.stride)) return matmul<OVERWRITE>(m, k, n, a, b, c);
    for (int64_t i = 0; i < m; i++) set_zero(c.data + i * c.stride, n);
}

// ---- tasks ---------------------------------------------------------------------------------------------------------

// A pass over sequences that are cut into `splits` parts of about equal numbers of whole blocks has a task for each
// head of each part.
inline TokenRange range_of_task(const Arguments& args, int64_t task) {
    const int64_t head = task % args.all_heads(), part = task / args.all_heads();
    const int64_t blocks = (args.length + BLOCK - 1) / BLOCK;
    return {head / args.heads, head % args.heads, min(blocks * part / args.splits * BLOCK, args.length),
            min(blocks * (part + 1) / args.splits * BLOCK, args.length)};
}

// ---- the astrocyte code R ------------------------------------------------------------------------------------------

enum Direction { FORWARDS, BACKWARDS };  // through a sequence

// R is a tensor, or there is none, or it is "activity", which is made block by block as it is needed: R = r' K W + b,
// where r' K is the mean of the keys of the real tokens before and after a token (causally, before it), at the weight
// decay^(number of real tokens between). At padded tokens R is b.
//
// Both sums, over the tokens before and over those after, are recurrences. The one after is run ahead for a whole
// document (`key_sums`), the one before goes along with the blocks, which must be asked for in order (`running_sum`).
// All but `code_of` and `gradient_of` do nothing if R is not "activity".
struct AstrocyteCode : Sizes {
    const int64_t N;
    const float decay;
    int64_t b = 0, h = 0;
    float *running_sum = nullptr, *d_bias = nullptr, *normalizers = nullptr, *key_sums = nullptr;
    float *weight = nullptr, *weight_transposed = nullptr, *d_weight = nullptr;
    float *means = nullptr, *code = nullptr, *d_code = nullptr;
    float* codes = nullptr;  // R of all tokens, if it is kept; their means are then in `key_sums`

    AstrocyteCode(const Arguments& args, Scratch& scratch, bool keeps = false)
        : Sizes(args), N(args.length), decay(args.decay) {
        if (!args.makes_code()) return;
        running_sum = scratch.take(Fp), d_bias = scratch.take(Fp);
        normalizers = scratch.take(N);    // 1 / the sum of the weights of each real token's neighbours, 0 without any
        key_sums = scratch.take(N * Fp);  // forward, sums of the keys after each token; backward, gradients of its sums
        weight = scratch.take(Fp * Fp), weight_transposed = scratch.take(Fp * Fp), d_weight = scratch.take(Fp * Fp);
        means = scratch.take(BLOCK * Fp), code = scratch.take(BLOCK * Fp), d_code = scratch.take(BLOCK * Fp);
        if (keeps) codes = scratch.take(N * Fp);
    }

    // A buffer of rows as a tensor of which row `start` is the first in it.
    View view(float* buffer, int64_t start) const { return {buffer - start * Fp, 0, 0, Fp}; }

    // y_t = (or +=) the running sum of the real tokens passed so far, which then becomes decay * sum + x_t.
    template <Store STORE>
    void scan(const View& x, const View& y, int64_t first, int64_t last, Direction direction) const {
        for (int64_t step = first; step < last; step++) {
            const int64_t t = direction == BACKWARDS ? last - 1 - (step - first) : step;
            if (!args.mask.is_real(b, t)) continue;
            const float* from = x.at(b, h, t);
            float* to = y.at(b, h, t);
            if (x.row > Fp) prefetch_row(from + (direction == BACKWARDS ? -16 : 16) * x.row, F);
            for (int64_t j = 0; j < F; j += LANES) {
                const Vector so_far = load(running_sum + j), next = load_partial(from + j, F - j);
                store_partial(to + j, STORE == ACCUMULATE ? so_far + load_partial(to + j, F - j) : so_far, F - j);
                store(running_sum + j, so_far * decay + next);
            }
        }
    }

    // The running sum goes on from `sums`, or from 0.
    void resume(const float* sums) {
        if (!args.makes_code()) return;
        if (sums) copy(running_sum, sums, F);
        else set_zero(running_sum, Fp);
    }

    // From here on, R is that of a head. Where rows hold several documents, `begin_document` comes before each.
    void begin_head(int64_t batch, int64_t head) {
        if (!args.makes_code()) return;
        b = batch, h = head;
        load_matrix(args.weight + h * F * F, F, F, {weight, Fp});
        if (!args.documents.data) prepare_document(0, N);
    }

    void begin_document(int64_t first, int64_t last) {
        if (args.makes_code() && args.documents.data) prepare_document(first, last);
    }

    // Prepares R of the tokens first to last, which see no others but, causally, those before the row.
    void prepare_document(int64_t first, int64_t last) {
        const bool goes_on = args.causal && first == 0;
        float count = goes_on ? args.count[b] : 0;
        for (int64_t t = first; t < last; t++) {
            normalizers[t] = count;
            if (args.mask.is_real(b, t)) count = decay * count + 1;
        }
        if (args.end_count && h == 0) args.end_count[b] = count;  // the same for all heads
        count = 0;
        for (int64_t t = last - 1; t >= first; t--) {
            if (!args.causal) normalizers[t] += count;
            normalizers[t] = normalizers[t] > 0 ? 1 / normalizers[t] : 0;
            if (args.mask.is_real(b, t)) count = decay * count + 1;
        }
        resume(nullptr);
        if (!args.causal) scan<OVERWRITE>(args.key, view(key_sums, 0), first, last, BACKWARDS);
        resume(goes_on ? args.total + (b * args.heads + h) * F : nullptr);
    }

    // R of a block; if it is made, the block must be the next one
    View code_of(const TokenBlock& block) {
        if (!args.makes_code()) return args.code;
        float *sums = key_sums + block.start * Fp, *means = codes ? sums : this->means;
        float* code = codes ? codes + block.start * Fp : this->code;
        for (int64_t t = 0; t < block.rows; t++)
            if (args.causal || !block.is_real(t)) set_zero(means + t * Fp, Fp);
            else if (means != sums) copy(means + t * Fp, sums + t * Fp, Fp);
        scan<ACCUMULATE>(args.key, view(means, block.start), block.start, block.start + block.rows, FORWARDS);
        for (int64_t t = 0; t < block.rows; t++) {
            scale_row(means + t * Fp, Fp, normalizers[block.start + t]);
            copy(code + t * Fp, args.bias + h * F, F);
        }
        matmul<ACCUMULATE>(block.rows, F, Fp, {means, Fp}, {weight, Fp}, {code, Fp});
        return view(code, block.start);
    }

    // R, if it is kept
    View kept_code() const { return args.makes_code() ? view(codes, 0) : args.code; }

    // where the gradient of R of a block goes
    View gradient_of(const TokenBlock& block) const {
        return args.makes_code() ? view(d_code, block.start) : args.d_code;
    }

    void clear_gradients() {
        if (!args.makes_code()) return;
        transpose(F, F, {weight, Fp}, {weight_transposed, Fp});
        set_zero(d_weight, Fp * Fp), set_zero(d_bias, Fp);
    }

    // Takes up the gradient of R of the block that was made last, or of one of which R is kept: in d_weight, d_bias and
    // `key_sums`, from where `scan` takes it to the keys.
    void accumulate_gradients(const TokenBlock& block) {
        if (!args.makes_code()) return;
        for (int64_t t = 0; t < block.rows; t++) add_row(d_bias, d_code + t * Fp, Fp);
        float* d_sums = key_sums + block.start * Fp;
        const float* means = codes ? d_sums : this->means;
        matmul<ACCUMULATE, TRANSPOSED>(F, block.rows, Fp, {means, Fp}, {d_code, Fp}, {d_weight, Fp});
        matmul<OVERWRITE>(block.rows, F, Fp, {d_code, Fp}, {weight_transposed, Fp}, {d_sums, Fp});
        for (int64_t t = 0; t < block.rows; t++) scale_row(d_sums + t * Fp, Fp, normalizers[block.start + t]);
    }

    // What a key adds to the sums of its neighbours on one side, the gradients of these sums add to its own: the
    // running sum is now one of gradients.
    void add_to_key_gradients(int64_t first, int64_t last, Direction direction) const {
        scan<ACCUMULATE>(view(key_sums, 0), args.d_key, first, last, direction);
    }

    void store_gradients() const {
        if (!args.makes_code()) return;
        store_matrix({d_weight, Fp}, F, F, args.d_weight + (b * args.heads + h) * F * F);
        copy(args.d_bias + (b * args.heads + h) * F, d_bias, F);
    }
};

// ---- how a token reads, wherever alpha acts ------------------------------------------------------------------------
//
//     kappa = z^(alpha - 1)      C = phi(q) (kappa * z)      P = 1 / C      without feedback P is 1
//     u = scale P (phi(q) * kappa), its reading; without the kappa where alpha acts in the response alone
//     y = u H
//
// With G = dy H^T, the gradient of the reading,
//
//     dC = -P u G                dphi(q) = scale P (kappa * G) + dC (kappa * z)
//     dz = alpha dC phi(q) * kappa + (alpha - 1) u * G / z, the latter only where there is a kappa in u
struct TokenReader : Sizes {
    const float alpha, scale;
    const bool at_synapse, has_calcium;
    explicit TokenReader(const Arguments& args)
        : Sizes(args),
          alpha(args.alpha),
          scale(args.scale),
          at_synapse(args.at_synapse),
          has_calcium(args.feedback || args.at_synapse) {}

    // u and kappa (Fp each) from phi(q), which `reading` may take the place of, and z; returns P.
    float read(const float* activity, const float* calcium, float* release, float* reading) const {
        Vector response = {};
        for (int64_t j = 0; j < Fp; j += LANES) {
            const Vector a = load(activity + j);
            if (has_calcium) {
                const Vector z = load(calcium + j), kappa = presynaptic_release(z, alpha);
                response += a * kappa * z;
                store(release + j, kappa);
                store(reading + j, at_synapse ? a * kappa : a);
            } else {
                store(reading + j, a);
            }
        }
        const float p = args.feedback ? astrocyte_feedback(sum(response)) : 1;
        scale_row(reading, Fp, scale * p);
        return p;
    }

    // dphi(q) in the place of G, and dz. Products are such that what is small meets what is large first.
    void differentiate(const float* activity, const float* calcium, const float* release, const float* reading,
                       float p, float* d_activity, float* d_calcium) const {
        const float along = dot(reading, d_activity, Fp), factor = scale * p;
        const float d_response = args.feedback ? -p * along : 0, d_plasticity = args.feedback ? -alpha * along : 0;
        for (int64_t j = 0; j < Fp; j += LANES) {
            const Vector gradient = load(d_activity + j);
            if (!has_calcium) {
                store(d_activity + j, gradient * factor), store(d_calcium + j, Vector{});
                continue;
            }
            const Vector z = load(calcium + j), kappa = load(release + j);
            Vector d_z = (load(activity + j) * p) * kappa * d_plasticity, d_reading = gradient * factor;
            if (at_synapse) {
                const Vector floored = z < CALCIUM_FLOOR ? broadcast(CALCIUM_FLOOR) : z;
                d_z += (alpha - 1) * (load(reading + j) * gradient / floored);
                d_reading *= kappa;
            }
            store(d_activity + j, d_reading + kappa * z * d_response);
            store(d_calcium + j, d_z);
        }
    }
};

// ---- write mode ----------------------------------------------------------------------------------------------------
//
//     H = (phi(K) + phi(R))^T V      H_neuron and H_astro in one; the 1/m is part of the scale that it is read with
//     z = sum_t phi(k_t)             calcium, or with all sources of phi(k_t) + phi(r_t)
//
//     dV = (phi(K) + phi(R)) dH      dphi(R) = V dH^T      dphi(K) = V dH^T + dz      with all sources dphi(R) likewise

struct WriteForward : Sizes {
    float *hebbian, *calcium;  // H (Fp x dp) and z (Fp)
    float *presynaptic, *value;
    AstrocyteCode code;

    WriteForward(const Arguments& args, Scratch& scratch)
        : Sizes(args),
          hebbian(scratch.take(Fp * dp)),
          calcium(scratch.take(Fp)),
          presynaptic(scratch.take(BLOCK * Fp)),
          value(scratch.take(BLOCK * dp)),
          code(args, scratch) {}

    void forward(const TokenRange& range) {
        set_zero(hebbian, Fp * dp), set_zero(calcium, Fp);
        for (int64_t start = range.first; start < range.last; start += BLOCK) {
            const TokenBlock block(args, range, start);
            const View r = code.code_of(block);
            float* imprint = presynaptic;  // phi(K), and when calcium has seen it, phi(K) + phi(R)
            block.load_activity(args.key, ZERO_PADDING, presynaptic);
            if (!args.all_sources) add_calcium(presynaptic, block.rows);
            if (r.data) block.load_activity<ACCUMULATE>(r, ZERO_PADDING, imprint);
            if (args.all_sources) add_calcium(imprint, block.rows);
            const Matrix v = block.view_rows(args.value, ZERO_PADDING, value);
            matmul<ACCUMULATE, TRANSPOSED>(F, block.rows, dp, {imprint, Fp}, v, {hebbian, dp});
        }
    }

    // The sum of a block is taken first: what one token adds to that of a long text is mostly rounded off.
    void add_calcium(const float* source, int64_t rows) {
        for (int64_t j = 0; j < Fp; j += LANES) {
            Vector sum = {};
            for (int64_t t = 0; t < rows; t++) sum += load(source + t * Fp + j);
            store(calcium + j, load(calcium + j) + sum);
        }
    }
};

struct WriteBackward : WriteForward {
    float *d_hebbian, *d_hebbian_transposed, *d_calcium;
    float *process, *d_imprint, *d_presynaptic, *d_value;

    WriteBackward(const Arguments& args, Scratch& scratch)
        : WriteForward(args, scratch),
          d_hebbian(scratch.take(Fp * dp)),
          d_hebbian_transposed(scratch.take(dp * Fp)),
          d_calcium(scratch.take(Fp)),
          process(scratch.take(BLOCK * Fp)),
          d_imprint(scratch.take(BLOCK * Fp)),
          d_presynaptic(scratch.take(BLOCK * Fp)),
          d_value(scratch.take(BLOCK * dp)) {}

    // From d_hebbian and d_calcium; `how` says whether a code that is a tensor has gradients already.
    void backward(const TokenRange& range, Store how) {
        transpose(F, d, {d_hebbian, dp}, {d_hebbian_transposed, Fp});
        code.resume(nullptr);
        for (int64_t start = range.first; start < range.last; start += BLOCK) {
            const TokenBlock block(args, range, start);
            block.load_rows(args.value, ZERO_PADDING, value);
            matmul<OVERWRITE>(block.rows, d, Fp, {value, dp}, {d_hebbian_transposed, Fp}, {d_imprint, Fp});
            block.load_activity(args.key, ZERO_PADDING, presynaptic);
            for (int64_t t = 0; t < block.rows; t++)
                for (int64_t j = 0; j < Fp; j += LANES)
                    store(d_presynaptic + t * Fp + j, load(d_imprint + t * Fp + j) + load(d_calcium + j));
            block.store_gradient(args.key, ZERO_PADDING, presynaptic, d_presynaptic, args.d_key);
            float* imprint = presynaptic;
            const View r = code.code_of(block);
            if (r.data) {
                block.load_activity(r, ZERO_PADDING, process);
                const float* d_process = args.all_sources ? d_presynaptic : d_imprint;
                block.store_gradient(r, ZERO_PADDING, process, d_process, code.gradient_of(block), how);
                code.accumulate_gradients(block);
                for (int64_t t = 0; t < block.rows; t++) add_row(imprint + t * Fp, process + t * Fp, Fp);
            }
            matmul<OVERWRITE>(block.rows, F, dp, {imprint, Fp}, {d_hebbian, dp}, {d_value, dp});
            block.store_rows(d_value, args.d_value);  // 0 at padded tokens, whose imprint is 0
        }
        if (!args.makes_code()) return;
        code.resume(nullptr);
        code.add_to_key_gradients(range.first, range.last, FORWARDS);
        code.resume(nullptr);
        code.add_to_key_gradients(range.first, range.last, BACKWARDS);
    }
};

// ---- read mode -----------------------------------------------------------------------------------------------------
//
//     C = phi(Q) g      P = 1 / C      Y = scale P * (phi(Q) H)      without feedback P is 1
//
//     dC = -scale P^2 * rowsum(dY * (phi(Q) H))      dphi(Q) = scale P * (dY H^T) + dC g^T
//     dH = phi(Q)^T (scale P * dY)                   dg = phi(Q)^T dC

struct ReadForward : Sizes {
    float *plasticity;  // g (Fp)
    float *activity, *output;

    ReadForward(const Arguments& args, Scratch& scratch)
        : Sizes(args),
          plasticity(scratch.take(Fp)),
          activity(scratch.take(BLOCK * Fp)),
          output(scratch.take(BLOCK * dp)) {}

    float feedback(int64_t t) const { return astrocyte_feedback(dot(activity + t * Fp, plasticity, Fp)); }

    // hebbian: H (Fp x dp)
    void forward(const TokenRange& range, const float* hebbian, float scale) {
        for (int64_t start = range.first; start < range.last; start += BLOCK) {
            const TokenBlock block(args, range, start);
            block.load_activity(args.query, KEEP_PADDING, activity);
            const bool in_place = d == dp;
            const MutableMatrix y = in_place ? MutableMatrix{args.output.at(range.b, range.h, start), args.output.row}
                                             : MutableMatrix{output, dp};
            matmul<OVERWRITE>(block.rows, F, dp, {activity, Fp}, {hebbian, dp}, y);
            if (args.feedback || scale != 1)
                for (int64_t t = 0; t < block.rows; t++)
                    scale_row(y.data + t * y.stride, dp, args.feedback ? scale * feedback(t) : scale);
            if (!in_place) block.store_rows(output, args.output);
        }
    }
};

struct ReadBackward : ReadForward {
    float *hebbian_transposed, *d_hebbian, *d_plasticity, *d_activity, *d_output;

    ReadBackward(const Arguments& args, Scratch& scratch)
        : ReadForward(args, scratch),
          hebbian_transposed(scratch.take(dp * Fp)),
          d_hebbian(scratch.take(Fp * dp)),
          d_plasticity(scratch.take(Fp)),
          d_activity(scratch.take(BLOCK * Fp)),
          d_output(scratch.take(BLOCK * dp)) {}

    void backward(const TokenRange& range, const float* hebbian, float scale) {
        transpose(F, d, {hebbian, dp}, {hebbian_transposed, Fp});
        set_zero(d_hebbian, Fp * dp), set_zero(d_plasticity, Fp);
        for (int64_t start = range.first; start < range.last; start += BLOCK) {
            const TokenBlock block(args, range, start);
            block.load_rows(args.d_output, KEEP_PADDING, d_output);
            matmul<OVERWRITE>(block.rows, d, Fp, {d_output, dp}, {hebbian_transposed, Fp}, {d_activity, Fp});
            block.load_activity(args.query, KEEP_PADDING, activity);
            if (args.feedback || scale != 1)
                for (int64_t t = 0; t < block.rows; t++) {
                    float* d_row = d_activity + t * Fp;
                    const float p = args.feedback ? feedback(t) : 1;
                    // dY . (phi(Q) H), which the forward pass did not keep, is phi(Q) . (dY H^T)
                    const float d_response = -scale * p * (p * dot(activity + t * Fp, d_row, Fp));  // P^2 may be none
                    scale_row(d_row, Fp, scale * p), scale_row(d_output + t * dp, dp, scale * p);
                    if (!args.feedback) continue;
                    add_row(d_row, plasticity, Fp, d_response);
                    add_row(d_plasticity, activity + t * Fp, Fp, d_response);
                }
            block.store_gradient(args.query, KEEP_PADDING, activity, d_activity, args.d_query);
            matmul<ACCUMULATE, TRANSPOSED>(F, block.rows, dp, {activity, Fp}, {d_output, dp}, {d_hebbian, dp});
        }
    }
};

template <typename Read>
struct StateReader {  // reads a state that Python passes
    float* hebbian;   // H (Fp x dp)
    Read read;

    StateReader(const Arguments& args, Scratch& scratch)
        : hebbian(scratch.take(padded(args.features) * padded(args.head_dim))), read(args, scratch) {}

    void load_state(const TokenRange& range) {
        const Arguments& args = read.args;
        const int64_t head = range.b * args.heads + range.h;
        load_matrix(args.hebbian + head * read.F * read.d, read.F, read.d, {hebbian, read.dp});
        if (args.feedback) copy(read.plasticity, args.plasticity + head * read.F, read.F);
    }
};

// ---- several documents in a row: write mode and read mode of one after the other -----------------------------------

// Each document is read right after it is written, while its synapses lie in the nearest cache. All its tokens find the
// same calcium, so that where alpha acts at the synapse, H is read as kappa * H.
struct DocumentsForward {
    WriteForward write;
    ReadForward read;

    DocumentsForward(const Arguments& args, Scratch& scratch) : write(args, scratch), read(args, scratch) {}
};

// x (Fp x dp) = kappa * x
void release_synapses(const Sizes& sizes, const float* calcium, float* x) {
    for (int64_t j = 0; j < sizes.Fp; j += LANES) {
        const Vector release = presynaptic_release(load(calcium + j), sizes.args.alpha);
        for (int64_t i = 0; i < LANES; i++) scale_row(x + (j + i) * sizes.dp, sizes.dp, release[i]);
    }
}

struct DocumentsBackward {
    WriteBackward write;
    ReadBackward read;
    float* plasticity_derivative;

    DocumentsBackward(const Arguments& args, Scratch& scratch)
        : write(args, scratch), read(args, scratch), plasticity_derivative(scratch.take(read.Fp)) {}
};

// ---- synapses that leak --------------------------------------------------------------------------------------------

// The shares of a block: f_t = exp(log_decay_t) is left of all that there is when token t comes. Shares are products of
// these, never quotients, which would overflow; what is too small to matter is 0, as products of denormals are slow.
struct Leak : Sizes {
    const bool exists;        // if not, nothing here does anything
    float* left = nullptr;    // f_t
    float* since = nullptr;   // of what there was before the block, the share that is left at token t: f_first ... f_t
    float* until = nullptr;   // of what token t wrote, the share that is left at the block's end: f_{t+1} ... f_last
    float* shares = nullptr;  // (rows x rows, stride BLOCK), D_ts: of what token s wrote, the share that token t finds
    float* next = nullptr;    // a row of `shares`

    Leak(const Arguments& args, Scratch& scratch) : Sizes(args), exists(args.log_decay) {
        if (!exists) return;
        left = scratch.take(BLOCK), since = scratch.take(BLOCK), until = scratch.take(BLOCK);
        shares = scratch.take(BLOCK * BLOCK), next = scratch.take(BLOCK);
    }

    void begin(const TokenBlock& block) {
        if (!exists) return;
        const float* logarithms = args.log_decay + (block.b * args.heads + block.h) * args.length + block.start;
        const int64_t rows = block.rows;
        for (int64_t t = 0; t < rows; t += LANES)
            store(left + t, without_denormals(exponential(load_partial(logarithms + t, rows - t))));
        float share = 1;
        for (int64_t t = 0; t < rows; t++) since[t] = share = multiplied(share, left[t]);
        share = 1;
        for (int64_t t = rows - 1; t >= 0; t--) until[t] = share, share = multiplied(share, left[t]);
    }

    // D of the block's tokens: LOWER for those that come after what they read, UPPER for those that come before.
    void fill_shares(Triangle shape, int64_t rows) {
        if (!exists) return;
        set_zero(next, BLOCK);
        if (shape != UPPER)
            for (int64_t t = 0; t < rows; t++) {
                step(left[t], t, rows);
                copy(shares + t * BLOCK, next, BLOCK);
            }
        set_zero(next, BLOCK);
        if (shape != LOWER)
            for (int64_t t = rows - 1; t >= 0; t--) {
                step(t + 1 < rows ? left[t + 1] : 0, t, rows);
                if (shape == FULL) next[t] = 0, add_row(shares + t * BLOCK, next, padded(rows)), next[t] = 1;
                else copy(shares + t * BLOCK, next, BLOCK);
            }
    }

    // x (rows x rows, stride BLOCK) = x * D, elementwise
    void apply(int64_t rows, float* x) const {
        if (!exists) return;
        for (int64_t t = 0; t < rows * BLOCK; t += BLOCK)
            for (int64_t j = t; j < t + rows; j += LANES) store(x + j, load(x + j) * load(shares + j));
    }

    // the rows of x (rows x n) times since, or until
    void scale(const float* factors, int64_t rows, int64_t n, float* x) const {
        if (!exists) return;
        for (int64_t t = 0; t < rows; t++) scale_row(x + t * n, n, factors[t]);
    }

    // what is left of a state x (n) from before the block at its end
    void pass(int64_t rows, int64_t n, float* x) const {
        if (exists) scale_row(x, n, since[rows - 1]);
    }

    // what is left of x (n) when token t of the block comes
    void pass_token(int64_t t, int64_t n, float* x) const {
        if (exists) scale_row(x, n, left[t]);
    }

    // The pairs of a block in the gradients of L_t. The share of tokens r < c is exp(L_c - L_r), whichever is read; the
    // product of x and y (rows x rows, stride BLOCK) is the share times its gradient. An UPPER x has only those pairs
    // in which r is the row.
    void add_pairs(Triangle shape, int64_t rows, const float* x, const float* y, double* d_elapsed) {
        IntegerVector lanes;
        for (int32_t i = 0; i < LANES; i++) lanes[i] = i;
        set_zero(next, BLOCK);
        for (int32_t r = 0; r < rows; r++) {
            Vector total = {};
            for (int32_t j = shape == UPPER ? r / LANES * LANES : 0; j < rows; j += LANES) {
                const IntegerVector column = lanes + j;
                const Vector zero = {}, pair = load(x + r * BLOCK + j) * load(y + r * BLOCK + j);
                const Vector later = column > r ? pair : zero, earlier = shape == FULL ? pair : zero;
                const Vector signed_pair = column < int32_t(rows) ? (column < r ? -earlier : later) : zero;
                total += signed_pair;
                store(next + j, load(next + j) + signed_pair);
            }
            d_elapsed[r] -= sum(total);
        }
        for (int64_t c = 0; c < rows; c++) d_elapsed[c] += next[c];
    }

    static Vector without_denormals(Vector x) { return x < SMALLEST_SHARE ? Vector{} : x; }

  private:
    static constexpr float SMALLEST_SHARE = 1e-30f;

    static float multiplied(float x, float y) { return x * y < SMALLEST_SHARE ? 0 : x * y; }

    // From a token's row of shares to the next one's, `share` being what is left from the one to the other.
    void step(float share, int64_t t, int64_t rows) {
        for (int64_t j = 0; j < rows; j += LANES) store(next + j, without_denormals(load(next + j) * share));
        next[t] = 1;
    }
};

// From the gradients of L_t = log f_1 + ... + log f_t, of which every share is a difference, to those of log f_u, each
// of which is in L_u and all after it: of the tokens first to last, a document, which the first in a row alone shares
// with what was before.
void store_log_decay_gradient(const TokenRange& range, const Arguments& args, const double* d_elapsed) {
    float* d_log_decay = args.d_log_decay + (range.b * args.heads + range.h) * args.length;
    double total = 0;
    for (int64_t t = range.last - 1; t >= range.first; t--) d_log_decay[t] = total += d_elapsed[t];
    if (range.first > 0) d_log_decay[range.first] = 0;
}

// ---- causal: write and read mode at once ---------------------------------------------------------------------------
//
// A token reads what was written up to itself. With the state H, z of all before a block of tokens, and I = phi(K) +
// phi(R), in that block
//
//     z_t = z + sum_{s <= t} phi(k_s)      g_t = z_t^alpha      C_t = phi(q_t) g_t      P = 1 / C
//     Y = scale P * (phi(Q) H + tril(phi(Q) I^T) V)             then H += I^T V
//
// With dH, the gradient of the state after the block, and dO = scale P * dY,
//
//     dC = -scale P^2 * rowsum(phi(Q) * (dY H^T + tril(dY V^T) I))
//     dphi(q_t) = scale P_t (dY H^T + tril(dY V^T) I)_t + dC_t g_t
//     dI = V dH^T + triu(V dO^T) phi(Q)      dV = I dH + triu(I phi(Q)^T) dO      then dH += phi(Q)^T dO
//     dz = sum_{t >= s} dC_t phi(q_t) * dg_t / dz_t, to the end of the sequence      dphi(k_s) = dI_s + dz
//
// so the gradients of queries are found along with the state, from the first block to the last, and those of keys,
// values and code along with its gradient, from the last to the first.
//
// Synapses that leak multiply what is above for the pair of a reader t and a writer s by the share D_ts, in blocks, and
// the states by what is left of them. D_ts = exp(L_t - L_s): to the gradient of L_t, a reader adds the derivative by
// the logarithm of what it finds, and a writer takes away that of what is found of it,
//
//     dL_t = u_t G_t + dz_t z_t - I_t dI_t - p_t e_t      with u, G and dz as of `TokenReader`, p what calcium counts,
//                                                         and e_s = sum_t D_ts dz_t
//
// The state at the end reads as the last token does. What is a token's own, to which no time passes, is in none of the
// sums: there it would cancel, and leave its rounding.

// A sum along the tokens of a block. What was there before them is kept apart from what they add, which in the sum of a
// long text would mostly be rounded off.
struct RunningSum : Sizes {
    float *before, *own, *total;

    RunningSum(const Arguments& args, Scratch& scratch)
        : Sizes(args), before(scratch.take(Fp)), own(scratch.take(Fp)), total(scratch.take(Fp)) {}

    void begin_block() { copy(before, total, Fp), set_zero(own, Fp); }

    void add(const float* row) {
        for (int64_t j = 0; j < Fp; j += LANES) {
            const Vector sum = load(own + j) + load(row + j);
            store(own + j, sum), store(total + j, load(before + j) + sum);
        }
    }

    // takes it on to token t, where synapses leak
    void pass_token(const Leak& leak, int64_t t) {
        leak.pass_token(t, Fp, before), leak.pass_token(t, Fp, own), leak.pass_token(t, Fp, total);
    }
};

struct CausalForward : Sizes {
    float *hebbian, *plasticity;
    RunningSum calcium;
    float *activity, *presynaptic, *imprint, *imprint_transposed;
    float *value, *output, *scores;
    AstrocyteCode code;
    Leak leak;
    const TokenReader reader;

    CausalForward(const Arguments& args, Scratch& scratch)
        : Sizes(args),
          hebbian(scratch.take(Fp * dp)),
          plasticity(scratch.take(Fp)),
          calcium(args, scratch),
          activity(scratch.take(BLOCK * Fp)),
          presynaptic(scratch.take(BLOCK * Fp)),
          imprint(scratch.take(BLOCK * Fp)),
          imprint_transposed(scratch.take(Fp * BLOCK)),
          value(scratch.take(BLOCK * dp)),
          output(scratch.take(BLOCK * dp)),
          scores(scratch.take(BLOCK * BLOCK)),
          code(args, scratch),
          leak(args, scratch),
          reader(args) {}

    void forward(int64_t head) {
        TokenRange range = {head / args.heads, head % args.heads, 0, 0};
        set_zero(hebbian, Fp * dp), set_zero(calcium.total, Fp);
        if (args.has_states()) {
            load_matrix(args.hebbian + head * F * d, F, d, {hebbian, dp});
            copy(calcium.total, args.calcium + head * F, F);
        }
        code.begin_head(range.b, range.h);
        for (; range.first < args.length; range.first = range.last) {  // a document
            range.last = args.documents.end(range.b, range.first, args.length);
            if (range.first > 0) set_zero(hebbian, Fp * dp), set_zero(calcium.total, Fp);
            code.begin_document(range.first, range.last);
            for (int64_t start = range.first; start < range.last; start += BLOCK) forward({args, range, start});
        }
        if (args.has_states()) {
            store_matrix({hebbian, dp}, F, d, args.end_hebbian + head * F * d);
            copy(args.end_calcium + head * F, calcium.total, F);
        }
        if (args.makes_code()) copy(args.end_total + head * F, code.running_sum, F);
    }

    void forward(const TokenBlock& block) {
        const int64_t rows = block.rows;
        block.load_activity(args.query, KEEP_PADDING, activity);
        block.load_imprint(code.code_of(block), imprint, presynaptic);
        block.load_rows(args.value, ZERO_PADDING, value);
        const float* source = args.all_sources ? imprint : presynaptic;
        leak.begin(block);
        calcium.begin_block();
        leak.fill_shares(LOWER, rows);
        if (args.reads_otherwise()) read(rows, source);
        read_state(rows, F, dp, {activity, Fp}, {hebbian, dp}, {output, dp});
        leak.scale(leak.since, rows, dp, output);
        transpose(rows, F, {imprint, Fp}, {imprint_transposed, BLOCK});
        matmul<OVERWRITE>(rows, F, padded(rows), {activity, Fp}, {imprint_transposed, BLOCK}, {scores, BLOCK});
        leak.apply(rows, scores);
        clear_outside(LOWER, rows, {scores, BLOCK});
        matmul<ACCUMULATE, PLAIN, LOWER>(rows, rows, dp, {scores, BLOCK}, {value, dp}, {output, dp});
        if (!args.reads_otherwise()) scale_as_published(rows, source);
        block.store_rows(output, args.output);
        if (!args.hands_on(block.b, block.start + rows)) return;
        leak.pass(rows, Fp * dp, hebbian);
        leak.scale(leak.until, rows, dp, value);
        matmul<ACCUMULATE, TRANSPOSED>(F, rows, dp, {imprint, Fp}, {value, dp}, {hebbian, dp});
    }

    // from phi(Q) H to the output, where alpha acts in the response alone and nothing leaks
    void scale_as_published(int64_t rows, const float* source) {
        for (int64_t t = 0; t < rows; t++) {
            float factor = args.scale;
            calcium.add(source + t * Fp);
            if (args.feedback) {
                presynaptic_plasticity(calcium.total, args.alpha, Fp, plasticity, nullptr);
                factor *= astrocyte_feedback(dot(activity + t * Fp, plasticity, Fp));
            }
            scale_row(output + t * dp, dp, factor);
        }
    }

    // otherwise, from phi(Q) to the readings, in its place
    void read(int64_t rows, const float* source) {
        for (int64_t t = 0; t < rows; t++) {
            calcium.pass_token(leak, t);
            calcium.add(source + t * Fp);
            reader.read(activity + t * Fp, calcium.total, plasticity, activity + t * Fp);
        }
    }
};

struct CausalBackward : Sizes {
    // the state and, on the way back, its gradient
    float *state, *state_transposed, *plasticity;
    RunningSum calcium, d_calcium;
    // of each block, from the way forward for the way back: its tokens, and the sums before it
    TokenRange* blocks;
    float *calcium_before, *key_sum_before;
    // of each token: scale P, and dC
    float *feedback, *d_response;
    // of one block
    float *activity, *d_activity, *presynaptic, *process, *imprint, *d_imprint, *derivatives, *activity_transposed;
    float *value, *d_value, *d_output, *rows_transposed, *scores;
    float* d_key_sum;
    AstrocyteCode code;
    Leak leak;
    const TokenReader reader;
    // where tokens read otherwise, of each: u, dz, and of the leak dL
    float *readings = nullptr, *d_calciums = nullptr;
    double* d_elapsed = nullptr;
    float* left_at_end = nullptr;  // of the state before the last block, transposed as that is
    // and of each of a block: the calcium that it finds, the same with its own, kappa, P; more scores
    float *found = nullptr, *calciums = nullptr, *releases = nullptr, *feedbacks = nullptr, *more_scores = nullptr;

    CausalBackward(const Arguments& args, Scratch& scratch, int64_t most_blocks)
        : Sizes(args),
          state(scratch.take(Fp * dp)),
          state_transposed(scratch.take(dp * Fp)),
          plasticity(scratch.take(Fp)),
          calcium(args, scratch),
          d_calcium(args, scratch),
          blocks(scratch.take<TokenRange>(most_blocks)),
          calcium_before(scratch.take(most_blocks * Fp)),
          key_sum_before(scratch.take(args.makes_code() ? most_blocks * Fp : 0)),
          feedback(scratch.take(args.length)),
          d_response(scratch.take(args.length)),
          activity(scratch.take(BLOCK * Fp)),
          d_activity(scratch.take(BLOCK * Fp)),
          presynaptic(scratch.take(BLOCK * Fp)),
          process(scratch.take(BLOCK * Fp)),
          imprint(scratch.take(BLOCK * Fp)),
          d_imprint(scratch.take(BLOCK * Fp)),
          derivatives(scratch.take(BLOCK * Fp)),
          activity_transposed(scratch.take(Fp * BLOCK)),
          value(scratch.take(BLOCK * dp)),
          d_value(scratch.take(BLOCK * dp)),
          d_output(scratch.take(BLOCK * dp)),
          rows_transposed(scratch.take(dp * BLOCK)),
          scores(scratch.take(BLOCK * BLOCK)),
          d_key_sum(scratch.take(Fp)),
          code(args, scratch),
          leak(args, scratch),
          reader(args) {
        if (!args.reads_otherwise()) return;
        readings = scratch.take(args.length * Fp), d_calciums = scratch.take(args.length * Fp);
        found = scratch.take(BLOCK * Fp), calciums = scratch.take(BLOCK * Fp), releases = scratch.take(BLOCK * Fp);
        feedbacks = scratch.take(BLOCK);
        if (!leak.exists) return;
        d_elapsed = scratch.take<double>(args.length), left_at_end = scratch.take(dp * Fp);
        more_scores = scratch.take(BLOCK * BLOCK);
    }

    void backward(int64_t head) {
        const int64_t b = head / args.heads, h = head % args.heads;
        code.begin_head(b, h);
        code.clear_gradients();

        set_zero(state_transposed, dp * Fp), set_zero(calcium.total, Fp);
        if (args.has_states()) {  // only H^T is needed on the way forward
            load_matrix(args.hebbian + head * F * d, F, d, {state, dp});
            transpose(F, d, {state, dp}, {state_transposed, Fp});
            copy(calcium.total, args.calcium + head * F, F);
        }
        int64_t count = 0;
        for (int64_t first = 0, last; first < args.length; first = last) {  // a document
            last = args.documents.end(b, first, args.length);
            if (first > 0) set_zero(state_transposed, dp * Fp), set_zero(calcium.total, Fp);
            code.begin_document(first, last);
            for (int64_t start = first; start < last; start += BLOCK, count++) {
                blocks[count] = {b, h, start, min(start + BLOCK, last)};
                copy(calcium_before + count * Fp, calcium.total, Fp);
                if (args.makes_code()) copy(key_sum_before + count * Fp, code.running_sum, Fp);
                backward_read({args, blocks[count], start});
            }
        }

        set_zero(state, Fp * dp), set_zero(d_calcium.total, Fp);
        if (args.has_states()) {
            load_matrix(args.d_hebbian + head * F * d, F, d, {state, dp});
            copy(d_calcium.total, args.d_calcium + head * F, F);
        }
        if (leak.exists && args.length > 0 && args.has_states()) {  // the state at the end reads as the last token does
            transpose(F, d, {state, dp}, {state_transposed, Fp});
            const float* found_by_last = found + (blocks[count - 1].last - blocks[count - 1].first - 1) * Fp;
            d_elapsed[args.length - 1] +=
                dot(left_at_end, state_transposed, d * Fp) + dot(found_by_last, d_calcium.total, Fp);
        }
        if (args.makes_code()) copy(d_key_sum, args.d_total + head * F, F);
        for (int64_t i = count - 1; i >= 0; i--) {
            const int64_t end = blocks[i].last;
            if (end < args.length && args.documents.starts(b, end))  // nothing reads the state at a document's end
                set_zero(state, Fp * dp), set_zero(d_calcium.total, Fp), set_zero(d_key_sum, Fp);
            copy(calcium.total, calcium_before + i * Fp, Fp);
            code.resume(key_sum_before + i * Fp);
            backward_write({args, blocks[i], blocks[i].first});
        }
        if (leak.exists)
            for (int64_t first = 0, last; first < args.length; first = last) {
                last = args.documents.end(b, first, args.length);
                store_log_decay_gradient({b, h, first, last}, args, d_elapsed);
            }
        if (args.has_states()) {
            store_matrix({state, dp}, F, d, args.d_hebbian + head * F * d);
            copy(args.d_calcium + head * F, d_calcium.total, F);
        }
        if (args.makes_code()) copy(args.d_total + head * F, d_key_sum, F);
        code.store_gradients();
    }

    // d_query, feedback and d_response of a block; takes the state past it.
    void backward_read(const TokenBlock& block) {
        const int64_t rows = block.rows;
        block.load_activity(args.query, KEEP_PADDING, activity);
        block.load_imprint(code.code_of(block), imprint, presynaptic);
        block.load_rows(args.value, ZERO_PADDING, value);
        block.load_rows(args.d_output, KEEP_PADDING, d_output);

        float* value_transposed = rows_transposed;
        const float* source = args.all_sources ? imprint : presynaptic;
        leak.begin(block);
        calcium.begin_block();
        leak.fill_shares(LOWER, rows);
        if (args.reads_otherwise()) read(block, source);
        read_state(rows, d, Fp, {d_output, dp}, {state_transposed, Fp}, {d_activity, Fp});
        leak.scale(leak.since, rows, Fp, d_activity);
        if (leak.exists)
            for (int64_t t = 0; t < rows; t++)
                d_elapsed[block.start + t] = dot(readings + (block.start + t) * Fp, d_activity + t * Fp, Fp);
        transpose(rows, d, {value, dp}, {value_transposed, BLOCK});
        matmul<OVERWRITE>(rows, d, padded(rows), {d_output, dp}, {value_transposed, BLOCK}, {scores, BLOCK});
        leak.apply(rows, scores);
        clear_outside(LOWER, rows, {scores, BLOCK});
        matmul<ACCUMULATE, PLAIN, LOWER>(rows, rows, Fp, {scores, BLOCK}, {imprint, Fp}, {d_activity, Fp});
        if (args.reads_otherwise()) differentiate(block);
        else differentiate_as_published(block, source);
        block.store_gradient(args.query, KEEP_PADDING, activity, d_activity, args.d_query);
        if (!args.hands_on(block.b, block.start + rows)) return;
        leak.pass(rows, dp * Fp, state_transposed);
        if (leak.exists && block.start + rows == args.length) copy(left_at_end, state_transposed, d * Fp);
        leak.scale(leak.until, rows, dp, value);
        matmul<ACCUMULATE, TRANSPOSED>(d, rows, Fp, {value, dp}, {imprint, Fp}, {state_transposed, Fp});
    }

    // from G to dphi(q), in its place, where alpha acts in the response alone and nothing leaks
    void differentiate_as_published(const TokenBlock& block, const float* source) {
        for (int64_t t = 0; t < block.rows; t++) {
            float *d_row = d_activity + t * Fp, factor = args.scale;
            if (args.feedback) {
                calcium.add(source + t * Fp);
                presynaptic_plasticity(calcium.total, args.alpha, Fp, plasticity, nullptr);
                const float p = astrocyte_feedback(dot(activity + t * Fp, plasticity, Fp));
                d_response[block.start + t] = -args.scale * p * (p * dot(activity + t * Fp, d_row, Fp));
                factor *= p;
            }
            scale_row(d_row, Fp, factor);
            if (args.feedback) add_row(d_row, plasticity, Fp, d_response[block.start + t]);
            feedback[block.start + t] = factor;
        }
    }

    // otherwise, first the readings of a block; takes the calcium past it
    void read(const TokenBlock& block, const float* source) {
        for (int64_t t = 0; t < block.rows; t++) {
            calcium.pass_token(leak, t);
            copy(found + t * Fp, calcium.total, Fp);
            calcium.add(source + t * Fp);
            copy(calciums + t * Fp, calcium.total, Fp);
            float* reading = readings + (block.start + t) * Fp;
            feedbacks[t] = reader.read(activity + t * Fp, calcium.total, releases + t * Fp, reading);
        }
    }

    // then from G to dphi(q), in its place, and dz
    void differentiate(const TokenBlock& block) {
        for (int64_t t = 0; t < block.rows; t++) {
            const int64_t of_block = t * Fp, of_row = (block.start + t) * Fp;
            reader.differentiate(activity + of_block, calciums + of_block, releases + of_block, readings + of_row,
                                 feedbacks[t], d_activity + of_block, d_calciums + of_row);
            if (leak.exists) d_elapsed[block.start + t] += dot(d_calciums + of_row, found + of_block, Fp);
        }
    }

    // d_key, d_value and d_code of a block; takes the gradient of the state to before it.
    void backward_write(const TokenBlock& block) {
        const int64_t rows = block.rows;
        float *d_hebbian = state, *d_hebbian_transposed = state_transposed, *d_output_transposed = rows_transposed;
        const bool reads_otherwise = args.reads_otherwise();
        float* activity = reads_otherwise ? readings + block.start * Fp : this->activity;  // then it is u
        if (!reads_otherwise) block.load_activity(args.query, KEEP_PADDING, activity);
        const View r = code.code_of(block);
        block.load_imprint(r, imprint, presynaptic);
        block.load_rows(args.value, ZERO_PADDING, value);
        block.load_rows(args.d_output, KEEP_PADDING, d_output);
        const float* source = args.all_sources ? imprint : presynaptic;
        if (!reads_otherwise)
            for (int64_t t = 0; t < rows; t++) scale_row(d_output + t * dp, dp, feedback[block.start + t]);
        leak.begin(block);
        calcium.begin_block(), d_calcium.begin_block();
        leak.fill_shares(UPPER, rows);

        transpose(F, d, {d_hebbian, dp}, {d_hebbian_transposed, Fp});
        read_state(rows, d, Fp, {value, dp}, {d_hebbian_transposed, Fp}, {d_imprint, Fp});
        leak.scale(leak.until, rows, Fp, d_imprint);
        if (leak.exists)
            for (int64_t t = 0; t < rows; t++) {
                const float along = dot(imprint + t * Fp, d_imprint + t * Fp, Fp);
                d_elapsed[block.start + t] -= along;
                if (block.start + rows == args.length) d_elapsed[args.length - 1] += along;  // the state at the end
            }
        transpose(rows, d, {d_output, dp}, {d_output_transposed, BLOCK});
        float* scores = leak.exists ? more_scores : this->scores;  // the leak needs them with those of the other factor
        matmul<OVERWRITE>(rows, d, padded(rows), {value, dp}, {d_output_transposed, BLOCK}, {scores, BLOCK});
        leak.apply(rows, scores);
        clear_outside(UPPER, rows, {scores, BLOCK});
        matmul<ACCUMULATE, PLAIN, UPPER>(rows, rows, Fp, {scores, BLOCK}, {activity, Fp}, {d_imprint, Fp});

        read_state(rows, F, dp, {imprint, Fp}, {d_hebbian, dp}, {d_value, dp});
        leak.scale(leak.until, rows, dp, d_value);
        transpose(rows, F, {activity, Fp}, {activity_transposed, BLOCK});
        scores = this->scores;
        matmul<OVERWRITE>(rows, F, padded(rows), {imprint, Fp}, {activity_transposed, BLOCK}, {scores, BLOCK});
        if (leak.exists) leak.add_pairs(UPPER, rows, more_scores, scores, d_elapsed + block.start);
        leak.apply(rows, scores);
        clear_outside(UPPER, rows, {scores, BLOCK});
        matmul<ACCUMULATE, PLAIN, UPPER>(rows, rows, dp, {scores, BLOCK}, {d_output, dp}, {d_value, dp});
        block.store_rows(d_value, args.d_value);

        if (r.data && !args.all_sources) store_code_gradient(block, r);
        if (args.feedback && !reads_otherwise)
            for (int64_t t = 0; t < rows; t++) {
                calcium.add(source + t * Fp);
                presynaptic_plasticity(calcium.total, args.alpha, Fp, plasticity, derivatives + t * Fp);
            }
        for (int64_t t = rows - 1; t >= 0; t--) {
            if (reads_otherwise) {
                if (leak.exists && block.start + t + 1 < args.length)
                    d_elapsed[block.start + t] -= dot(source + t * Fp, d_calcium.total, Fp);
                d_calcium.add(d_calciums + (block.start + t) * Fp);
            } else if (args.feedback) {
                float* row = derivatives + t * Fp;
                for (int64_t j = 0; j < Fp; j += LANES)
                    store(row + j, load(activity + t * Fp + j) * load(row + j) * d_response[block.start + t]);
                d_calcium.add(row);
            }
            add_row(d_imprint + t * Fp, d_calcium.total, Fp);  // from here on, the gradient of phi(K)
            d_calcium.pass_token(leak, t);
        }
        if (r.data && args.all_sources) store_code_gradient(block, r);
        block.store_gradient(args.key, ZERO_PADDING, presynaptic, d_imprint, args.d_key);
        if (args.makes_code()) {
            code.resume(d_key_sum);
            code.add_to_key_gradients(block.start, block.start + rows, BACKWARDS);
            copy(d_key_sum, code.running_sum, F);
        }
        if (!args.hands_on(block.b, block.start)) return;
        leak.pass(rows, Fp * dp, d_hebbian);
        leak.scale(leak.since, rows, dp, d_output);
        matmul<ACCUMULATE, TRANSPOSED>(F, rows, dp, {activity, Fp}, {d_output, dp}, {d_hebbian, dp});
    }

    void store_code_gradient(const TokenBlock& block, const View& r) {
        block.load_activity(r, ZERO_PADDING, process);
        block.store_gradient(r, ZERO_PADDING, process, d_imprint, code.gradient_of(block));
        code.accumulate_gradients(block);
    }
};

// ---- synapses that leak, read in both directions -------------------------------------------------------------------
//
// Of what token s wrote, token t finds the share D_ts that is left after the time between them, whichever comes first.
// A block of tokens reads what is in it, D being symmetric there, what was written before it, as in the causal form,
// and what is written after it: the state B as the block's last token finds it, of which `until` is left at its others,
//
//     U = readings, of the calcium from both sides      Y = since * (U H) + until * (U B) + (U I^T * D) V
//     before the next block       H -> since_last H + I^T (until * V)
//     before the previous block   B -> since_last B + I^T (since * V)
//
// So a sequence is written from left to right, keeping I, V and the state before each block, and read from right to
// left. Products with a state that holds nothing are left out, as are states that nothing reads: of a short text, they
// are a good part of all.
//
// The gradients of what is written have the same form, U and dY in the places of I and V: with dH, the gradient of the
// state after the block, from the tokens on the right, dB that of B, from those on the left, and G = dY H^T + ...,
//
//     dI = until * (V dH^T) + since * (V dB^T) + (V dY^T * D) U
//     dV = until * (I dH) + since * (I dB) + (I U^T * D) dY
//     before the previous block   dH -> since_last dH + U^T (since * dY)
//     before the next block       dB -> since_last dB + U^T (until * dY)
//
// and are found in a second pass from right to left, which keeps U, dY, dz and the parts of dI and dV from the right,
// and a third one from left to right. In the gradients of L_t, pairs in which the writer comes after the reader have
// the other sign. The later state is written by the last token, as it were, and the one before the first token reads
// before any time passed.

// The pass from left to right, in which both directions begin.
struct BothWays : Sizes {
    float *states, *calciums_before;  // before each block of a document, and at its end: H (Fp x dp) and z
    float *later, *later_calcium;     // after a block, as its last token finds it
    // of each token; where there is no code, presynaptics and imprints are one and the same
    float *presynaptics, *imprints, *sources, *values;
    float *activity, *scaled, *imprint_transposed, *scores;
    AstrocyteCode code;
    Leak leak;
    const TokenReader reader;
    const bool transposed;

    BothWays(const Arguments& args, Scratch& scratch, bool transposed)
        : Sizes(args),
          states(scratch.take((blocks_of(args.length) + 1) * Fp * dp)),
          calciums_before(scratch.take((blocks_of(args.length) + 1) * Fp)),
          later(scratch.take(Fp * dp)),
          later_calcium(scratch.take(Fp)),
          presynaptics(scratch.take(args.length * Fp)),
          imprints(has_code() ? scratch.take(args.length * Fp) : presynaptics),
          sources(args.all_sources ? imprints : presynaptics),
          values(scratch.take(args.length * dp)),
          activity(scratch.take(BLOCK * Fp)),
          scaled(scratch.take(BLOCK * (Fp > dp ? Fp : dp))),
          imprint_transposed(scratch.take(Fp * BLOCK)),
          scores(scratch.take(BLOCK * BLOCK)),
          code(args, scratch, transposed),
          leak(args, scratch),
          reader(args),
          transposed(transposed) {}

    bool has_code() const { return args.code.data || args.makes_code(); }
    static int64_t blocks_of(int64_t length) { return (length + BLOCK - 1) / BLOCK; }

    // a state that Python passes, or 0
    void load_state(const TokenRange& range, const float* hebbian, const float* z, float* to, float* to_calcium) {
        set_zero(to, Fp * dp), set_zero(to_calcium, Fp);
        if (!hebbian) return;
        const int64_t head = range.b * args.heads + range.h;
        if (transposed) transpose(F, d, {hebbian + head * F * d, d}, {to, Fp});
        else load_matrix(hebbian + head * F * d, F, d, {to, dp});
        copy(to_calcium, z + head * F, F);
    }

    void store_state(const TokenRange& range, const float* from, const float* from_calcium, float* hebbian, float* z) {
        if (!args.has_states()) return;
        const int64_t head = range.b * args.heads + range.h;
        store_matrix({from, dp}, F, d, hebbian + head * F * d);
        copy(z + head * F, from_calcium, F);
    }

    // rows (rows x n) of `scaled` = factors * x
    Matrix scaled_rows(const float* factors, int64_t rows, int64_t n, const float* x) {
        for (int64_t t = 0; t < rows; t++)
            for (int64_t j = 0; j < n; j += LANES) store(scaled + t * n + j, load(x + t * n + j) * factors[t]);
        return {scaled, n};
    }

    // A state on the other side of a block: what is left of it, and of the block's values, `factors`. It may take the
    // place of the former.
    void write_block(const TokenBlock& block, const float* factors, const float* from, float* to) {
        const Matrix imprint = {imprints + block.start * Fp, Fp};
        const Matrix written = scaled_rows(factors, block.rows, dp, values + block.start * dp);
        const float left = leak.since[block.rows - 1];
        for (int64_t j = 0; j < Fp * dp; j += LANES) store(to + j, load(from + j) * left);
        if (transposed) matmul<ACCUMULATE, TRANSPOSED>(d, block.rows, Fp, written, imprint, {to, Fp});
        else matmul<ACCUMULATE, TRANSPOSED>(F, block.rows, dp, imprint, written, {to, dp});
    }

    // A document, from the state before it; leaves the one after it in `later`.
    void write(const TokenRange& range) {
        const bool is_first = range.first == 0, is_last = range.last == args.length;
        load_state(range, is_first ? args.hebbian : nullptr, args.calcium, states, calciums_before);
        load_state(range, is_last ? args.later_hebbian : nullptr, args.later_calcium, later, later_calcium);
        code.begin_document(range.first, range.last);
        float *state = states, *calcium = calciums_before;
        for (int64_t start = range.first; start < range.last; start += BLOCK, state += Fp * dp, calcium += Fp) {
            const TokenBlock block(args, range, start);
            float *presynaptic = presynaptics + start * Fp, *imprint = imprints + start * Fp;
            if (has_code()) block.load_imprint(code.code_of(block), imprint, presynaptic);
            else block.load_activity(args.key, ZERO_PADDING, presynaptic);
            block.load_rows(args.value, ZERO_PADDING, values + start * dp);
            leak.begin(block);
            if (args.hands_on(range.b, start + block.rows))
                write_block(block, leak.until, state, state + Fp * dp);
            copy(calcium + Fp, calcium, Fp);
            for (int64_t t = 0; t < block.rows; t++) {
                leak.pass_token(t, Fp, calcium + Fp);
                add_row(calcium + Fp, sources + (start + t) * Fp, Fp);
            }
        }
    }

    // The calcium that each token of block i finds (rows x Fp), and if asked for, how much more of that of others lies
    // before it than after it. Takes `later_calcium` to before the block.
    void find_calcium(const TokenBlock& block, int64_t i, float* calciums, float* imbalances) {
        float* running = calciums_before + i * Fp;
        for (int64_t t = 0; t < block.rows; t++) {
            leak.pass_token(t, Fp, running);
            if (imbalances) copy(imbalances + t * Fp, running, Fp);
            add_row(running, sources + (block.start + t) * Fp, Fp);
            copy(calciums + t * Fp, running, Fp);
        }
        for (int64_t t = block.rows - 1; t >= 0; t--) {
            if (imbalances && block.start + t + 1 < args.length) add_row(imbalances + t * Fp, later_calcium, Fp, -1);
            add_row(calciums + t * Fp, later_calcium, Fp);
            add_row(later_calcium, sources + (block.start + t) * Fp, Fp);
            leak.pass_token(t, Fp, later_calcium);
        }
    }
};

struct BothWaysForward : BothWays {
    float *calciums, *release, *output;

    BothWaysForward(const Arguments& args, Scratch& scratch)
        : BothWays(args, scratch, false),
          calciums(scratch.take(BLOCK * Fp)),
          release(scratch.take(Fp)),
          output(scratch.take(BLOCK * dp)) {}

    void forward(int64_t head) {
        TokenRange range = {head / args.heads, head % args.heads, 0, 0};
        code.begin_head(range.b, range.h);
        for (; range.first < args.length; range.first = range.last) {
            range.last = args.documents.end(range.b, range.first, args.length);
            write(range);
            const int64_t blocks = blocks_of(range.last - range.first);
            if (range.last == args.length)
                store_state(range, states + blocks * Fp * dp, calciums_before + blocks * Fp, args.end_hebbian,
                            args.end_calcium);
            for (int64_t i = blocks - 1; i >= 0; i--)
                read({args, range, range.first + i * BLOCK}, i);
            if (range.first == 0)
                store_state(range, later, later_calcium, args.end_later_hebbian, args.end_later_calcium);
        }
    }

    void read(const TokenBlock& block, int64_t i) {
        const int64_t rows = block.rows;
        const float *imprint = imprints + block.start * Fp, *value = values + block.start * dp;
        const float* before = states + i * Fp * dp;
        float* reading = activity;
        block.load_activity(args.query, KEEP_PADDING, activity);
        leak.begin(block);
        leak.fill_shares(FULL, rows);
        find_calcium(block, i, calciums, nullptr);
        for (int64_t t = 0; t < rows; t++)
            reader.read(activity + t * Fp, calciums + t * Fp, release, reading + t * Fp);
        transpose(rows, F, {imprint, Fp}, {imprint_transposed, BLOCK});
        matmul<OVERWRITE>(rows, F, padded(rows), {reading, Fp}, {imprint_transposed, BLOCK}, {scores, BLOCK});
        leak.apply(rows, scores);
        matmul<OVERWRITE>(rows, rows, dp, {scores, BLOCK}, {value, dp}, {output, dp});
        if (!is_zero(before, Fp * dp))
            matmul<ACCUMULATE>(rows, F, dp, scaled_rows(leak.since, rows, Fp, reading), {before, dp}, {output, dp});
        if (!is_zero(later, Fp * dp))
            matmul<ACCUMULATE>(rows, F, dp, scaled_rows(leak.until, rows, Fp, reading), {later, dp}, {output, dp});
        block.store_rows(output, args.output);
        if (args.hands_on(block.b, block.start)) write_block(block, leak.since, later, later);
    }
};

struct BothWaysBackward : BothWays {
    // gradients: of the state after a block, from the right, and of the one before a block, from the left; transposed
    float *d_state, *d_calcium, *d_state_transposed;
    // of each token: dY, u, dz, the parts of dI and dV that are known, and dL; of each block, the calcium's gradient
    // from the right
    float *d_outputs, *readings, *d_calciums, *d_imprints, *d_values, *d_calcium_after;
    double* d_elapsed;
    // of one block
    float *calciums, *imbalances, *releases, *feedbacks, *d_activity, *more_d_activity, *process, *d_presynaptic;
    float *more_d_value, *value_transposed, *more_scores, *d_calciums_after;

    BothWaysBackward(const Arguments& args, Scratch& scratch)
        : BothWays(args, scratch, true),
          d_state(scratch.take(Fp * dp)),
          d_calcium(scratch.take(Fp)),
          d_state_transposed(scratch.take(dp * Fp)),
          d_outputs(scratch.take(args.length * dp)),
          readings(scratch.take(args.length * Fp)),
          d_calciums(scratch.take(args.length * Fp)),
          d_imprints(scratch.take(args.length * Fp)),
          d_values(scratch.take(args.length * dp)),
          d_calcium_after(scratch.take(blocks_of(args.length) * Fp)),
          d_elapsed(scratch.take<double>(args.length)),
          calciums(scratch.take(BLOCK * Fp)),
          imbalances(scratch.take(BLOCK * Fp)),
          releases(scratch.take(BLOCK * Fp)),
          feedbacks(scratch.take(BLOCK)),
          d_activity(scratch.take(BLOCK * Fp)),
          more_d_activity(scratch.take(BLOCK * Fp)),
          process(scratch.take(BLOCK * Fp)),
          d_presynaptic(scratch.take(BLOCK * Fp)),
          more_d_value(scratch.take(BLOCK * dp)),
          value_transposed(scratch.take(dp * BLOCK)),
          more_scores(scratch.take(BLOCK * BLOCK)),
          d_calciums_after(scratch.take(BLOCK * Fp)) {}

    void backward(int64_t head) {
        TokenRange range = {head / args.heads, head % args.heads, 0, 0};
        code.begin_head(range.b, range.h);
        code.clear_gradients();
        for (; range.first < args.length; range.first = range.last) {
            range.last = args.documents.end(range.b, range.first, args.length);
            document(range);
        }
        code.store_gradients();
    }

    void document(const TokenRange& range) {
        const bool is_first = range.first == 0, is_last = range.last == args.length;
        const int64_t blocks = blocks_of(range.last - range.first);
        write(range);

        load_gradient(range, is_last ? args.d_end_hebbian : nullptr, args.d_end_calcium);
        for (int64_t i = blocks - 1; i >= 0; i--) read({args, range, range.first + i * BLOCK}, i);
        if (is_first) store_state(range, d_state, d_calcium, args.d_hebbian, args.d_calcium);

        load_gradient(range, is_first ? args.d_end_later_hebbian : nullptr, args.d_end_later_calcium);
        load_state(range, is_last ? args.later_hebbian : nullptr, args.later_calcium, later, later_calcium);
        for (int64_t i = 0; i < blocks; i++) finish({args, range, range.first + i * BLOCK}, i);
        if (is_last) store_state(range, d_state, d_calcium, args.d_later_hebbian, args.d_later_calcium);
        store_log_decay_gradient(range, args, d_elapsed);
        if (!args.makes_code()) return;
        code.resume(nullptr);
        code.add_to_key_gradients(range.first, range.last, FORWARDS);
        code.resume(nullptr);
        code.add_to_key_gradients(range.first, range.last, BACKWARDS);
    }

    void load_gradient(const TokenRange& range, const float* hebbian, const float* z) {
        const int64_t head = range.b * args.heads + range.h;
        set_zero(d_state, Fp * dp), set_zero(d_calcium, Fp);
        if (!hebbian) return;
        load_matrix(hebbian + head * F * d, F, d, {d_state, dp});
        copy(d_calcium, z + head * F, F);
    }

    // d_query of a block, and what keys, values and code get from it and from the right; takes the later state and
    // the gradient of the state to before it.
    void read(const TokenBlock& block, int64_t i) {
        const int64_t rows = block.rows;
        const float *imprint = imprints + block.start * Fp, *value = values + block.start * dp;
        const float* before = states + i * Fp * dp;
        float *reading = readings + block.start * Fp, *d_imprint = d_imprints + block.start * Fp;
        float *d_output = d_outputs + block.start * dp, *d_value = d_values + block.start * dp;
        float* d_z = d_calciums + block.start * Fp;
        double* d_elapsed = this->d_elapsed + block.start;
        block.load_activity(args.query, KEEP_PADDING, activity);
        block.load_rows(args.d_output, KEEP_PADDING, d_output);
        leak.begin(block);
        leak.fill_shares(FULL, rows);
        find_calcium(block, i, calciums, imbalances);
        for (int64_t t = 0; t < rows; t++) {
            feedbacks[t] = reader.read(activity + t * Fp, calciums + t * Fp, releases + t * Fp, reading + t * Fp);
            d_elapsed[t] = 0;
        }

        // G, of what was written in the block, before it, and after it
        transpose(rows, d, {value, dp}, {value_transposed, BLOCK});
        matmul<OVERWRITE>(rows, d, padded(rows), {d_output, dp}, {value_transposed, BLOCK}, {more_scores, BLOCK});
        transpose(rows, F, {imprint, Fp}, {imprint_transposed, BLOCK});
        matmul<OVERWRITE>(rows, F, padded(rows), {reading, Fp}, {imprint_transposed, BLOCK}, {scores, BLOCK});
        leak.apply(rows, scores);
        leak.add_pairs(FULL, rows, scores, more_scores, d_elapsed);
        leak.apply(rows, more_scores);
        matmul<OVERWRITE>(rows, rows, Fp, {more_scores, BLOCK}, {imprint, Fp}, {d_activity, Fp});
        add_reading_of_others(block, before, leak.since, 1);
        add_reading_of_others(block, later, leak.until, -1);
        for (int64_t t = 0; t < rows; t++) {
            reader.differentiate(activity + t * Fp, calciums + t * Fp, releases + t * Fp, reading + t * Fp,
                                 feedbacks[t], d_activity + t * Fp, d_z + t * Fp);
            d_elapsed[t] += dot(d_z + t * Fp, imbalances + t * Fp, Fp);
        }
        block.store_gradient(args.query, KEEP_PADDING, activity, d_activity, args.d_query);

        // dI and dV from the block, and from the right, which writers take away from the gradients of L_t
        matmul<OVERWRITE, TRANSPOSED>(rows, rows, Fp, {more_scores, BLOCK}, {reading, Fp}, {d_imprint, Fp});
        matmul<OVERWRITE, TRANSPOSED>(rows, rows, dp, {scores, BLOCK}, {d_output, dp}, {d_value, dp});
        const double of_end = add_gradients_of_others(block, leak.until, -1, before);
        if (block.start + rows == args.length)  // the state at the end reads as the last token does
            d_elapsed[rows - 1] +=
                leak.since[rows - 1] * of_end + dot(imbalances + (rows - 1) * Fp, d_calcium, Fp);

        if (args.hands_on(block.b, block.start)) {
            write_block(block, leak.since, later, later);
            pass_gradient(block, leak.since);
        }
        copy(d_calcium_after + i * Fp, d_calcium, Fp);
        for (int64_t t = rows - 1; t >= 0; t--) {
            add_row(d_calcium, d_z + t * Fp, Fp);
            leak.pass_token(t, Fp, d_calcium);
        }
    }

    // d_key, d_value and d_code of a block; takes the gradient of the later state to after it.
    void finish(const TokenBlock& block, int64_t i) {
        const int64_t rows = block.rows;
        const float *source = sources + block.start * Fp, *d_z = d_calciums + block.start * Fp;
        float *d_imprint = d_imprints + block.start * Fp, *from_right = d_calcium_after + i * Fp;
        double* d_elapsed = this->d_elapsed + block.start;
        leak.begin(block);
        const double of_end = add_gradients_of_others(block, leak.since, 1, later);
        const bool is_last = block.start + rows == args.length;
        if (is_last) d_elapsed[rows - 1] += leak.since[rows - 1] * of_end;
        block.store_rows(d_values + block.start * dp, args.d_value);
        if (args.hands_on(block.b, block.start + rows)) pass_gradient(block, leak.until);

        float* e = d_calciums_after;  // the gradient of what the calcium counts
        for (int64_t t = rows - 1; t >= 0; t--) {
            if (!is_last || t < rows - 1) d_elapsed[t] -= dot(source + t * Fp, from_right, Fp);
            add_row(from_right, d_z + t * Fp, Fp);
            copy(e + t * Fp, from_right, Fp);
            leak.pass_token(t, Fp, from_right);
        }
        for (int64_t t = 0; t < rows; t++) {
            leak.pass_token(t, Fp, d_calcium);
            d_elapsed[t] += dot(source + t * Fp, d_calcium, Fp);
            if (is_last && t == rows - 1) d_elapsed[t] += dot(later_calcium, d_calcium, Fp);
            add_row(e + t * Fp, d_calcium, Fp);
            add_row(d_calcium, d_z + t * Fp, Fp);
            for (int64_t j = t * Fp; j < (t + 1) * Fp; j += LANES)
                store(d_presynaptic + j, load(d_imprint + j) + load(e + j));
        }
        const View r = code.kept_code();
        if (r.data) {
            block.load_activity(r, ZERO_PADDING, process);
            const float* d_process = args.all_sources ? d_presynaptic : d_imprint;
            block.store_gradient(r, ZERO_PADDING, process, d_process, code.gradient_of(block));
            code.accumulate_gradients(block);
        }
        block.store_gradient(args.key, ZERO_PADDING, presynaptics + block.start * Fp, d_presynaptic, args.d_key);
    }

    // What is written in other blocks, on one side, adds to G, and to dL of the readers; of what comes after the end,
    // which is found by way of the last token, to dL of that one.
    void add_reading_of_others(const TokenBlock& block, const float* others, const float* factors, float sign) {
        if (is_zero(others, Fp * dp)) return;
        const int64_t rows = block.rows, by_way_of = sign < 0 && block.start + rows == args.length ? rows - 1 : -1;
        double* d_elapsed = this->d_elapsed + block.start;
        matmul<OVERWRITE>(rows, d, Fp, {d_outputs + block.start * dp, dp}, {others, Fp}, {more_d_activity, Fp});
        for (int64_t t = 0; t < rows; t++) {
            const float* of_others = more_d_activity + t * Fp;
            add_row(d_activity + t * Fp, of_others, Fp, factors[t]);
            if (t == by_way_of) continue;
            const float along = factors[t] * dot(readings + (block.start + t) * Fp, of_others, Fp);
            d_elapsed[t] += sign * along;
            if (by_way_of >= 0) d_elapsed[by_way_of] += along;
        }
    }

    // What is read in other blocks, on one side, adds to dI and dV, and to dL of the writers; of what comes after the
    // end, to dL of the last token. Returns the product of the gradient of the state with `others`, one like it.
    double add_gradients_of_others(const TokenBlock& block, const float* factors, float sign, const float* others) {
        if (is_zero(d_state, Fp * dp)) return 0;
        const int64_t rows = block.rows, by_way_of = sign < 0 && block.start + rows == args.length ? rows - 1 : -1;
        const float *imprint = imprints + block.start * Fp, *value = values + block.start * dp;
        float *d_imprint = d_imprints + block.start * Fp, *d_value = d_values + block.start * dp;
        double* d_elapsed = this->d_elapsed + block.start;
        transpose(F, d, {d_state, dp}, {d_state_transposed, Fp});
        matmul<OVERWRITE>(rows, d, Fp, {value, dp}, {d_state_transposed, Fp}, {more_d_activity, Fp});
        matmul<OVERWRITE>(rows, F, dp, {imprint, Fp}, {d_state, dp}, {more_d_value, dp});
        for (int64_t t = 0; t < rows; t++) {
            const float* of_others = more_d_activity + t * Fp;
            const float along = factors[t] * dot(imprint + t * Fp, of_others, Fp);
            d_elapsed[t] += sign * along;
            if (by_way_of >= 0) d_elapsed[by_way_of] += along;
            add_row(d_imprint + t * Fp, of_others, Fp, factors[t]);
            add_row(d_value + t * dp, more_d_value + t * dp, dp, factors[t]);
        }
        return dot(others, d_state_transposed, d * Fp);
    }

    // The gradient of a state from the one side of a block to the other.
    void pass_gradient(const TokenBlock& block, const float* factors) {
        const Matrix read = scaled_rows(factors, block.rows, dp, d_outputs + block.start * dp);
        leak.pass(block.rows, Fp * dp, d_state);
        matmul<ACCUMULATE, TRANSPOSED>(F, block.rows, dp, {readings + block.start * Fp, Fp}, read, {d_state, dp});
    }
};

// ---- synapses that leak, of tokens that do not lie on a line -------------------------------------------------------
//
// Of what token s wrote, token t finds a share D_ts that Python passes: with M = dY V^T and G, u and dz as of
// `TokenReader`,
//
//     z = D p      Y = (U I^T * D) V      with p what calcium counts
//
//     G = (M * D) I      dI = (M * D)^T U      dV = (U I^T * D)^T dY      dp = D^T dz      dD = U I^T * M + dz p^T

struct Distances : Sizes {
    const int64_t N, Np;
    // of each token; the first two are one and the same if the calcium counts all that is written
    float *imprints, *sources, *values, *imprints_transposed;
    // of one block: the calcium that its tokens find, D, and U I^T (rows x N, stride Np)
    float *activity, *presynaptic, *calciums, *shares, *scores;
    const TokenReader reader;

    Distances(const Arguments& args, Scratch& scratch)
        : Sizes(args),
          N(args.length),
          Np(padded(N)),
          imprints(scratch.take(N * Fp)),
          sources(counts_all() ? imprints : scratch.take(N * Fp)),
          values(scratch.take(N * dp)),
          imprints_transposed(scratch.take(Fp * Np)),
          activity(scratch.take(BLOCK * Fp)),
          presynaptic(scratch.take(BLOCK * Fp)),
          calciums(scratch.take(BLOCK * Fp)),
          shares(scratch.take(BLOCK * Np)),
          scores(scratch.take(BLOCK * Np)),
          reader(args) {}

    bool counts_all() const { return args.all_sources || !args.code.data; }

    void write(const TokenRange& range) {
        for (int64_t start = 0; start < N; start += BLOCK) {
            const TokenBlock block(args, range, start);
            block.load_imprint(args.code, imprints + start * Fp, presynaptic);
            if (sources != imprints) copy(sources + start * Fp, presynaptic, block.rows * Fp);
            block.load_rows(args.value, ZERO_PADDING, values + start * dp);
        }
        transpose(N, F, {imprints, Fp}, {imprints_transposed, Np});
    }

    // What a block finds: its tokens' activity, D and calcium.
    void find(const TokenBlock& block) {
        const float* proximity = args.proximity + (block.h * N + block.start) * N;
        for (int64_t t = 0; t < block.rows; t++)
            for (int64_t j = 0; j < N; j += LANES)
                store(shares + t * Np + j, Leak::without_denormals(load_partial(proximity + t * N + j, N - j)));
        block.load_activity(args.query, KEEP_PADDING, activity);
        matmul<OVERWRITE>(block.rows, N, Fp, {shares, Np}, {sources, Fp}, {calciums, Fp});
    }

    // x (rows x N, stride Np) = x * D, elementwise
    void apply_shares(int64_t rows, float* x) const {
        for (int64_t j = 0; j < rows * Np; j += LANES) store(x + j, load(x + j) * load(shares + j));
    }
};

struct DistancesForward : Distances {
    float *release, *output;

    DistancesForward(const Arguments& args, Scratch& scratch)
        : Distances(args, scratch), release(scratch.take(Fp)), output(scratch.take(BLOCK * dp)) {}

    void forward(int64_t head) {
        const TokenRange range = {head / args.heads, head % args.heads, 0, N};
        write(range);
        for (int64_t start = 0; start < N; start += BLOCK) {
            const TokenBlock block(args, range, start);
            const int64_t rows = block.rows;
            find(block);
            float* reading = activity;
            for (int64_t t = 0; t < rows; t++)
                reader.read(activity + t * Fp, calciums + t * Fp, release, reading + t * Fp);
            matmul<OVERWRITE>(rows, F, Np, {reading, Fp}, {imprints_transposed, Np}, {scores, Np});
            apply_shares(rows, scores);
            matmul<OVERWRITE>(rows, N, dp, {scores, Np}, {values, dp}, {output, dp});
            block.store_rows(output, args.output);
        }
    }
};

struct DistancesBackward : Distances {
    // of each token
    float *d_imprints, *d_sources, *d_values, *values_transposed, *sources_transposed;
    // of one block; `products` is M
    float *readings, *releases, *feedbacks, *d_activity, *d_calciums, *d_output, *products, *d_shares, *process;

    DistancesBackward(const Arguments& args, Scratch& scratch)
        : Distances(args, scratch),
          d_imprints(scratch.take(N * Fp)),
          d_sources(scratch.take(N * Fp)),
          d_values(scratch.take(N * dp)),
          values_transposed(scratch.take(dp * Np)),
          sources_transposed(counts_all() ? imprints_transposed : scratch.take(Fp * Np)),
          readings(scratch.take(BLOCK * Fp)),
          releases(scratch.take(BLOCK * Fp)),
          feedbacks(scratch.take(BLOCK)),
          d_activity(scratch.take(BLOCK * Fp)),
          d_calciums(scratch.take(BLOCK * Fp)),
          d_output(scratch.take(BLOCK * dp)),
          products(scratch.take(BLOCK * Np)),
          d_shares(scratch.take(BLOCK * Np)),
          process(scratch.take(BLOCK * Fp)) {}

    // `d_proximity` (N x N), to which that of the sequence is added
    void backward(int64_t b, int64_t h, float* d_proximity) {
        const TokenRange range = {b, h, 0, N};
        write(range);
        transpose(N, d, {values, dp}, {values_transposed, Np});
        if (sources != imprints) transpose(N, F, {sources, Fp}, {sources_transposed, Np});
        set_zero(d_imprints, N * Fp), set_zero(d_sources, N * Fp), set_zero(d_values, N * dp);
        for (int64_t start = 0; start < N; start += BLOCK) read({args, range, start}, d_proximity + start * N);
        for (int64_t start = 0; start < N; start += BLOCK) finish({args, range, start});
    }

    // d_query and dD of a block, and what keys, values and code get from it
    void read(const TokenBlock& block, float* d_proximity) {
        const int64_t rows = block.rows;
        find(block);
        block.load_rows(args.d_output, KEEP_PADDING, d_output);
        for (int64_t t = 0; t < rows; t++)
            feedbacks[t] = reader.read(activity + t * Fp, calciums + t * Fp, releases + t * Fp, readings + t * Fp);
        matmul<OVERWRITE>(rows, F, Np, {readings, Fp}, {imprints_transposed, Np}, {scores, Np});
        matmul<OVERWRITE>(rows, d, Np, {d_output, dp}, {values_transposed, Np}, {products, Np});
        for (int64_t j = 0; j < rows * Np; j += LANES) store(d_shares + j, load(scores + j) * load(products + j));
        apply_shares(rows, scores), apply_shares(rows, products);

        matmul<OVERWRITE>(rows, N, Fp, {products, Np}, {imprints, Fp}, {d_activity, Fp});  // G
        for (int64_t t = 0; t < rows; t++)
            reader.differentiate(activity + t * Fp, calciums + t * Fp, releases + t * Fp, readings + t * Fp,
                                 feedbacks[t], d_activity + t * Fp, d_calciums + t * Fp);
        block.store_gradient(args.query, KEEP_PADDING, activity, d_activity, args.d_query);
        matmul<ACCUMULATE>(rows, F, Np, {d_calciums, Fp}, {sources_transposed, Np}, {d_shares, Np});
        for (int64_t t = 0; t < rows; t++)
            for (int64_t j = 0; j < N; j += LANES) {
                float* sum = d_proximity + t * N + j;
                store_partial(sum, load_partial(sum, N - j) + load(d_shares + t * Np + j), N - j);
            }
        matmul<ACCUMULATE, TRANSPOSED>(N, rows, Fp, {products, Np}, {readings, Fp}, {d_imprints, Fp});
        matmul<ACCUMULATE, TRANSPOSED>(N, rows, dp, {scores, Np}, {d_output, dp}, {d_values, dp});
        matmul<ACCUMULATE, TRANSPOSED>(N, rows, Fp, {shares, Np}, {d_calciums, Fp}, {d_sources, Fp});
    }

    // d_key, d_value and d_code of a block
    void finish(const TokenBlock& block) {
        float *d_imprint = d_imprints + block.start * Fp, *d_presynaptic = d_sources + block.start * Fp;
        add_row(d_presynaptic, d_imprint, block.rows * Fp);
        if (args.code.data) {
            block.load_activity(args.code, ZERO_PADDING, process);
            const float* d_process = args.all_sources ? d_presynaptic : d_imprint;
            block.store_gradient(args.code, ZERO_PADDING, process, d_process, args.d_code);
        }
        block.load_activity(args.key, ZERO_PADDING, presynaptic);
        block.store_gradient(args.key, ZERO_PADDING, presynaptic, d_presynaptic, args.d_key);
        block.store_rows(d_values + block.start * dp, args.d_value);  // 0 at padded tokens, whose imprint is 0
    }
};

// The most blocks that a row has: a block ends where its document does.
int64_t most_blocks_in_a_row(const Arguments& args) {
    int64_t most = 0;
    for (int64_t b = 0; b < (args.documents.data ? args.batch : 1); b++) {
        int64_t blocks = 0;
        for (int64_t first = 0, last; first < args.length; first = last) {
            last = args.documents.end(b, first, args.length);
            blocks += (last - first + BLOCK - 1) / BLOCK;
        }
        most = most < blocks ? blocks : most;
    }
    return most;
}

}  // namespace

// ---- what Python calls ---------------------------------------------------------------------------------------------
//
// Each function returns 0, or 1 if there was too little memory; results are then incomplete.

// Python compares it with the size of its own structure before it calls anything.
extern "C" int64_t size_of_arguments() { return sizeof(Arguments); }

// hebbian (splits, B, H, F, d) and calcium (splits, B, H, F), what each part of the sequence writes, from key, value
// and code.
extern "C" int write_forward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    return run_tasks<WriteForward>(args, args.all_heads() * args.splits, [&](WriteForward& write, int64_t task) {
        const TokenRange range = range_of_task(args, task);
        write.code.begin_head(range.b, range.h);
        write.forward(range);
        store_matrix({write.hebbian, write.dp}, write.F, write.d, args.hebbian + task * write.F * write.d);
        copy(args.calcium + task * write.F, write.calcium, write.F);
    });
}

// d_key, d_value and d_code from d_hebbian and d_calcium. Where the batch shares one code, one task collects its
// gradients of the whole batch.
extern "C" int write_backward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    const bool is_shared = args.d_code.data && args.d_code.batch == 0;
    const int64_t heads = is_shared ? args.heads : args.all_heads();
    return run_tasks<WriteBackward>(args, heads * args.splits, [&](WriteBackward& write, int64_t task) {
        const int64_t F = write.F, d = write.d;
        // the same head of the first sequence, of as many as the task has
        const int64_t part = task / heads, of_part = task % heads;
        TokenRange range = range_of_task(args, part * args.all_heads() + of_part);
        for (int64_t sequence = 0; sequence < (is_shared ? args.batch : 1); sequence++, range.b++) {
            const int64_t head = range.b * args.heads + range.h;
            load_matrix(args.d_hebbian + head * F * d, F, d, {write.d_hebbian, write.dp});
            copy(write.d_calcium, args.d_calcium + head * F, F);
            write.code.begin_head(range.b, range.h);
            write.code.clear_gradients();
            write.backward(range, sequence > 0 ? ACCUMULATE : OVERWRITE);
            write.code.store_gradients();
        }
    });
}

// output from query, hebbian and, with feedback, plasticity.
extern "C" int read_forward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    typedef StateReader<ReadForward> Reader;
    return run_tasks<Reader>(args, args.all_heads() * args.splits, [&](Reader& reader, int64_t task) {
        const TokenRange range = range_of_task(args, task);
        reader.load_state(range);
        reader.read.forward(range, reader.hebbian, 1);
    });
}

// d_query and, for each part of the sequence, d_hebbian (splits, B, H, F, d) and d_plasticity (splits, B, H, F).
extern "C" int read_backward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    typedef StateReader<ReadBackward> Reader;
    return run_tasks<Reader>(args, args.all_heads() * args.splits, [&](Reader& reader, int64_t task) {
        ReadBackward& read = reader.read;
        const TokenRange range = range_of_task(args, task);
        reader.load_state(range);
        read.backward(range, reader.hebbian, 1);
        store_matrix({read.d_hebbian, read.dp}, read.F, read.d, args.d_hebbian + task * read.F * read.d);
        if (args.feedback) copy(args.d_plasticity + task * read.F, read.d_plasticity, read.F);
    });
}

// output from query, key, value and code.
extern "C" int documents_forward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    return run_tasks<DocumentsForward>(args, args.all_heads(), [&](DocumentsForward& documents, int64_t task) {
        WriteForward& write = documents.write;
        ReadForward& read = documents.read;
        TokenRange range = {task / args.heads, task % args.heads, 0, 0};
        write.code.begin_head(range.b, range.h);
        for (; range.first < args.length; range.first = range.last) {
            range.last = args.documents.end(range.b, range.first, args.length);
            write.code.begin_document(range.first, range.last);
            write.forward(range);
            if (args.feedback) presynaptic_plasticity(write.calcium, args.alpha, write.Fp, read.plasticity, nullptr);
            if (args.at_synapse) release_synapses(write, write.calcium, write.hebbian);
            read.forward(range, write.hebbian, args.scale);
        }
    });
}

// d_query, d_key, d_value and d_code from d_output. States were not kept: they are written again.
extern "C" int documents_backward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    return run_tasks<DocumentsBackward>(args, args.all_heads(), [&](DocumentsBackward& documents, int64_t task) {
        WriteBackward& write = documents.write;
        ReadBackward& read = documents.read;
        const int64_t Fp = write.Fp, dp = write.dp;
        float* derivative = documents.plasticity_derivative;
        TokenRange range = {task / args.heads, task % args.heads, 0, 0};
        write.code.begin_head(range.b, range.h);
        write.code.clear_gradients();
        for (; range.first < args.length; range.first = range.last) {
            range.last = args.documents.end(range.b, range.first, args.length);
            write.code.begin_document(range.first, range.last);
            write.forward(range);
            if (args.feedback) presynaptic_plasticity(write.calcium, args.alpha, Fp, read.plasticity, derivative);
            if (args.at_synapse) release_synapses(write, write.calcium, write.hebbian);
            read.backward(range, write.hebbian, args.scale);
            copy(write.d_hebbian, read.d_hebbian, Fp * dp);
            for (int64_t j = 0; j < Fp; j += LANES) {  // without feedback, nothing reads the calcium
                const Vector zero = {}, d_calcium = load(read.d_plasticity + j) * load(derivative + j);
                store(write.d_calcium + j, args.feedback ? d_calcium : zero);
            }
            if (args.at_synapse) {  // kappa also depends on the calcium: d kappa / dz = (alpha - 1) kappa / z
                for (int64_t j = 0; j < write.F; j++) {
                    const float along = dot(read.d_hebbian + j * dp, write.hebbian + j * dp, dp), z = write.calcium[j];
                    write.d_calcium[j] += float(args.alpha - 1) * (along / (z < CALCIUM_FLOOR ? CALCIUM_FLOOR : z));
                }
                release_synapses(write, write.calcium, write.d_hebbian);
            }
            write.backward(range, OVERWRITE);
        }
        write.code.store_gradients();
    });
}

// output, and end_hebbian and end_calcium, which go on from hebbian and calcium.
extern "C" int causal_forward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    return run_tasks<CausalForward>(args, args.all_heads(),
                                    [](CausalForward& causal, int64_t head) { causal.forward(head); });
}

// d_query, d_key, d_value and d_code. d_hebbian and d_calcium hold the gradient of the state at the end when it is
// called, and that of the state at the beginning when it returns.
extern "C" int causal_backward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    return run_tasks<CausalBackward>(
        args, args.all_heads(), [](CausalBackward& causal, int64_t head) { causal.backward(head); },
        most_blocks_in_a_row(args));
}

// output, end_hebbian and end_calcium, and end_later_hebbian and end_later_calcium, which go on from later_hebbian and
// later_calcium.
extern "C" int both_ways_forward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    return run_tasks<BothWaysForward>(args, args.all_heads(),
                                      [](BothWaysForward& both, int64_t head) { both.forward(head); });
}

// d_query, d_key, d_value, d_code, d_log_decay and the gradients of the states, from d_output and those of the states
// that go on from them.
extern "C" int both_ways_backward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    return run_tasks<BothWaysBackward>(args, args.all_heads(),
                                       [](BothWaysBackward& both, int64_t head) { both.backward(head); });
}

// output.
extern "C" int distances_forward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    return run_tasks<DistancesForward>(args, args.all_heads(),
                                       [](DistancesForward& distances, int64_t head) { distances.forward(head); });
}

// d_query, d_key, d_value, d_code and, added to what it holds, d_proximity (splits, H, N, N), that of each part of the
// batch, from d_output.
extern "C" int distances_backward(const Arguments* arguments) {
    const Arguments& args = *arguments;
    const int64_t tasks = args.heads * args.splits;
    return run_tasks<DistancesBackward>(args, tasks, [&](DistancesBackward& distances, int64_t task) {
        const int64_t part = task / args.heads, last = args.batch * (part + 1) / args.splits;
        for (int64_t b = args.batch * part / args.splits; b < last; b++)
            distances.backward(b, task % args.heads, args.d_proximity + task * args.length * args.length);
    });
}
"""
