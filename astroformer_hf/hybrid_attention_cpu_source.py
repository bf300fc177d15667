# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The C++ source of `hybrid_attention_cpu.py`, which explains how it is called.

It is text in a Python module because only Python modules travel with a checkpoint. The fields of the arguments and the
constants are put in from Python.
"""

import ctypes
from string import Template

from .cpu_source import INCLUDES, common_source, struct_fields


def generate_source(*, arguments: type[ctypes.Structure], floor: float, most_gain: float) -> str:
    """The complete C++ source, which computes in float32 and in float64.

    Args:
        arguments (`type[ctypes.Structure]`): what every function takes; its numbers and pointers become fields of the
            C++ struct `Arguments`, a field that is itself a structure `_Name` has the type `Name`, which the source
            defines.
        floor (`float`): of the normaliser.
        most_gain (`float`): of the exponent of a key's loudness.
    """
    constants = {"floor": repr(float(floor)), "most_gain": repr(float(most_gain))}
    in_both = (
        f"namespace of_{real} {{\n{common_source(real)}"
        f"{Template(KERNELS).substitute(constants, fields=struct_fields(arguments, real))}\n}}\n"
        for real in ("float", "double")
    )
    return f"{INCLUDES}\nnamespace {{\n{''.join(in_both)}}}\n{FUNCTIONS}"


KERNELS = r"""
// ---- what Python passes --------------------------------------------------------------------------------------------

// Letters in comments: B batch, K key heads, H heads of queries, N tokens, d head size, R columns of a map, F = 2 R
// features, w tokens of the window, S sinks, T queries of a block. A p after a size, as in dp, means that it is padded
// to whole vectors; Fp = 2 Rp: the features of W x come first, those of -W x behind them.

struct Counts {  // (B)
    const int64_t* data;
};

// States are contiguous: hebbian (B, K, F, d), calcium (B, K, F), window (B, K, w, 2 d), sinks (B, K, S, 2 d); `end_`
// means after the last token, `d_` the gradient. So are the maps: query_map (H, d, R), key_map (K, d, R), key_loudness
// (K, d), loudness (H), whose gradients have a batch in front.
struct Arguments {
$fields
};

const Real FLOOR = $floor, MOST_GAIN = $most_gain, INFINITE = __builtin_inf();

// ---- rows ----------------------------------------------------------------------------------------------------------

template <int N>
inline Real maximum_of_lanes(typename Lanes<N>::Type x) {
    if constexpr (N == 2) {
        return x[0] > x[1] ? x[0] : x[1];
    } else {
        typename Lanes<N / 2>::Type low, high;
        memcpy(&low, &x, sizeof low);
        memcpy(&high, (const char*)&x + sizeof low, sizeof high);
        return maximum_of_lanes<N / 2>(low > high ? low : high);
    }
}

inline Real maximum(Vector x) { return maximum_of_lanes<LANES>(x); }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline Vector magnitude(Vector x) { return x < 0 ? -x : x; }

alignas(64) const Integer LANE_NUMBERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// first, first + 1, ...
inline IntegerVector numbers_from(int64_t first) { return *(const IntegerVector*)LANE_NUMBERS + (Integer)first; }

inline void load_row(const Real* x, int64_t n, Real* y) {
    for (int64_t j = 0; j < n; j += LANES) store(y + j, load_partial(x + j, n - j));
}

inline void store_row(const Real* y, int64_t n, Real* x) {
    for (int64_t j = 0; j < n; j += LANES) store_partial(x + j, load(y + j), n - j);
}

inline int64_t whole_vectors(int64_t n) { return n / LANES * LANES; }  // rounded down

// ---- sizes ---------------------------------------------------------------------------------------------------------

enum { MOST_QUERIES = 48 };  // of a block

// A block of T queries, the first of them token s, takes the tokens of `columns` one by one; column 0 is token
// s - reach. Query i of the block reads columns i + 1 to i + exact exactly, but for sinks, which are read beside them;
// the columns up to i, and bidirectionally those beyond, as the synapses would. What lies on either side of the columns
// is in the state that the block reads.
struct Sizes {
    const Arguments& args;
    const int64_t N, d, R, dp, Rp, Fp, T, reach, exact, columns, Cp, S, slots, Sp, blocks, state_size, chunk, rows_held;
    const bool causal;

    explicit Sizes(const Arguments& args)
        : args(args), N(args.length), d(args.head_dim), R(args.map_columns), dp(padded(d)), Rp(padded(R)), Fp(2 * Rp),
          T(N < 1 ? 1 : min(N, MOST_QUERIES)),
          reach(args.causal ? args.window_size : args.window_size ? args.window_size + 1 : 0),
          exact(args.causal ? args.window_size : args.window_size ? 2 * args.window_size + 1 : 0),
          columns(T + exact + (args.causal ? 0 : 1)),
          Cp(padded(columns) + LANES),
          S(args.sink_tokens), slots(args.causal ? S : 2 * S), Sp(padded(slots)),
          blocks((N + T - 1) / T),
          state_size(Fp * (dp + 1)),
          chunk((blocks + args.chunks - 1) / args.chunks * T),
          rows_held(min(chunk, N) + Cp),
          causal(args.causal) {}

    // the columns that are written to the synapses of a causal block itself, and to those of a bidirectional one
    int64_t mapped_columns() const { return causal ? T : columns; }
    int64_t feature_row(int64_t feature) const { return feature < R ? feature : Rp + feature - R; }
};

