// The arithmetic of rows.py for float and double, one pass over the rows that a step uses.
//
// Letters used for shapes in this file:
//     V  rows of the table     D  numbers in a row
//     n  ids of a step         u  different ids among them (u <= n)
//
// rows.py is the truth: each line of arithmetic below stands for one element-wise operation there, in the same order,
// each rounded once. Built without contraction into multiply-adds and without -ffast-math, so the bits are the same.
// What is won: a row is read and written once and not once for each operation, no copies of rows are made, and the rows
// ahead are asked for while this one is computed: in a large table every row is a miss of the TLB.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

// A compiler may take a function that only prefetches for one without effect, and drop its calls.
#define ALWAYS_INLINE __attribute__((always_inline)) inline

namespace {

using Index = std::int64_t;
constexpr Index AHEAD_BYTES = 2048;  // of each table, asked for before it is needed

// Rows of some tables that a step is about to use.
class Ahead {
  public:
    Ahead(const Index* rows, Index u, Index row_bytes)
        : rows_(rows), u_(u), bytes_(row_bytes), distance_(std::clamp<Index>(AHEAD_BYTES / row_bytes, 1, 64)) {}

    template <class... Table>
    ALWAYS_INLINE void ask(Index k, const Table*... tables) const {
        if (rows_ == nullptr || k + distance_ >= u_) return;
        const Index row = rows_[k + distance_];
        (lines(tables, row), ...);
    }

  private:
    template <class T>
    ALWAYS_INLINE void lines(const T* table, Index row) const {
        if (table == nullptr) return;
        const char* start = reinterpret_cast<const char*>(table) + row * bytes_;
        for (Index at = 0; at < bytes_; at += 64) __builtin_prefetch(start + at, 1, 3);
        __builtin_prefetch(start + bytes_ - 1, 1, 3);
    }

    const Index* rows_;
    Index u_, bytes_, distance_;
};

// The gradient of each row k: values (n, D) in this order; or, of values (entries, D), the one at place[k], or where that
// is below 0, the sum at -1 - place[k] of repeated.
template <class T>
struct Gradient {
    const T *values, *repeated;
    const Index* place;
    Index u, D;

    // What to add to each number: index_add_ starts from 0 and so makes 0 of -0, and -0 changes nothing.
    T zero() const { return place ? T(0) : -T(0); }

    ALWAYS_INLINE const T* of(Index k) const {
        if (place == nullptr) return values + k * D;
        if (k + 8 < u) {
            const char* later = reinterpret_cast<const char*>(at(k + 8));
            for (Index byte = 0; byte < D * Index(sizeof(T)); byte += 64) __builtin_prefetch(later + byte, 0, 3);
        }
        return at(k);
    }

    const T* at(Index k) const { return place[k] >= 0 ? values + place[k] * D : repeated + (-1 - place[k]) * D; }
};

template <class T>
struct SGD {
    T lr, momentum, undamped, weight_decay, sign, zero;
    bool decays, nesterov;

    T directed(T grad, T value) const {
        const T g = (grad + zero) * sign;
        return decays ? value * weight_decay + g : g;
    }

    void row(Index D, const T* __restrict grad, T* __restrict p) const {
        for (Index i = 0; i < D; ++i) p[i] -= directed(grad[i], p[i]) * lr;
    }

    template <bool FIRST, bool NESTEROV>
    void row(Index D, const T* __restrict grad, T* __restrict p, T* __restrict buffer) const {
        for (Index i = 0; i < D; ++i) {
            const T g = directed(grad[i], p[i]);
            const T b = FIRST ? g : buffer[i] * momentum + g * undamped;
            buffer[i] = b;
            p[i] -= (NESTEROV ? g + b * momentum : b) * lr;
        }
    }

