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
constexpr Index AHEAD_BYTES = 4096;  // of each table, asked for before it is needed

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

template <class T>
struct SGD {
    T lr, momentum, undamped, weight_decay, sign;
    bool decays, nesterov;

    T directed(T grad, T value) const {
        const T g = grad * sign;
        return decays ? value * weight_decay + g : g;
    }

    void row(Index D, const T* __restrict grad, T* __restrict p) const {
        for (Index i = 0; i < D; ++i) p[i] -= directed(grad[i], p[i]) * lr;
    }

    void row(Index D, const T* __restrict grad, T* __restrict p, T* __restrict buffer, bool first) const {
        for (Index i = 0; i < D; ++i) {
            const T g = directed(grad[i], p[i]);
            const T b = first ? g : buffer[i] * momentum + g * undamped;
            buffer[i] = b;
            p[i] -= (nesterov ? g + b * momentum : b) * lr;
        }
    }
};

template <class T>
void sgd(Index u, Index D, const Index* rows, const T* grad, T* param, T* momentum_buffer, std::uint8_t* used,
         const SGD<T>& step) {
    const Ahead ahead(rows, u, D * sizeof(T));
    for (Index k = 0; k < u; ++k) {
        ahead.ask(k, param, momentum_buffer);
        const Index row = rows ? rows[k] : k;
        if (momentum_buffer == nullptr) {
            step.row(D, grad + k * D, param + row * D);
            continue;
        }
        step.row(D, grad + k * D, param + row * D, momentum_buffer + row * D, used && !used[row]);
        if (used) used[row] = 1;
    }
}

template <class T>
struct Adagrad {
    T eps, weight_decay, sign;
    bool decays;

    void directed(Index D, const T* __restrict grad, const T* __restrict p, T* __restrict g, T* __restrict square) const {
        for (Index i = 0; i < D; ++i) {
            g[i] = decays ? p[i] * weight_decay + grad[i] * sign : grad[i] * sign;
            square[i] = g[i] * g[i];
        }
    }

    void row(Index D, T rate, const T* __restrict g, T* __restrict square, T* __restrict p, T* __restrict total) const {
        for (Index i = 0; i < D; ++i) {
            total[i] += square[i];
            p[i] -= g[i] * rate / (std::sqrt(total[i]) + eps);
        }
    }

    // One sum for the row, of squares that are first folded as rows.py does.
    void row_as_one(Index D, T rate, const T* __restrict g, T* __restrict square, T* __restrict p, T* total) const {
        for (Index width = D; width > 1;) {
            const Index half = (width + 1) / 2;
            for (Index i = 0; i < width - half; ++i) square[i] += square[half + i];
            width = half;
        }
        *total += square[0] / T(D);
        const T root = std::sqrt(*total) + eps;
        for (Index i = 0; i < D; ++i) p[i] -= g[i] * rate / root;
    }
};

template <class T>
void adagrad(Index u, Index D, const Index* rows, const T* grad, T* param, T* state_sum, bool one_a_row,
             const double* rates, Index rates_stride, const Adagrad<T>& step) {
    const Ahead ahead(rows, u, D * sizeof(T)), ahead_one(rows, u, sizeof(T));
    std::vector<T> g(D), square(D);
    for (Index k = 0; k < u; ++k) {
        ahead.ask(k, param, one_a_row ? nullptr : state_sum);
        if (one_a_row) ahead_one.ask(k, state_sum);
        const Index row = rows ? rows[k] : k;
        const T rate = T(rates[k * rates_stride]);
        T* p = param + row * D;
        step.directed(D, grad + k * D, p, g.data(), square.data());
        if (one_a_row)
            step.row_as_one(D, rate, g.data(), square.data(), p, state_sum + row);
        else
            step.row(D, rate, g.data(), square.data(), p, state_sum + row * D);
    }
}

template <class T>
struct AdamW {
    T beta1, new1, beta2, new2, eps, kept, sign;
    bool from_mean;