// ---- forward -------------------------------------------------------------------------------------------------------

// One key head of one sequence, or causally a chunk of it, and the heads of queries that read from it.
struct Forward : Sizes {
    int64_t b = 0, k = 0, count = 0, before = 0, start = 0;  // start: the first token of the chunk
    // of the key head; row j of keys and values is token j - reach, and 0 where it is no ordinary token. Held are those
    // from the row `start` on
    Real *held_keys, *held_values, *held_ordinary;
    Real *keys = nullptr, *values = nullptr, *is_ordinary = nullptr;
    Real *sink_keys, *sink_keys_t, *sink_values, *seen_from;  // seen_from: the first query that sees a sink
    Real *key_map, *key_loudness, *query_maps;
    Real *state, *later, *whole_state;
    // of a block
    Real *keys_t, *features_t, *log_gain;
    // of a head of queries in it
    Real *query, *phi, *scores, *linear, *sink_weights, *output, *totals;

    Forward(const Arguments& args, Scratch& scratch)
        : Sizes(args),
          held_keys(scratch.take(rows_held * dp)),
          held_values(scratch.take(rows_held * dp)),
          held_ordinary(scratch.take(rows_held)),
          sink_keys(scratch.take(Sp * dp)), sink_keys_t(scratch.take(dp * Sp)), sink_values(scratch.take(Sp * dp)),
          seen_from(scratch.take(Sp)),
          key_map(scratch.take(dp * Rp)), key_loudness(scratch.take(dp)),
          query_maps(scratch.take(args.groups * dp * Rp)),
          state(scratch.take(state_size)), later(scratch.take(causal ? 0 : blocks * state_size)),
          whole_state(scratch.take(causal ? 0 : state_size)),
          keys_t(scratch.take(dp * Cp)), features_t(scratch.take(Fp * Cp)), log_gain(scratch.take(Cp)),
          query(scratch.take(T * dp)), phi(scratch.take(T * Fp)), scores(scratch.take(T * Cp)),
          linear(scratch.take(T * Cp)), sink_weights(scratch.take(T * Sp)), output(scratch.take(T * dp)),
          totals(scratch.take(T)) {}

    int64_t key_head() const { return b * args.key_heads + k; }
    int64_t head(int64_t g) const { return k * args.groups + g; }
    int64_t rows_at(int64_t s) const { return min(T, count - s); }

    // Keys and values of a token, of which those before the first are in the window of the state.
    const Real* key_of(int64_t p) const { return p < 0 ? of_window(args.window, p) : args.key.at(b, k, p); }
    const Real* value_of(int64_t p) const { return p < 0 ? of_window(args.window, p) + d : args.value.at(b, k, p); }
    Real* of_window(Real* window, int64_t p) const {
        return window + (key_head() * args.window_size + args.window_size + p) * 2 * d;
    }
    Real* of_sinks(Real* sinks, int64_t slot) const { return sinks + (key_head() * S + slot) * 2 * d; }

    static constexpr int64_t IN_STATE = -1, MISSING = -2;
    int64_t token_of_sink(int64_t slot) const {
        if (causal) return slot < before ? IN_STATE : slot - before < count ? slot - before : MISSING;
        if (slot < S) return slot < count ? slot : MISSING;
        const int64_t p = count - 1 - (slot - S);  // in a short text, none twice
        return p >= S ? p : MISSING;
    }

    void begin(int64_t task, int64_t number_of_chunk = 0) {
        b = task / args.key_heads, k = task % args.key_heads, start = number_of_chunk * chunk;
        count = args.count.data[b], before = causal ? args.counted.data[b] : 0;
        keys = held_keys - start * dp, values = held_values - start * dp, is_ordinary = held_ordinary - start;
        for (int64_t row = start; row < start + rows_held; row++) {
            const int64_t p = row - reach;
            const bool ordinary = causal ? before + p >= S && p < count : p >= S && p < count - S;
            is_ordinary[row] = ordinary;
            if (ordinary) {
                load_row(key_of(p), d, keys + row * dp), load_row(value_of(p), d, values + row * dp);
            } else {
                set_zero(keys + row * dp, dp), set_zero(values + row * dp, dp);
            }
        }
        for (int64_t slot = 0; slot < Sp; slot++) {
            const int64_t p = slot < slots ? token_of_sink(slot) : MISSING;
            const Real never = 1 << 23;
            seen_from[slot] = p == MISSING ? never : p == IN_STATE || !causal ? Real(-1) : (Real)p;
            set_zero(sink_keys + slot * dp, dp), set_zero(sink_values + slot * dp, dp);
            if (p == MISSING) continue;
            const Real* held = p == IN_STATE ? of_sinks(args.sinks, slot) : nullptr;
            load_row(held ? held : key_of(p), d, sink_keys + slot * dp);
            load_row(held ? held + d : value_of(p), d, sink_values + slot * dp);
        }
        transpose(Sp, dp, {sink_keys, dp}, {sink_keys_t, Sp});
        load_matrix(args.key_map + k * d * R, d, R, {key_map, Rp});
        load_row(args.key_loudness + k * d, d, key_loudness);
        for (int64_t g = 0; g < args.groups; g++)
            load_matrix(args.query_map + head(g) * d * R, d, R, {query_maps + g * dp * Rp, Rp});
        set_zero(state, state_size);
        if (causal) load_state(args.hebbian, args.calcium, state);
    }