    void row(Index D, const T* grad, T* p, T* buffer, bool first) const {
        if (first)
            nesterov ? row<true, true>(D, grad, p, buffer) : row<true, false>(D, grad, p, buffer);
        else
            nesterov ? row<false, true>(D, grad, p, buffer) : row<false, false>(D, grad, p, buffer);
    }
};

template <class T>
void sgd(const Gradient<T>& grad, const Index* rows, T* param, T* momentum_buffer, std::uint8_t* used,
         const SGD<T>& step) {
    const Index u = grad.u, D = grad.D;
    const Ahead ahead(rows, u, D * sizeof(T));
    for (Index k = 0; k < u; ++k) {
        ahead.ask(k, param, momentum_buffer);
        const Index row = rows ? rows[k] : k;
        if (momentum_buffer == nullptr) {
            step.row(D, grad.of(k), param + row * D);
            continue;
        }
        step.row(D, grad.of(k), param + row * D, momentum_buffer + row * D, used && !used[row]);
        if (used) used[row] = 1;
    }
}

template <class T>
struct Adagrad {
    T eps, weight_decay, sign, zero;
    bool decays;

    void directed(Index D, const T* __restrict grad, const T* __restrict p, T* __restrict g, T* __restrict square) const {
        for (Index i = 0; i < D; ++i) {
            const T against = (grad[i] + zero) * sign;
            g[i] = decays ? p[i] * weight_decay + against : against;
            square[i] = g[i] * g[i];
        }
    }

    void row(Index D, T rate, const T* __restrict g, T* __restrict square, T* __restrict p, T* __restrict total) const {
        for (Index i = 0; i < D; ++i) {
            total[i] += square[i];
            p[i] -= g[i] * rate / (std::sqrt(total[i]) + eps);
        }
    }

    // Apart, so that the compiler knows that the two halves do not overlap.
    static void fold(T* __restrict first, const T* __restrict second, Index count) {
        for (Index i = 0; i < count; ++i) first[i] += second[i];
    }

    // One sum for the row, of squares that are first folded as rows.py does.
    void row_as_one(Index D, T rate, const T* __restrict g, T* __restrict square, T* __restrict p, T* total) const {
        Index width = D;
        for (; width > 16; width = (width + 1) / 2) fold(square, square + (width + 1) / 2, width / 2);
        if (width == 16) {  // the same in registers
            T a[8];
            for (Index i = 0; i < 8; ++i) a[i] = square[i] + square[8 + i];
            square[0] = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
            width = 1;
        }
        for (; width > 1; width = (width + 1) / 2) fold(square, square + (width + 1) / 2, width / 2);
        *total += square[0] / T(D);
        const T root = std::sqrt(*total) + eps;
        for (Index i = 0; i < D; ++i) p[i] -= g[i] * rate / root;
    }
};

template <class T>
void adagrad(const Gradient<T>& grad, const Index* rows, T* param, T* state_sum, bool one_a_row,
             const double* rates, Index rates_stride, const Adagrad<T>& step) {
    const Index u = grad.u, D = grad.D;
    const Ahead ahead(rows, u, D * sizeof(T)), ahead_one(rows, u, sizeof(T));
    std::vector<T> g(D), square(D);
    for (Index k = 0; k < u; ++k) {
        ahead.ask(k, param, one_a_row ? nullptr : state_sum);
        if (one_a_row) ahead_one.ask(k, state_sum);
        const Index row = rows ? rows[k] : k;
        const T rate = T(rates[k * rates_stride]);
        T* p = param + row * D;
        step.directed(D, grad.of(k), p, g.data(), square.data());
        if (one_a_row)
            step.row_as_one(D, rate, g.data(), square.data(), p, state_sum + row);
        else
            step.row(D, rate, g.data(), square.data(), p, state_sum + row * D);
    }
}

// The two corrections of a row by the count of its uses: 1 - beta^t is looked up, 1 from the end of the table on.
struct Corrections {
    const std::int32_t* t;
    Index stride;
    const double *table1, *table2;
    Index size1, size2;
    double lr;

    double step_size(Index k) const { return 1 / table1[std::min<Index>(t[k * stride], size1 - 1)] * lr; }
    double root(Index k) const { return std::sqrt(table2[std::min<Index>(t[k * stride], size2 - 1)]); }
};

template <class T>
struct AdamW {
    T beta1, new1, beta2, new2, eps, kept, sign, zero;
    bool from_mean;

