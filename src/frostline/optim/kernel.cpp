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

namespace {

using Index = std::int64_t;
constexpr Index AHEAD_BYTES = 4096;  // of each table, asked for before it is needed

// Rows of some tables that a step is about to use.
class Ahead {
  public:
    Ahead(const Index* rows, Index u, Index row_bytes)
        : rows_(rows), u_(u), bytes_(row_bytes), distance_(std::clamp<Index>(AHEAD_BYTES / row_bytes, 1, 64)) {}

    template <class... Table>
    void ask(Index k, const Table*... tables) const {
        if (rows_ == nullptr || k + distance_ >= u_) return;
        const Index row = rows_[k + distance_];
        (lines(tables, row), ...);
    }

  private:
    template <class T>
    void lines(const T* table, Index row) const {
        if (table == nullptr) return;
        const char* start = reinterpret_cast<const char*>(table) + row * bytes_;
        for (Index at = 0; at < bytes_; at += 64) __builtin_prefetch(start + at, 1, 3);
        __builtin_prefetch(start + bytes_ - 1, 1, 3);
    }

    const Index* rows_;
    Index u_, bytes_, distance_;
};

// The gradient of each row: values (n, D), of which order[starts[k]] ... order[starts[k + 1] - 1] are added up for row k.
template <class T>
class Gradient {
  public:
    Gradient(const T* values, const Index* order, const Index* starts, Index u, Index D)
        : values_(values), order_(order), starts_(starts), u_(u), D_(D), sum_(D) {}

    const T* of(Index k) {
        if (order_ == nullptr) return values_ + k * D_;
        if (k + 8 < u_) {
            const T* later = values_ + order_[starts_[k + 8]] * D_;
            for (Index i = 0; i < D_; i += 64 / Index(sizeof(T))) __builtin_prefetch(later + i, 0, 3);
        }
        const Index first = starts_[k], last = starts_[k + 1];
        if (last - first == 1) return values_ + order_[first] * D_;
        T* sum = sum_.data();
        std::fill_n(sum, D_, T(0));
        for (Index j = first; j < last; ++j) {
            const T* value = values_ + order_[j] * D_;
            for (Index i = 0; i < D_; ++i) sum[i] += value[i];
        }
        return sum;
    }