    void load_state(const Real* hebbian, const Real* calcium, Real* y) const {
        for (int64_t f = 0; f < 2 * R; f++) {
            load_row(hebbian + (key_head() * 2 * R + f) * d, d, y + feature_row(f) * dp);
            y[Fp * dp + feature_row(f)] = calcium[key_head() * 2 * R + f];
        }
    }

    void store_state(const Real* y, Real* hebbian, Real* calcium) const {
        for (int64_t f = 0; f < 2 * R; f++) {
            store_row(y + feature_row(f) * dp, d, hebbian + (key_head() * 2 * R + f) * d);
            calcium[key_head() * 2 * R + f] = y[Fp * dp + feature_row(f)];
        }
    }

    // phi of the keys in n columns from c0 of the block at s, as features by tokens; 0 where a token is not ordinary.
    void map_keys(int64_t s, int64_t c0, int64_t n) const {
        const int64_t last = c0 + padded(n);
        const int64_t first = whole_vectors(c0), held = padded(last);
        transpose(min(held, Cp) - first, dp, {keys + (s + first) * dp, dp}, {keys_t + first, Cp});
        matmul<OVERWRITE, TRANSPOSED>(R, d, last - c0, {key_map, Rp}, {keys_t + c0, Cp}, {features_t + c0, Cp});
        for (int64_t c = c0; c < last; c += LANES) {
            Vector exponent = {}, most = {}, sum = {};
            for (int64_t i = 0; i < d; i++) exponent += key_loudness[i] * load(keys_t + i * Cp + c);
            store(log_gain + c, exponent);
            Real* const rows = features_t + c;
            for (int64_t j = 0; j < R; j++) most = larger(magnitude(load(rows + j * Cp)), most);
            for (int64_t j = 0; j < R; j++) {
                const Vector x = load(rows + j * Cp), plus = exponential(x - most), minus = exponential(-x - most);
                store(rows + j * Cp, plus), store(rows + (Rp + j) * Cp, minus);
                sum += plus + minus;
            }
            const Vector zero = {};
            const Vector gain = load(is_ordinary + s + c) > 0 ? exponential(clamped(exponent)) / sum : zero;
            for (int64_t j = 0; j < R; j++) {
                store(rows + j * Cp, load(rows + j * Cp) * gain);
                store(rows + (Rp + j) * Cp, load(rows + (Rp + j) * Cp) * gain);
            }
        }
    }

    static Vector clamped(Vector x) {
        x = x > MOST_GAIN ? broadcast(MOST_GAIN) : x;
        return x < -MOST_GAIN ? broadcast(-MOST_GAIN) : x;
    }

    // Writes the tokens of n columns from c0 to the synapses.
    void write(int64_t s, int64_t c0, int64_t n, Real* to) const {
        matmul<ACCUMULATE>(Fp, n, dp, {features_t + c0, Cp}, {values + (s + c0) * dp, dp}, {to, dp});
        for (int64_t f = 0; f < Fp; f++) {
            Vector total = {};
            const Real* row = features_t + f * Cp + c0;
            for (int64_t c = 0; c < n; c += LANES) total += mask_tail(load(row + c), n - c);
            to[Fp * dp + f] += sum(total);
        }
    }

    // later[i]: what is written behind the columns of block i
    void write_later() const {
        const int64_t last = (count + T - 1) / T - 1;
        if (last < 0) return;
        set_zero(later + last * state_size, state_size);
        for (int64_t i = last; i > 0; i--) {
            map_keys(i * T, exact + 1, T);
            copy(later + (i - 1) * state_size, later + i * state_size, state_size);
            write(i * T, exact + 1, T, later + (i - 1) * state_size);
        }
    }

    // Weights of the tokens in the columns (`scores`) and of sinks, phi of the queries, and the sums of all weights.
    void weigh(int64_t g, int64_t s, int64_t rows, const Real* synapses) const {
        const Real loudness = args.loudness[head(g)];
        for (int64_t i = 0; i < rows; i++) load_row(args.query.at(b, head(g), s + i), d, query + i * dp);
        matmul<OVERWRITE>(rows, d, Rp, {query, dp}, {query_maps + g * dp * Rp, Rp}, {phi, Fp});
        for (int64_t i = 0; i < rows; i++) activate(phi + i * Fp);
        if (slots)
            matmul<OVERWRITE>(rows, d, Sp, {query, dp}, {sink_keys_t, Sp}, {sink_weights, Sp});
        for (int64_t i = 0; i < rows; i += TILE_ROWS) {
            const int64_t r = min(rows - i, TILE_ROWS);
            if (exact) {
                const int64_t first = whole_vectors(i + 1), last = padded(i + r + exact);
                matmul<OVERWRITE>(r, d, last - first, {query + i * dp, dp}, {keys_t + first, Cp},
                                  {scores + i * Cp + first, Cp});
            }
            int64_t behind = causal ? Cp : whole_vectors(i + exact + 1), last = padded(i + r);
            if (!causal && behind <= last) behind = Cp, last = padded(columns);
            matmul<OVERWRITE>(r, Fp, last, {phi + i * Fp, Fp}, {features_t, Cp}, {linear + i * Cp, Cp});
            if (behind < Cp)
                matmul<OVERWRITE>(r, Fp, padded(columns) - behind, {phi + i * Fp, Fp}, {features_t + behind, Cp},
                                  {linear + i * Cp + behind, Cp});
            for (int64_t j = i; j < i + r; j++) {
                const Real read = dot(phi + j * Fp, synapses + Fp * dp, Fp);
                totals[j] = weigh_row(j, s, loudness) + loudness * read;
            }
        }
    }