    template <bool AMSGRAD>
    void row(Index D, T step_size, T root, const T* __restrict grad, T* __restrict p, T* __restrict mean,
             T* __restrict square, T* __restrict most) const {
        for (Index i = 0; i < D; ++i) {
            const T g = grad[i] * sign, old = mean[i];
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
void adamw(Index u, Index D, const Index* rows, const T* grad, T* param, T* exp_avg, T* exp_avg_sq, T* max_exp_avg_sq,
           const double* step_sizes, const double* roots, Index stride, const AdamW<T>& step) {
    const Ahead ahead(rows, u, D * sizeof(T));
    for (Index k = 0; k < u; ++k) {
        ahead.ask(k, param, exp_avg, exp_avg_sq, max_exp_avg_sq);
        const Index at = (rows ? rows[k] : k) * D;
        const T size = T(step_sizes[k * stride]), root = T(roots[k * stride]);
        T *p = param + at, *mean = exp_avg + at, *square = exp_avg_sq + at;
        if (max_exp_avg_sq)
            step.template row<true>(D, size, root, grad + k * D, p, mean, square, max_exp_avg_sq + at);
        else
            step.template row<false>(D, size, root, grad + k * D, p, mean, square, nullptr);
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
Index summed(const Index* ids, Index n, Index V, Index D, const T* values, Index* rows, T* sums) {
    Index least = V, most = 0;
    for (Index i = 0; i < n; ++i) {
        least = std::min(least, ids[i]);
        most = std::max(most, ids[i]);
    }
    if (n > 0 && (least < 0 || most >= V)) return -1;
    int bits = 0;
    while (most >> bits > 0) ++bits;
    const Groups groups(ids, n, bits, rows);
    constexpr Index EARLY = 8;
    Index kept = 0;
    for (Index k = 0; k < groups.u; ++k) {
        if (k + EARLY < groups.u) {
            const char* later = reinterpret_cast<const char*>(values + groups.order[groups.starts[k + EARLY]] * D);
            for (Index at = 0; at < D * Index(sizeof(T)); at += 64) __builtin_prefetch(later + at, 0, 3);
        }
        T* __restrict sum = sums + kept * D;
        const T* __restrict first = values + groups.order[groups.starts[k]] * D;
        for (Index i = 0; i < D; ++i) sum[i] = T(0) + first[i];  // -0 becomes 0, as in index_add_
        for (Index j = groups.starts[k] + 1; j < groups.starts[k + 1]; ++j) {
            const T* __restrict value = values + groups.order[j] * D;
            for (Index i = 0; i < D; ++i) sum[i] += value[i];
        }
        Index zeros = 0;
        while (zeros < D && sum[zeros] == T(0)) ++zeros;
        rows[kept] = rows[k];
        kept += zeros < D || D == 0;
    }
    return kept;
}

}  // namespace

extern "C" {

// Count one more use of each row, in step (V,); t (u,) are the new counts.
void frostline_count(Index u, const Index* rows, std::int32_t* step, double* t) {
    for (Index k = 0; k < u; ++k) {
        if (k + 32 < u) __builtin_prefetch(step + rows[k + 32], 1, 3);
        t[k] = ++step[rows[k]];
    }
}

#define FOR(T, name)                                                                                                   \
    /* Sum values (n, D) with the same id: rows (u,) sorted and sums (u, D) in memory for n. Rows whose sum is zero    \
       are left out. Return u, or -1 if an id is outside 0 ... V - 1. V and n are below 2^31. */                       \
    Index frostline_summed_##name(const Index* ids, Index n, Index V, Index D, const T* values, Index* rows, T* sums) { \
        return summed<T>(ids, n, V, D, values, rows, sums);                                                            \
    }                                                                                                                  \
    void frostline_sgd_##name(Index u, Index D, const Index* rows, const T* grad, T* param, T* momentum_buffer,        \
                              std::uint8_t* used, double lr, double momentum, double undamped, int nesterov,           \
                              double weight_decay, int maximize) {                                                     \
        sgd<T>(u, D, rows, grad, param, momentum_buffer, used,                                                         \
               {T(lr), T(momentum), T(undamped), T(weight_decay), T(maximize ? -1 : 1), weight_decay != 0,             \
                nesterov != 0});                                                                                       \
    }                                                                                                                  \
    void frostline_adagrad_##name(Index u, Index D, const Index* rows, const T* grad, T* param, T* state_sum,          \
                                  int one_a_row, const double* rates, Index rates_stride, double eps,                  \
                                  double weight_decay, int maximize) {                                                 \
        adagrad<T>(u, D, rows, grad, param, state_sum, one_a_row, rates, rates_stride,                                 \
                   {T(eps), T(weight_decay), T(maximize ? -1 : 1), weight_decay != 0});                                \
    }                                                                                                                  \
    void frostline_adamw_##name(Index u, Index D, const Index* rows, const T* grad, T* param, T* exp_avg,              \
                                T* exp_avg_sq, T* max_exp_avg_sq, const double* step_sizes, const double* roots,       \
                                Index stride, double beta1, double beta2, double eps, double kept, int maximize) {     \
        adamw<T>(u, D, rows, grad, param, exp_avg, exp_avg_sq, max_exp_avg_sq, step_sizes, roots, stride,              \
                 {T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(eps), T(kept), T(maximize ? -1 : 1),               \
                  1 - beta1 < 0.5});                                                                                   \
    }

FOR(float, float32)
FOR(double, float64)
}