  private:
    const T* values_;
    const Index *order_, *starts_;
    Index u_, D_;
    std::vector<T> sum_;
};

template <class T>
void sgd(Index u, Index D, const Index* rows, const Index* starts, const Index* order, const T* values, T* param,
         T* momentum_buffer, std::uint8_t* used, double lr_, double momentum_, double undamped_, bool nesterov,
         double weight_decay_, bool maximize) {
    const T lr = T(lr_), momentum = T(momentum_), undamped = T(undamped_), weight_decay = T(weight_decay_);
    const bool decays = weight_decay_ != 0;
    const Ahead ahead(rows, u, D * sizeof(T));
    Gradient<T> gradient(values, order, starts, u, D);
    for (Index k = 0; k < u; ++k) {
        ahead.ask(k, param, momentum_buffer);
        const Index row = rows ? rows[k] : k;
        const T* __restrict grad = gradient.of(k);
        T* __restrict p = param + row * D;
        if (momentum_buffer == nullptr) {
            for (Index i = 0; i < D; ++i) {
                T g = maximize ? -grad[i] : grad[i];
                if (decays) g = p[i] * weight_decay + g;
                p[i] -= g * lr;
            }
            continue;
        }
        const bool first = used && !used[row];
        if (used) used[row] = 1;
        T* __restrict b = momentum_buffer + row * D;
        for (Index i = 0; i < D; ++i) {
            T g = maximize ? -grad[i] : grad[i];
            if (decays) g = p[i] * weight_decay + g;
            b[i] = first ? g : b[i] * momentum + g * undamped;
            g = nesterov ? g + b[i] * momentum : b[i];
            p[i] -= g * lr;
        }
    }
}

// The sum of w numbers, folded as rows.py does; x is overwritten.
template <class T>
T folded_sum(T* __restrict x, Index w) {
    while (w > 1) {
        const Index half = (w + 1) / 2;
        for (Index i = 0; i < w - half; ++i) x[i] += x[half + i];
        w = half;
    }
    return x[0];
}

template <class T>
void adagrad(Index u, Index D, const Index* rows, const Index* starts, const Index* order, const T* values, T* param,
             T* state_sum, bool one_a_row, const double* rates, Index rates_stride, double eps_, double weight_decay_,
             bool maximize) {
    const T eps = T(eps_), weight_decay = T(weight_decay_);
    const bool decays = weight_decay_ != 0;
    const Ahead ahead(rows, u, D * sizeof(T)), ahead_sum(rows, u, (one_a_row ? 1 : D) * sizeof(T));
    Gradient<T> gradient(values, order, starts, u, D);
    std::vector<T> directed(D), squares(D);
    T *__restrict g = directed.data(), *__restrict s = squares.data();
    for (Index k = 0; k < u; ++k) {
        ahead.ask(k, param);
        ahead_sum.ask(k, state_sum);
        const Index row = rows ? rows[k] : k;
        const T rate = T(rates[k * rates_stride]);
        const T* __restrict grad = gradient.of(k);
        T* __restrict p = param + row * D;
        for (Index i = 0; i < D; ++i) {
            g[i] = maximize ? -grad[i] : grad[i];
            if (decays) g[i] = p[i] * weight_decay + g[i];
            s[i] = g[i] * g[i];
        }
        if (one_a_row) {
            state_sum[row] += folded_sum(s, D) / T(D);
            const T root = std::sqrt(state_sum[row]) + eps;
            for (Index i = 0; i < D; ++i) p[i] -= g[i] * rate / root;
        } else {
            T* __restrict total = state_sum + row * D;
            for (Index i = 0; i < D; ++i) {
                total[i] += s[i];
                p[i] -= g[i] * rate / (std::sqrt(total[i]) + eps);
            }
        }
    }
}

template <class T>
void adamw(Index u, Index D, const Index* rows, const Index* starts, const Index* order, const T* values, T* param,
           T* exp_avg, T* exp_avg_sq, T* max_exp_avg_sq, const double* step_sizes, const double* roots,
           Index corrections_stride, double beta1_, double beta2_, double eps_, double kept_, bool decays,
           bool maximize) {
    const T beta1 = T(beta1_), beta2 = T(beta2_), new1 = T(1 - beta1_), new2 = T(1 - beta2_);
    const T eps = T(eps_), kept = T(kept_);
    const bool from_mean = 1 - beta1_ < 0.5;
    const Ahead ahead(rows, u, D * sizeof(T));
    Gradient<T> gradient(values, order, starts, u, D);
    for (Index k = 0; k < u; ++k) {
        ahead.ask(k, param, exp_avg, exp_avg_sq, max_exp_avg_sq);
        const Index row = rows ? rows[k] : k;
        const T step_size = T(step_sizes[k * corrections_stride]), root = T(roots[k * corrections_stride]);
        const T* __restrict grad = gradient.of(k);
        T *__restrict p = param + row * D, *__restrict m = exp_avg + row * D, *__restrict v = exp_avg_sq + row * D;
        T* __restrict most = max_exp_avg_sq ? max_exp_avg_sq + row * D : nullptr;
        for (Index i = 0; i < D; ++i) {
            const T value = decays ? p[i] * kept : p[i];
            const T g = maximize ? -grad[i] : grad[i];
            m[i] = from_mean ? m[i] + (g - m[i]) * new1 : g - (g - m[i]) * beta1;
            v[i] = v[i] * beta2 + g * new2 * g;
            T square = v[i];
            if (most) square = most[i] = (most[i] > square || most[i] != most[i]) ? most[i] : square;
            p[i] = value - m[i] * step_size / (std::sqrt(square) / root + eps);
        }
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

}  // namespace

extern "C" {

// Group the places of equal ids: rows (u,) sorted, starts (u + 1,), order (n,) so that the ids at places
// order[starts[k]] < ... < order[starts[k + 1] - 1] are rows[k]. Return u, or -1 if an id is outside 0 ... V - 1.
// V and n stay below 2^31.
Index frostline_group(const Index* ids, Index n, Index V, Index* rows, Index* starts, Index* order) {
    std::unique_ptr<std::uint64_t[]> keys(new std::uint64_t[n]);
    Index least = V, most = -1;
    for (Index i = 0; i < n; ++i) {
        least = std::min(least, ids[i]);
        most = std::max(most, ids[i]);
        keys[i] = std::uint64_t(ids[i]) << 32 | std::uint64_t(i);
    }
    if (n > 0 && (least < 0 || most >= V)) return -1;
    int bits = 0;
    while (most >> bits > 0) ++bits;
    sort(keys, n, bits);
    Index u = 0;
    for (Index i = 0; i < n; ++i) {
        const Index id = Index(keys[i] >> 32);
        if (i == 0 || id != rows[u - 1]) {
            rows[u] = id;
            starts[u++] = i;
        }
        order[i] = Index(keys[i] & 0xffffffff);
    }
    starts[u] = n;
    return u;
}

// Count one more use of each row, in step (V,); t (u,) are the new counts.
void frostline_count(Index u, const Index* rows, std::int32_t* step, double* t) {
    for (Index k = 0; k < u; ++k) {
        if (k + 32 < u) __builtin_prefetch(step + rows[k + 32], 1, 3);
        t[k] = ++step[rows[k]];
    }
}

#define FOR(T, name)                                                                                                   \
    void frostline_sgd_##name(Index u, Index D, const Index* rows, const Index* starts, const Index* order,            \
                              const T* values, T* param, T* momentum_buffer, std::uint8_t* used, double lr,            \
                              double momentum, double undamped, int nesterov, double weight_decay, int maximize) {     \
        sgd<T>(u, D, rows, starts, order, values, param, momentum_buffer, used, lr, momentum, undamped, nesterov,      \
               weight_decay, maximize);                                                                                \
    }                                                                                                                  \
    void frostline_adagrad_##name(Index u, Index D, const Index* rows, const Index* starts, const Index* order,        \
                                  const T* values, T* param, T* state_sum, int one_a_row, const double* rates,         \
                                  Index rates_stride, double eps, double weight_decay, int maximize) {                 \
        adagrad<T>(u, D, rows, starts, order, values, param, state_sum, one_a_row, rates, rates_stride, eps,           \
                   weight_decay, maximize);                                                                            \
    }                                                                                                                  \
    void frostline_adamw_##name(Index u, Index D, const Index* rows, const Index* starts, const Index* order,          \
                                const T* values, T* param, T* exp_avg, T* exp_avg_sq, T* max_exp_avg_sq,               \
                                const double* step_sizes, const double* roots, Index corrections_stride, double beta1, \
                                double beta2, double eps, double kept, int decays, int maximize) {                     \
        adamw<T>(u, D, rows, starts, order, values, param, exp_avg, exp_avg_sq, max_exp_avg_sq, step_sizes, roots,     \
                 corrections_stride, beta1, beta2, eps, kept, decays, maximize);                                       \
    }

FOR(float, float32)
FOR(double, float64)
}