    // softmax of (u, -u)
    void activate(Real* u) const {
        Vector most = {}, total = {};
        for (int64_t j = 0; j < R; j += LANES) most = larger(magnitude(load(u + j)), most);
        most = broadcast(maximum(most));
        for (int64_t j = 0; j < R; j += LANES) {
            const Vector x = load(u + j);
            const Vector plus = mask_tail(exponential(x - most), R - j);
            const Vector minus = mask_tail(exponential(-x - most), R - j);
            store(u + j, plus), store(u + Rp + j, minus);
            total += plus + minus;
        }
        scale_row(u, Fp, 1 / sum(total));
    }

    // From the scores and products of a row to weights; their sum.
    Real weigh_row(int64_t i, int64_t s, Real loudness) const {
        Real *row = scores + i * Cp, *of_sinks = sink_weights + i * Sp;
        const Real *products = linear + i * Cp, scaling = args.scaling;
        const Vector zero = {}, nothing = broadcast(-INFINITE), query_number = broadcast((Real)min(s + i, 1 << 22));
        Vector most = nothing, total = {};
        const int64_t first = whole_vectors(i + 1), last = exact ? padded(i + 1 + exact) : first;
        for (int64_t c = first; c < last; c += LANES) {
            const IntegerVector number = numbers_from(c);
            const IntegerVector is_read = (number > (Integer)i) & (number <= (Integer)(i + exact)) &
                                          (load(is_ordinary + s + c) > 0);
            const Vector score = is_read ? load(row + c) * scaling : nothing;
            store(row + c, score), most = larger(score, most);
        }
        for (int64_t j = 0; j < Sp; j += LANES) {
            const Vector score = load(seen_from + j) <= query_number ? load(of_sinks + j) * scaling : nothing;
            store(of_sinks + j, score), most = larger(score, most);
        }
        const Real maximum_of_row = maximum(most);
        most = broadcast(maximum_of_row == -INFINITE ? 0 : maximum_of_row);
        for (int64_t j = 0; j < Sp; j += LANES) {
            const Vector score = load(of_sinks + j), weight = score == nothing ? zero : exponential(score - most);
            store(of_sinks + j, weight), total += weight;
        }
        for (int64_t c = 0; c < padded(columns); c += LANES) {
            Vector weight = {};
            if (c >= first && c < last) {
                const Vector score = load(row + c);
                weight = score == nothing ? zero : exponential(score - most);
            }
            if (c <= i || !causal) weight += is_linear(i, c) ? loudness * load(products + c) : zero;
            store(row + c, weight), total += weight;
        }
        return sum(total);
    }

    // which of the columns from c on query i reads from the synapses
    IntegerVector is_linear(int64_t i, int64_t c) const {
        const IntegerVector number = numbers_from(c), is_before = number <= (Integer)i;
        if (causal) return is_before;
        return is_before | ((number > (Integer)(i + exact)) & (number < (Integer)columns));
    }

    void answer(int64_t g, int64_t s, int64_t rows, const Real* synapses) const {
        weigh(g, s, rows, synapses);
        const Real loudness = args.loudness[head(g)];
        matmul<OVERWRITE>(rows, Fp, dp, {phi, Fp}, {synapses, dp}, {output, dp});
        for (int64_t i = 0; i < rows; i++) scale_row(output + i * dp, dp, loudness);
        for (int64_t i = 0; i < rows; i += TILE_ROWS) {
            const int64_t r = min(rows - i, TILE_ROWS);
            matmul<ACCUMULATE>(r, causal ? i + r + exact : columns, dp, {scores + i * Cp, Cp}, {values + s * dp, dp},
                               {output + i * dp, dp});
        }
        matmul<ACCUMULATE>(rows, slots, dp, {sink_weights, Sp}, {sink_values, dp}, {output, dp});
        for (int64_t i = 0; i < rows; i++) {
            scale_row(output + i * dp, dp, 1 / floored(totals[i]));
            store_row(output + i * dp, d, args.output.at(b, head(g), s + i));
        }
    }

    static Real floored(Real total) { return total < FLOOR ? FLOOR : total; }

    // What the block at s finds on either side of its columns.
    const Real* synapses_at(int64_t s) const {
        if (causal) return state;
        copy(whole_state, state, state_size);
        add_row(whole_state, later + s / T * state_size, state_size);
        return whole_state;
    }

    int64_t end_of_chunk() const { return min(start + chunk, N); }

    // What a chunk writes.
    void sum_chunk(int64_t task, int64_t number, Real* sums) {
        begin(task, number);
        set_zero(state, state_size);
        for (int64_t s = start; s < min(count, end_of_chunk()); s += T) {
            map_keys(s, 0, T);
            write(s, 0, rows_at(s), state);
        }
        copy(sums, state, state_size);
    }