    template <bool AMSGRAD>
    void row(Index D, T step_size, T root, const T* __restrict grad, T* __restrict p, T* __restrict mean,
             T* __restrict square, T* __restrict most) const {
        for (Index i = 0; i < D; ++i) {
            const T g = (grad[i] + zero) * sign, old = mean[i];
            const T m = from_mean ? old + (g - old) * new1 : g - (g - old) * beta1;
            const T v = square[i] * beta2 + g * new2 * g;
            mean[i] = m;
            square[i] = v;
            T divisor = v;
            if constexpr (AMSGRAD) {
                divisor = most[i] > v || most[i] != most[i] ? most[i] : v;
                most[i] = divisor;
            }
            p[i] = p[i] * kept - m * step_size / (std::sqrt(divisor) / root + eps);
        }
    }
};

template <class T>
void adamw(const Gradient<T>& grad, const Index* rows, T* param, T* exp_avg, T* exp_avg_sq, T* max_exp_avg_sq,
           const Corrections& corrections, const AdamW<T>& step) {
    const Index u = grad.u, D = grad.D;
    const Ahead ahead(rows, u, D * sizeof(T));
    for (Index k = 0; k < u; ++k) {
        ahead.ask(k, param, exp_avg, exp_avg_sq, max_exp_avg_sq);
        const Index at = (rows ? rows[k] : k) * D;
        const T size = T(corrections.step_size(k)), root = T(corrections.root(k));
        T *p = param + at, *mean = exp_avg + at, *square = exp_avg_sq + at;
        if (max_exp_avg_sq)
            step.template row<true>(D, size, root, grad.of(k), p, mean, square, max_exp_avg_sq + at);
        else
            step.template row<false>(D, size, root, grad.of(k), p, mean, square, nullptr);
    }
}

// Sort numbers whose lower half is their place, by the upper half: `bits` bits of it can be set.
void sort(std::unique_ptr<std::uint64_t[]>& keys, Index n, int bits) {
    constexpr int DIGIT = 11;
    if (n < 512) {
        std::sort(keys.get(), keys.get() + n);
        return;
    }
    std::unique_ptr<std::uint64_t[]> other(new std::uint64_t[n]);
    for (int shift = 32; shift < 32 + bits; shift += DIGIT) {
        Index place[1 << DIGIT] = {};
        for (Index i = 0; i < n; ++i) ++place[keys[i] >> shift & ((1 << DIGIT) - 1)];
        Index sum = 0;
        for (Index& p : place) {
            const Index count = p;
            p = sum;
            sum += count;
        }
        for (Index i = 0; i < n; ++i) other[place[keys[i] >> shift & ((1 << DIGIT) - 1)]++] = keys[i];
        keys.swap(other);
    }
}

// The ids at places order[starts[k]] < ... < order[starts[k + 1] - 1] are rows[k]; rows (u,) are sorted. Return u.
struct Groups {
    std::unique_ptr<Index[]> starts, order;
    Index u = 0;

    Groups(const Index* ids, Index n, int bits, Index* rows) : starts(new Index[n + 1]), order(new Index[n]) {
        std::unique_ptr<std::uint64_t[]> keys(new std::uint64_t[n]);
        for (Index i = 0; i < n; ++i) keys[i] = std::uint64_t(ids[i]) << 32 | std::uint64_t(i);
        sort(keys, n, bits);
        for (Index i = 0; i < n; ++i) {
            const Index id = Index(keys[i] >> 32);
            if (i == 0 || id != rows[u - 1]) {
                rows[u] = id;
                starts[u++] = i;
            }
            order[i] = Index(keys[i] & 0xffffffff);
        }
        starts[u] = n;
    }
};

template <class T>
Index gathered(const Index* ids, Index n, Index V, Index D, const T* values, Index* rows, Index* place, T* repeated) {
    Index least = V, most = 0;
    for (Index i = 0; i < n; ++i) {
        least = std::min(least, ids[i]);
        most = std::max(most, ids[i]);
    }
    if (n > 0 && (least < 0 || most >= V)) return -1;
    int bits = 0;
    while (most >> bits > 0) ++bits;
    const Groups groups(ids, n, bits, rows);
    Index kept = 0, sums = 0;
    for (Index k = 0; k < groups.u; ++k) {
        const Index first = groups.starts[k], last = groups.starts[k + 1];
        if (k + 8 < groups.u) __builtin_prefetch(values + groups.order[groups.starts[k + 8]] * D, 0, 3);
        const T* value = values + groups.order[first] * D;
        if (last - first > 1) {
            T* __restrict sum = repeated + sums * D;
            for (Index i = 0; i < D; ++i) sum[i] = T(0) + value[i];
            for (Index j = first + 1; j < last; ++j) {
                const T* __restrict next = values + groups.order[j] * D;
                for (Index i = 0; i < D; ++i) sum[i] += next[i];
            }
            value = sum;
        }
        Index zeros = 0;
        while (zeros < D && value[zeros] == T(0)) ++zeros;
        if (zeros == D && D > 0) continue;
        rows[kept] = rows[k];
        place[kept++] = last - first > 1 ? -1 - sums++ : groups.order[first];
    }
    return kept;
}

}  // namespace