    // `sums`: what the chunks of all tasks have written, one chunk after the other.
    void run(int64_t task, int64_t number, const Real* sums) {
        begin(task, number);
        for (int64_t i = 0; i < number; i++)
            add_row(state, sums + (i * args.batch * args.key_heads + task) * state_size, state_size);
        if (!causal) write_later();
        for (int64_t s = start; s < min(count, end_of_chunk()); s += T) {
            const int64_t rows = rows_at(s);
            const Real* synapses = synapses_at(s);
            prepare(s);
            for (int64_t g = 0; g < args.groups; g++) answer(g, s, rows, synapses);
            write(s, 0, rows, state);
        }
        for (int64_t g = 0; g < args.groups; g++)
            for (int64_t t = count < start ? start : count; t < end_of_chunk(); t++)
                memset(args.output.at(b, head(g), t), 0, sizeof(Real) * d);
        if (causal && number == args.chunks - 1) store_end();
    }

    // The keys of a block, and phi of those that are read from the synapses in it.
    void prepare(int64_t s) const {
        map_keys(s, 0, mapped_columns());
        const int64_t mapped = padded(mapped_columns());
        if (mapped < padded(columns))
            transpose(padded(columns) - mapped, dp, {keys + (s + mapped) * dp, dp}, {keys_t + mapped, Cp});
    }

    void store_end() const {
        store_state(state, args.end_hebbian, args.end_calcium);
        for (int64_t j = -args.window_size; j < 0; j++) {
            Real* row = of_window(args.end_window, j);
            copy(row, key_of(count + j), d), copy(row + d, value_of(count + j), d);
        }
        for (int64_t slot = 0; slot < S; slot++) {
            const int64_t p = token_of_sink(slot);
            Real* row = of_sinks(args.end_sinks, slot);
            if (p < 0) copy(row, of_sinks(args.sinks, slot), 2 * d);
            else copy(row, key_of(p), d), copy(row + d, value_of(p), d);
        }
    }
};

// ---- backward ------------------------------------------------------------------------------------------------------

// Everything is computed again from the inputs. With the weights a_tj of the pairs, their sum Z_t and the gradient y_t
// of an answer, the gradient of a weight is (y_t v_j - delta_t) / Z_t with delta_t = sum_j a_tj (y_t v_j) / Z_t.
struct Backward : Forward {
    Real *states;  // that a block reads; then its gradient
    Real *d_keys, *d_values, *d_sink_keys, *d_sink_values, *sink_values_t;
    Real *key_map_t, *query_maps_t, *d_key_map_t, *d_key_loudness, *d_query_maps, *d_loudness;
    Real *d_state, *d_read;
    Real *values_t, *features, *d_features_t, *d_u_t, *d_gain, *hebbian_t;
    Real *d_output, *d_scores, *d_sinks, *d_phi, *d_u, *d_query;

    Backward(const Arguments& args, Scratch& scratch)
        : Forward(args, scratch),
          states(scratch.take(blocks * state_size)),
          d_keys(scratch.take(rows_held * dp)), d_values(scratch.take(rows_held * dp)),
          d_sink_keys(scratch.take(Sp * dp)), d_sink_values(scratch.take(Sp * dp)),
          sink_values_t(scratch.take(dp * Sp)),
          key_map_t(scratch.take(Rp * dp)), query_maps_t(scratch.take(args.groups * Rp * dp)),
          d_key_map_t(scratch.take(Rp * dp)), d_key_loudness(scratch.take(dp)),
          d_query_maps(scratch.take(args.groups * dp * Rp)), d_loudness(scratch.take(args.groups)),
          d_state(scratch.take(state_size)), d_read(scratch.take(state_size)),
          values_t(scratch.take(dp * Cp)), features(scratch.take(Cp * Fp)), d_features_t(scratch.take(Fp * Cp)),
          d_u_t(scratch.take(Rp * Cp)), d_gain(scratch.take(Cp)), hebbian_t(scratch.take(dp * Fp)),
          d_output(scratch.take(T * dp)), d_scores(scratch.take(T * Cp)), d_sinks(scratch.take(T * Sp)),
          d_phi(scratch.take(T * Fp)), d_u(scratch.take(T * Rp)), d_query(scratch.take(T * dp)) {}

    void begin(int64_t task) {
        Forward::begin(task);
        set_zero(d_keys, rows_held * dp), set_zero(d_values, rows_held * dp);
        set_zero(d_sink_keys, Sp * dp), set_zero(d_sink_values, Sp * dp);
        set_zero(d_key_map_t, Rp * dp), set_zero(d_key_loudness, dp);
        set_zero(d_query_maps, args.groups * dp * Rp), set_zero(d_loudness, args.groups);
        set_zero(d_state, state_size);
        transpose(Sp, dp, {sink_values, dp}, {sink_values_t, Sp});
        transpose(dp, Rp, {key_map, Rp}, {key_map_t, dp});
        for (int64_t g = 0; g < args.groups; g++)
            transpose(dp, Rp, {query_maps + g * dp * Rp, Rp}, {query_maps_t + g * Rp * dp, dp});
        if (causal) load_state(args.d_end_hebbian, args.d_end_calcium, d_state);
        else write_later();
        for (int64_t s = 0; s < count; s += T) {
            copy(states + s / T * state_size, synapses_at(s), state_size);
            map_keys(s, 0, T);
            write(s, 0, rows_at(s), state);
        }
    }

    void run(int64_t task) {
        begin(task);
        const int64_t last = (count + T - 1) / T - 1;
        for (int64_t i = last; i >= 0; i--) {
            const int64_t s = i * T, rows = rows_at(s);
            Real* synapses = states + i * state_size;
            prepare(s), prepare_gradients(s, 0, mapped_columns());
            transpose(Fp, dp, {synapses, dp}, {hebbian_t, Fp});
            set_zero(d_read, state_size);
            for (int64_t g = 0; g < args.groups; g++) differentiate(g, s, rows, synapses);
            differentiate_written(s, 0, rows);  // what later blocks read of it
            differentiate_map(s, 0, mapped_columns());
            copy(synapses, d_read, state_size);
            add_row(d_state, d_read, state_size);
        }
        if (causal) store_state(d_state, args.d_hebbian, args.d_calcium);
        set_zero(d_state, state_size);
        for (int64_t i = 1; !causal && i <= last; i++) {  // what earlier blocks read of it
            add_row(d_state, states + (i - 1) * state_size, state_size);
            map_keys(i * T, exact + 1, T), prepare_gradients(i * T, exact + 1, T);
            differentiate_written(i * T, exact + 1, T);
            differentiate_map(i * T, exact + 1, T);
        }
        store_gradients();
    }

    void prepare_gradients(int64_t s, int64_t c0, int64_t n) const {
        const int64_t first = whole_vectors(c0);
        transpose(Fp, padded(c0 + n) - first, {features_t + first, Cp}, {features + first * Fp, Fp});
        transpose(padded(columns), dp, {values + s * dp, dp}, {values_t, Cp});
        set_zero(d_features_t, Fp * Cp);
    }

    // One head's queries of a block.
    void differentiate(int64_t g, int64_t s, int64_t rows, const Real* synapses) const {
        weigh(g, s, rows, synapses);
        const Real loudness = args.loudness[head(g)], scaling = args.scaling;
        for (int64_t i = 0; i < rows; i++) {
            load_row(args.d_output.at(b, head(g), s + i), d, d_output + i * dp);
            scale_row(d_output + i * dp, dp, 1 / floored(totals[i]));
        }
        matmul<OVERWRITE>(rows, d, Fp, {d_output, dp}, {hebbian_t, Fp}, {d_phi, Fp});
        if (slots)
            matmul<OVERWRITE>(rows, d, Sp, {d_output, dp}, {sink_values_t, Sp}, {d_sinks, Sp});
        set_zero(d_query, rows * dp);
        for (int64_t i = 0; i < rows; i += TILE_ROWS) {
            const int64_t r = min(rows - i, TILE_ROWS), read = causal ? i + r + exact : columns;
            matmul<OVERWRITE>(r, d, padded(read), {d_output + i * dp, dp}, {values_t, Cp}, {d_scores + i * Cp, Cp});
            for (int64_t j = i; j < i + r; j++) differentiate_row(j, padded(read), loudness, scaling, synapses);
            if (exact)
                matmul<ACCUMULATE>(r, r - 1 + exact, dp, {d_scores + i * Cp + i + 1, Cp},
                                   {keys + (s + i + 1) * dp, dp}, {d_query + i * dp, dp});
            matmul<ACCUMULATE>(r, causal ? i + r : columns, Fp, {linear + i * Cp, Cp}, {features, Fp},
                               {d_phi + i * Fp, Fp});
        }
        matmul<ACCUMULATE>(rows, slots, dp, {d_sinks, Sp}, {sink_keys, dp}, {d_query, dp});
        matmul<ACCUMULATE, TRANSPOSED>(slots, rows, dp, {d_sinks, Sp}, {query, dp}, {d_sink_keys, dp});
        matmul<ACCUMULATE, TRANSPOSED>(slots, rows, dp, {sink_weights, Sp}, {d_output, dp}, {d_sink_values, dp});
        for (int64_t c = 0; c < columns; c += TILE_ROWS) {  // the queries that read some of these columns
            const int64_t n = min(columns - c, TILE_ROWS), first = causal && c > exact ? c - exact : 0;
            const int64_t nearest = c > exact ? c - exact : 0, last = min(rows, c + n - 1);
            if (first < rows)
                matmul<ACCUMULATE, TRANSPOSED>(n, rows - first, dp, {scores + first * Cp + c, Cp},
                                               {d_output + first * dp, dp}, {d_values + (s + c) * dp, dp});
            if (exact && nearest < last)
                matmul<ACCUMULATE, TRANSPOSED>(n, last - nearest, dp, {d_scores + nearest * Cp + c, Cp},
                                               {query + nearest * dp, dp}, {d_keys + (s + c) * dp, dp});
        }
        for (int64_t i = 0; i < rows; i++) d_loudness[g] += differentiate_softmax(i, loudness);
        matmul<ACCUMULATE, TRANSPOSED>(Fp, rows, padded(mapped_columns()), {phi, Fp}, {linear, Cp}, {d_features_t, Cp});
        matmul<ACCUMULATE, TRANSPOSED>(Fp, rows, dp, {phi, Fp}, {d_output, dp}, {d_read, dp});
        for (int64_t i = 0; i < rows; i++) add_row(d_read + Fp * dp, phi + i * Fp, Fp, -totals[i]);
        matmul<ACCUMULATE>(rows, R, dp, {d_u, Rp}, {query_maps_t + g * Rp * dp, dp}, {d_query, dp});
        matmul<ACCUMULATE, TRANSPOSED>(d, rows, Rp, {query, dp}, {d_u, Rp}, {d_query_maps + g * dp * Rp, Rp});
        for (int64_t i = 0; i < rows; i++) store_row(d_query + i * dp, d, args.d_query.at(b, head(g), s + i));
    }