extern "C" {

// Count one more use of each row, in step (V,); t (u,) are the new counts. Return the largest.
Index frostline_count(Index u, const Index* rows, std::int32_t* step, std::int32_t* t) {
    std::int32_t most = 0;
    for (Index k = 0; k < u; ++k) {
        if (k + 32 < u) __builtin_prefetch(step + rows[k + 32], 1, 3);
        t[k] = ++step[rows[k]];
        most = std::max(most, t[k]);
    }
    return most;
}

#define FOR(T, name)                                                                                                   \
    /* Sum values (n, D) with the same id. Return the number u of rows whose sum is not all zeros, or -1 if an id is   \
       outside 0 ... V - 1. rows (u,) are sorted; place (u,) says where their gradient is: in values, or below 0, from \
       -1 on, in repeated, which has room for n / 2. V and n are below 2^31. */                                        \
    Index frostline_gathered_##name(const Index* ids, Index n, Index V, Index D, const T* values, Index* rows,         \
                                    Index* place, T* repeated) {                                                       \
        return gathered<T>(ids, n, V, D, values, rows, place, repeated);                                               \
    }                                                                                                                  \
    void frostline_sgd_##name(Index u, Index D, const T* values, const T* repeated, const Index* place,                \
                              const Index* rows, T* param, T* momentum_buffer, std::uint8_t* used, double lr,          \
                              double momentum, double undamped, int nesterov, double weight_decay, int maximize) {     \
        const Gradient<T> grad{values, repeated, place, u, D};                                                         \
        sgd<T>(grad, rows, param, momentum_buffer, used,                                                               \
               {T(lr), T(momentum), T(undamped), T(weight_decay), T(maximize ? -1 : 1), grad.zero(),                   \
                weight_decay != 0, nesterov != 0});                                                                    \
    }                                                                                                                  \
    void frostline_adagrad_##name(Index u, Index D, const T* values, const T* repeated, const Index* place,            \
                                  const Index* rows, T* param, T* state_sum, int one_a_row, const double* rates,       \
                                  Index rates_stride, double eps, double weight_decay, int maximize) {                 \
        const Gradient<T> grad{values, repeated, place, u, D};                                                         \
        adagrad<T>(grad, rows, param, state_sum, one_a_row, rates, rates_stride,                                       \
                   {T(eps), T(weight_decay), T(maximize ? -1 : 1), grad.zero(), weight_decay != 0});                   \
    }                                                                                                                  \
    void frostline_adamw_##name(Index u, Index D, const T* values, const T* repeated, const Index* place,              \
                                const Index* rows, T* param, T* exp_avg, T* exp_avg_sq, T* max_exp_avg_sq,             \
                                const std::int32_t* t, Index stride, const double* table1, Index size1,                \
                                const double* table2, Index size2, double lr, double beta1, double beta2, double eps,  \
                                double kept, int maximize) {                                                           \
        const Gradient<T> grad{values, repeated, place, u, D};                                                         \
        adamw<T>(grad, rows, param, exp_avg, exp_avg_sq, max_exp_avg_sq,                                               \
                 {t, stride, table1, table2, size1, size2, lr},                                                        \
                 {T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(eps), T(kept), T(maximize ? -1 : 1), grad.zero(),  \
                  1 - beta1 < 0.5});                                                                                   \
    }

FOR(float, float32)
FOR(double, float64)
}