    // d_scores and d_sinks, from y v / Z to gradients of scores; `linear` becomes the gradient of the products, d_phi
    // that of phi as far as the state goes, and `totals` delta / Z.
    void differentiate_row(int64_t i, int64_t width, Real loudness, Real scaling, const Real* synapses) const {
        Real *row = d_scores + i * Cp, *of_sinks = d_sinks + i * Sp, *products = linear + i * Cp;
        const Real *weights = scores + i * Cp, *weights_of_sinks = sink_weights + i * Sp;
        const Real along = dot(weights, row, width) + dot(weights_of_sinks, of_sinks, Sp) +
                           loudness * dot(phi + i * Fp, d_phi + i * Fp, Fp);
        const Real delta = totals[i] < FLOOR ? 0 : along / totals[i];  // the floor has no gradient
        const Vector zero = {}, one = zero + 1, greatest = exponential(zero);
        Vector of_scores = {}, number_of_greatest = {};
        for (int64_t c = 0; c < padded(columns); c += LANES) {
            const IntegerVector number = numbers_from(c);
            const IntegerVector is_exact = (number > (Integer)i) & (number <= (Integer)(i + exact));
            const Vector gradient = load(row + c) - delta, weight = load(weights + c);
            const Vector of_score = is_exact ? weight * gradient * scaling : zero;
            store(products + c, is_linear(i, c) ? gradient : zero);
            store(row + c, of_score);
            of_scores += of_score, number_of_greatest += is_exact & (weight == greatest) ? one : zero;
        }
        for (int64_t j = 0; j < Sp; j += LANES) {
            const Vector weight = load(weights_of_sinks + j);
            const Vector of_score = weight * (load(of_sinks + j) - delta) * scaling;
            store(of_sinks + j, of_score);
            of_scores += of_score, number_of_greatest += weight == greatest ? one : zero;
        }
        // exact weights are those beside the greatest: it takes back what all of them together would gain
        const Real number = sum(number_of_greatest);
        const Vector taken_back = broadcast(number > 0 ? sum(of_scores) / number : 0);
        for (int64_t c = 0; c < padded(columns); c += LANES) {
            const IntegerVector numbers = numbers_from(c);
            const IntegerVector is_exact = (numbers > (Integer)i) & (numbers <= (Integer)(i + exact));
            store(row + c, load(row + c) - (is_exact & (load(weights + c) == greatest) ? taken_back : zero));
        }
        for (int64_t j = 0; j < Sp; j += LANES) {
            const Vector share = load(weights_of_sinks + j) == greatest ? taken_back : zero;
            store(of_sinks + j, load(of_sinks + j) - share);
        }
        add_row(d_phi + i * Fp, synapses + Fp * dp, Fp, -delta);
        totals[i] = delta;
    }

    // d_u from d_phi; phi becomes phi times loudness. The gradient of the loudness.
    Real differentiate_softmax(int64_t i, Real loudness) const {
        Real *y = phi + i * Fp, *d_y = d_phi + i * Fp, *to = d_u + i * Rp;
        const Real along = dot(y, d_y, Fp);
        scale_row(y, Fp, loudness);
        for (int64_t j = 0; j < Rp; j += LANES)
            store(to + j, load(y + j) * (load(d_y + j) - along) - load(y + Rp + j) * (load(d_y + Rp + j) - along));
        return along;
    }

    // From d_state to the tokens of n columns that are in it.
    void differentiate_written(int64_t s, int64_t c0, int64_t n) const {
        for (int64_t i = 0; i < dp; i++)
            for (int64_t c = c0 + n; c < c0 + padded(n); c++) values_t[i * Cp + c] = 0;
        matmul<ACCUMULATE>(Fp, d, padded(n), {d_state, dp}, {values_t + c0, Cp}, {d_features_t + c0, Cp});
        for (int64_t f = 0; f < Fp; f++)
            for (int64_t c = c0; c < c0 + n; c++) d_features_t[f * Cp + c] += d_state[Fp * dp + f];
        matmul<ACCUMULATE>(n, Fp, dp, {features + c0 * Fp, Fp}, {d_state, dp}, {d_values + (s + c0) * dp, dp});
    }

    // From d_features_t to keys, map and loudness of keys.
    void differentiate_map(int64_t s, int64_t c0, int64_t n) const {
        for (int64_t c = c0; c < c0 + n; c += LANES) {
            const Vector exponent = load(log_gain + c), zero = {};
            Vector along = {};
            for (int64_t f = 0; f < R; f++) {
                along += load(features_t + f * Cp + c) * load(d_features_t + f * Cp + c);
                along += load(features_t + (Rp + f) * Cp + c) * load(d_features_t + (Rp + f) * Cp + c);
            }
            store(d_gain + c, magnitude(exponent) <= MOST_GAIN ? along : zero);
            along *= exponential(-clamped(exponent));
            for (int64_t f = 0; f < R; f++) {
                const Vector plus = load(features_t + f * Cp + c), minus = load(features_t + (Rp + f) * Cp + c);
                const Vector d_plus = load(d_features_t + f * Cp + c), d_minus = load(d_features_t + (Rp + f) * Cp + c);
                store(d_u_t + f * Cp + c, plus * (d_plus - along) - minus * (d_minus - along));
            }
        }
        Real* const rows = d_keys + (s + c0) * dp;
        const Real* const key_rows = keys + (s + c0) * dp;
        matmul<ACCUMULATE, TRANSPOSED>(n, R, dp, {d_u_t + c0, Cp}, {key_map_t, dp}, {rows, dp});
        matmul<ACCUMULATE>(R, n, dp, {d_u_t + c0, Cp}, {key_rows, dp}, {d_key_map_t, dp});
        for (int64_t i = 0; i < n; i++) {
            add_row(rows + i * dp, key_loudness, dp, d_gain[c0 + i]);
            add_row(d_key_loudness, key_rows + i * dp, dp, d_gain[c0 + i]);
        }
    }

    void store_gradients() {
        for (int64_t g = 0; g < args.groups; g++) {
            for (int64_t t = count; t < N; t++) memset(args.d_query.at(b, head(g), t), 0, sizeof(Real) * d);
            const int64_t to = b * args.key_heads * args.groups + head(g);
            store_matrix({d_query_maps + g * dp * Rp, Rp}, d, R, args.d_query_map + to * d * R);
            args.d_loudness[to] = d_loudness[g];
        }
        transpose(Rp, dp, {d_key_map_t, dp}, {key_map, Rp});
        store_matrix({key_map, Rp}, d, R, args.d_key_map + key_head() * d * R);
        store_row(d_key_loudness, d, args.d_key_loudness + key_head() * d);
        // what was computed for rows that are no ordinary tokens was of zeros; the sinks and the end have their own
        for (int64_t row = 0; row < rows_held; row++)
            if (!is_ordinary[row]) set_zero(d_keys + row * dp, dp), set_zero(d_values + row * dp, dp);
        for (int64_t j = -args.window_size; causal && j < 0; j++) {
            const Real* end = of_window(args.d_end_window, j);
            const int64_t row = (count + j + reach) * dp;
            for (int64_t i = 0; i < d; i++) d_keys[row + i] += end[i], d_values[row + i] += end[d + i];
        }
        for (int64_t slot = 0; slot < slots; slot++) {
            const int64_t p = token_of_sink(slot), row = (p + reach) * dp, from = slot * dp;
            const Real* end = causal ? of_sinks(args.d_end_sinks, slot) : nullptr;
            Real *to = d_keys + row, *to_value = d_values + row;
            if (p < 0 && causal) {
                to = of_sinks(args.d_sinks, slot), to_value = to + d;
                memset(to, 0, sizeof(Real) * 2 * d);
            } else if (p < 0) {
                continue;
            }
            for (int64_t i = 0; i < d; i++) {
                to[i] += d_sink_keys[from + i] + (end ? end[i] : 0);
                to_value[i] += d_sink_values[from + i] + (end ? end[d + i] : 0);
            }
            if (p >= 0 && causal) memset(of_sinks(args.d_sinks, slot), 0, sizeof(Real) * 2 * d);
        }
        for (int64_t t = 0; t < N; t++) {
            store_row(d_keys + (t + reach) * dp, d, args.d_key.at(b, k, t));
            store_row(d_values + (t + reach) * dp, d, args.d_value.at(b, k, t));
        }
        for (int64_t j = -args.window_size; causal && j < 0; j++) {
            Real* row = of_window(args.d_window, j);
            copy(row, d_keys + (j + reach) * dp, d), copy(row + d, d_values + (j + reach) * dp, d);
        }
    }
};

// A causal sequence may be cut into chunks, so that every thread has something to do: what each writes is summed first.
inline int forward(const Arguments& args) {
    const int64_t heads = args.batch * args.key_heads, size = Sizes(args).state_size;
    Scratch scratch(sizeof(Real) * heads * (args.chunks - 1) * size + 2 * CACHE_LINE);
    if (!scratch.memory) return 1;
    Real* const sums = scratch.take(heads * (args.chunks - 1) * size);
    const int failed = run_tasks<Forward>(args, heads * (args.chunks - 1), [=](Forward& worker, int64_t task) {
        worker.sum_chunk(task % heads, task / heads, sums + task * size);
    });
    return failed | run_tasks<Forward>(args, heads * args.chunks, [=](Forward& worker, int64_t task) {
               worker.run(task % heads, task / heads, sums);
           });
}

inline int backward(const Arguments& args) {
    return run_tasks<Backward>(args, args.batch * args.key_heads,
                               [](Backward& worker, int64_t task) { worker.run(task); });
}
"""

FUNCTIONS = r"""
// output, and causally the state after the last token: end_hebbian, end_calcium, end_window and end_sinks
extern "C" int hybrid_forward(const of_float::Arguments* arguments) {
    return arguments->is_double ? of_double::forward(*(const of_double::Arguments*)arguments)
                                : of_float::forward(*arguments);
}

// the gradients `d_` of all inputs, from those of the results, d_output and `d_end_`
extern "C" int hybrid_backward(const of_float::Arguments* arguments) {
    return arguments->is_double ? of_double::backward(*(const of_double::Arguments*)arguments)
                                : of_float::backward(*arguments);
}

extern "C" int64_t size_of_arguments() { return sizeof(of_float::Arguments); }
"""
