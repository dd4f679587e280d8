// Word2vec with negative sampling: what reference.py defines, with the same bits on any number of threads.
//
// Letters used for shapes in this file:
//     V  rows of a table     S  vectors of the CPU's width in a row, which ends on a line of 16 values
//     m  words of a paragraph that subsampling keeps          K  negatives of each target
//
// A batch is a run of paragraphs; a paragraph, at most 256 words of one line. All gradients of a batch are taken at the
// tables as they are before it:
//     compute    each thread takes the next paragraph, reads the tables, and writes to the memory of the paragraph
//     apply      each row belongs to one thread, which adds the gradients to it in the order of the text
// So no sum depends on the thread that computed it. Random numbers are a function of (seed, epoch, paragraph, counter).
// Sums run over 16 lanes whatever the width of the CPU's registers, nothing is contracted into multiply-adds, and exp is
// computed here: every instruction set gives the same bits, too.
//
// CBOW needs the sum of the rows around each word: two prefix sums give that of any window, and a difference array gives
// the gradient back to all words of the window.
//
// arithmetic.h and team.h are compiled in front of this file.

namespace {

using Word = std::int32_t;
constexpr Index PARAGRAPH = 256;  // words; also the counter of a paragraph's first negative
constexpr Index AHEAD = 4;  // targets that are prefetched; of rows that are written, twice as many

// What a run trains on. compiled.py declares the same fields.
struct Run {
    const Word* text;  // ids of words, and -1 after each line
    Index text_size;
    void *input, *output;                              // (V, 16 lines), (at least `words`, 16 lines)
    const std::uint8_t *input_learns, *output_learns;  // a row is written only where this is not 0
    Index words, lines;                                // ids of the text are below `words`; lines of 16 values in a row
    const std::uint32_t* keep;                         // (words,), see sampling.py
    const std::uint64_t* alias;                        // (words,), see sampling.py
    Index window, negatives, skip_gram, threads, batch_words;
    double alpha, min_alpha;
    Index total_words;  // of all epochs
};

// Where a run is. compiled.py declares the same fields.
struct Position {
    std::uint64_t key;  // of the epoch
    Index token;        // in the text, where the next batch begins
    Index paragraph;    // the number of its first paragraph
    Index words_done;   // in all epochs
    Index targets;      // in this epoch
    double loss;        // of this epoch's targets, their sum
};

template <class T>
struct Entry {
    Word row, hidden;  // output[row] += g * (hidden row)
    T g;
};

struct Paragraph {
    Index begin, words;   // in the text
    Index offset;         // words of the batch before it
    std::uint64_t key;    // of its random numbers
    Index kept, entries;  // words that subsampling keeps; entries
    Index targets;
    double loss;
};

template <class T>
class Batch {
    using Vector = typename Row<T>::Vector;

    struct Free {
        void operator()(Vector* memory) const { std::free(memory); }
    };
    using Memory = std::unique_ptr<Vector[], Free>;

  public:
    Batch(const Run& run, Position& at)
        : run_(run),
          at_(at),
          S_(run.lines * Row<T>::PARTS),
          slots_(run.skip_gram ? 2 * run.window + 1 : 1),
          per_word_(slots_ * (1 + run.negatives)),
          room_(run.batch_words),
          words_(room_),
          widths_(room_),
          counters_(room_),
          entries_(room_ * per_word_),
          hidden_(lines(room_)),
          grads_(lines(room_)) {}

    enum Found { BATCH, END, BAD_ID };

    // Take the next paragraphs of the text. Returns END at its end, BAD_ID if a word has no row.
    Found next() {
        paragraphs_.clear();
        Index words = 0;
        for (;;) {
            while (at_.token < run_.text_size && run_.text[at_.token] < 0) ++at_.token;  // ends of lines
            const Index begin = at_.token, most = std::min(run_.text_size, begin + std::min(PARAGRAPH, room_));
            Index end = begin;
            for (; end < most && run_.text[end] >= 0; ++end)
                if (run_.text[end] >= run_.words) return BAD_ID;
            if (begin == end || words + end - begin > room_) break;
            paragraphs_.push_back(
                {begin, end - begin, words, random(at_.key, std::uint64_t(at_.paragraph++)), 0, 0, 0, 0.0});
            words += end - begin;
            at_.token = end;
        }
        const double done = double(at_.words_done) / double(run_.total_words);
        rate_ = T(std::max(run_.min_alpha, run_.alpha - (run_.alpha - run_.min_alpha) * done));
        at_.words_done += words;
        return paragraphs_.empty() ? END : BATCH;
    }

    // Memory of a thread.
    struct Scratch {
        explicit Scratch(const Batch& batch)
            : sums(batch.lines(PARAGRAPH + 1)),
              errors(batch.lines(PARAGRAPH)),
              dots(std::size_t(batch.run_.negatives) + 1),
              mine(std::size_t(PARAGRAPH * batch.per_word_)) {}
        Memory sums, errors;
        std::vector<T> dots;
        std::vector<Word> mine;
    };

    Index paragraphs() const { return Index(paragraphs_.size()); }

    // Compute the gradients of a paragraph.
    void compute(Index p, Scratch& scratch) {
        Paragraph& paragraph = paragraphs_[p];
        subsample(paragraph);
        if (run_.skip_gram)
            skip_gram(paragraph, scratch);
        else
            cbow(paragraph, scratch);
    }

    // Add the gradients of the rows of one part; there are as many parts as threads.
    void apply(Index part, Scratch& scratch) {
        std::vector<Word>& mine = scratch.mine;
        Vector *input = static_cast<Vector*>(run_.input), *output = static_cast<Vector*>(run_.output);
        for (const Paragraph& p : paragraphs_) {
            const Word* words = &words_[p.offset];
            const Vector* grads = grads_.get() + p.offset * S_;
            Index n = choose(mine, p.kept, part, run_.input_learns, [=](Index i) { return words[i]; });
            for (Index k = 0; k < n; ++k) {
                if (k + AHEAD < n) Row<T>::prefetch(input + words[mine[k + AHEAD]] * S_, S_);
                Vector* row = input + words[mine[k]] * S_;
                const Vector* grad = grads + mine[k] * S_;
                for (Index s = 0; s < S_; ++s) row[s] += grad[s];
            }
            const Entry<T>* entries = &entries_[p.offset * per_word_];
            const Vector* hidden = hidden_.get() + p.offset * S_;
            n = choose(mine, p.entries, part, run_.output_learns, [=](Index i) { return entries[i].row; });
            for (Index k = 0; k < n; ++k) {
                if (k + 2 * AHEAD < n) Row<T>::prefetch(output + entries[mine[k + 2 * AHEAD]].row * S_, S_);
                const Entry<T>& entry = entries[mine[k]];
                Vector* row = output + entry.row * S_;
                const Vector* h = hidden + entry.hidden * S_;
                for (Index s = 0; s < S_; ++s) row[s] += entry.g * h[s];
            }
        }
    }

    // Add up the loss in the order of the text.
    void finish() {
        for (const Paragraph& p : paragraphs_) {
            at_.loss += p.loss;
            at_.targets += p.targets;
        }
    }

  private:
    Memory lines(Index rows) const {
        const std::size_t bytes = std::size_t(rows * S_) * sizeof(Vector);
        void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (memory == nullptr) throw std::bad_alloc();
        return Memory(static_cast<Vector*>(memory));
    }

    // List the indices below `count` whose row belongs to `part` and learns.
    template <class RowOf>
    Index choose(std::vector<Word>& mine, Index count, Index part, const std::uint8_t* learns, RowOf row_of) const {
        Index n = 0;
        for (Index i = 0; i < count; ++i) {
            const Word row = row_of(i);
            mine[n] = Word(i);
            const std::uint32_t owner = std::uint64_t(std::uint32_t(row) * 0x9E3779B1u) * std::uint64_t(run_.threads) >> 32;
            n += Index(owner) == part && learns[row];
        }
        return n;
    }

    // Choose the words that are kept, and draw the width of their windows.
    void subsample(Paragraph& p) {
        for (Index i = 0; i < p.words; ++i) {
            const Word word = run_.text[p.begin + i];
            const std::uint64_t bits = random(p.key, std::uint64_t(i));
            if ((bits >> 32) > run_.keep[word]) continue;
            const Index k = p.offset + p.kept++;
            words_[k] = word;
            counters_[k] = PARAGRAPH + i * per_word_;
            widths_[k] = run_.window - Index((bits & 0xffffffff) * std::uint64_t(run_.window) >> 32);
        }
    }

    // List a target and its negatives as entries, and prefetch their rows. Returns how many there are; a negative that
    // is the target itself is left out.
    Index draw(const Paragraph& p, Word target, Index counter, Word hidden, Entry<T>* entries) const {
        const Vector* output = static_cast<const Vector*>(run_.output);
        Index n = 1;
        entries[0] = {target, hidden, T(0)};
        for (Index k = 0; k < run_.negatives; ++k) {
            const std::uint64_t bits = random(p.key, std::uint64_t(counter + k));
            const std::uint64_t column = (bits >> 32) * std::uint64_t(run_.words) >> 32, entry = run_.alias[column];
            const Word word = Word((bits & 0xffffffff) < entry >> 32 ? column : entry & 0xffffffff);
            entries[n] = {word, hidden, T(0)};
            n += word != target;
        }
        for (Index k = 0; k < n; ++k) Row<T>::prefetch(output + entries[k].row * S_, S_);
        return n;
    }

    // Compute g of each entry and the gradient of the hidden row h, which is written to `error`.
    ALWAYS_INLINE void learn(const Vector* h, Entry<T>* entries, Index n, Vector* error, T* dots, Loss& loss) const {
        const Vector* output = static_cast<const Vector*>(run_.output);
        for (Index k = 0; k < n; ++k) dots[k] = Row<T>::dot(S_, h, output + entries[k].row * S_);
        for (Index k = 0; k < n; ++k) {
            const T score = dots[k], e = exp_of_minus(std::abs(score)), sigmoid = (score < 0 ? e : T(1)) / (1 + e);
            entries[k].g = rate_ * ((k == 0) - sigmoid);
            loss.add(std::max(0.0, double(k == 0 ? -score : score)), double(e));
        }
        for (Index s = 0; s < S_; ++s) {
            Vector sum = entries[0].g * output[entries[0].row * S_ + s];
            for (Index k = 1; k < n; ++k) sum += entries[k].g * output[entries[k].row * S_ + s];
            error[s] = sum;
        }
    }

    void cbow(Paragraph& p, Scratch& scratch) {
        const Word* words = &words_[p.offset];
        const Index *widths = &widths_[p.offset], *counters = &counters_[p.offset], m = p.kept;
        const Vector* input = static_cast<const Vector*>(run_.input);
        Vector *sums = scratch.sums.get(), *errors = scratch.errors.get();
        Vector *hidden = hidden_.get() + p.offset * S_, *grads = grads_.get() + p.offset * S_;
        for (Index i = 0; i < std::min(m, 2 * AHEAD); ++i) Row<T>::prefetch(input + words[i] * S_, S_);
        for (Index s = 0; s < S_; ++s) sums[s] = Vector{};
        for (Index i = 0; i < m; ++i) {
            if (i + 2 * AHEAD < m) Row<T>::prefetch(input + words[i + 2 * AHEAD] * S_, S_);
            for (Index s = 0; s < S_; ++s) sums[(i + 1) * S_ + s] = sums[i * S_ + s] + input[words[i] * S_ + s];
        }
        std::fill_n(grads, m * S_, Vector{});
        if (m < 2) return;  // a word alone has no context
        Entry<T>* entries = &entries_[p.offset * per_word_];
        Index drawn[AHEAD + 1], next = 0, end = 0;  // of the targets ahead, in a ring
        Loss loss;
        for (Index i = 0; i < m; ++i) {
            for (; next < std::min(m, i + AHEAD + 1); ++next)
                end += drawn[next % (AHEAD + 1)] = draw(p, words[next], counters[next], Word(next), entries + end);
            const Index first = std::max<Index>(0, i - widths[i]), last = std::min(m, i + widths[i] + 1);
            const T scale = T(1) / T(last - first - 1);
            const Vector *before = sums + first * S_, *through = sums + last * S_, *own = input + words[i] * S_;
            Vector *h = hidden + i * S_, *error = errors + i * S_;
            for (Index s = 0; s < S_; ++s) h[s] = ((through[s] - before[s]) - own[s]) * scale;
            const Index n = drawn[i % (AHEAD + 1)];
            learn(h, entries + p.entries, n, error, scratch.dots.data(), loss);
            p.entries += n;
            for (Index s = 0; s < S_; ++s) grads[first * S_ + s] += error[s];
            if (last < m)
                for (Index s = 0; s < S_; ++s) grads[last * S_ + s] -= error[s];
        }
        Vector* window = sums;  // the sum of the errors of all windows that hold word i
        for (Index s = 0; s < S_; ++s) window[s] = Vector{};
        for (Index i = 0; i < m; ++i)
            for (Index s = 0; s < S_; ++s) {
                window[s] += grads[i * S_ + s];
                grads[i * S_ + s] = window[s] - errors[i * S_ + s];
            }
        p.targets = m;
        p.loss = loss.total();
    }

    // Each word of a window, alone, predicts the word in its middle.
    void skip_gram(Paragraph& p, Scratch& scratch) {
        const Word* words = &words_[p.offset];
        const Index *widths = &widths_[p.offset], *counters = &counters_[p.offset], m = p.kept;
        const Vector* input = static_cast<const Vector*>(run_.input);
        Vector *hidden = hidden_.get() + p.offset * S_, *grads = grads_.get() + p.offset * S_;
        for (Index i = 0; i < m; ++i) std::copy_n(input + words[i] * S_, S_, hidden + i * S_);
        std::fill_n(grads, m * S_, Vector{});
        Entry<T>* entries = &entries_[p.offset * per_word_];
        Vector* error = scratch.errors.get();
        Index drawn[AHEAD + 1], drawn_for[AHEAD + 1];  // of the pairs ahead, in a ring
        Index ahead = 0, done = 0, end = 0;
        Loss loss;
        const auto learn_next = [&] {
            const Index at = done++ % (AHEAD + 1), j = drawn_for[at];
            learn(hidden + j * S_, entries + p.entries, drawn[at], error, scratch.dots.data(), loss);
            p.entries += drawn[at];
            for (Index s = 0; s < S_; ++s) grads[j * S_ + s] += error[s];
        };
        for (Index i = 0; i < m; ++i)
            for (Index j = std::max<Index>(0, i - widths[i]); j < std::min(m, i + widths[i] + 1); ++j) {
                if (j == i) continue;
                if (ahead - done > AHEAD) learn_next();
                const Index counter = counters[i] + (j - i + run_.window) * run_.negatives, at = ahead++ % (AHEAD + 1);
                drawn_for[at] = j;
                end += drawn[at] = draw(p, words[i], counter, Word(j), entries + end);
            }
        while (done < ahead) learn_next();
        p.targets = done;
        p.loss = loss.total();
    }

    const Run& run_;
    Position& at_;
    const Index S_, slots_, per_word_, room_;
    std::vector<Paragraph> paragraphs_;
    std::vector<Word> words_;
    std::vector<Index> widths_, counters_;
    std::vector<Entry<T>> entries_;
    Memory hidden_, grads_;
    T rate_ = 0;
};

// Train until at least `words` words were read or the text ends. Returns 1 there, 0 before, -1 for an id without a row,
// -2 where memory for a batch is missing.
template <class T>
int train(Run& run, Position& at, Index words) try {
    using Scratch = typename Batch<T>::Scratch;
    Batch<T> batch(run, at);
    Team team;
    bool applying = false;
    const auto task = [&](Index index, Scratch& scratch) {
        if (applying)
            batch.apply(index, scratch);
        else
            batch.compute(index, scratch);
    };
    std::vector<Scratch> scratches;
    for (Index k = 0; k < run.threads; ++k) scratches.emplace_back(batch);
    std::vector<std::thread> helpers;
    for (Index k = 1; k < run.threads; ++k) try {
            helpers.emplace_back([&, k] { team.help([&, k](Index index) { task(index, scratches[k]); }); });
        } catch (const std::system_error&) {  // the system gives no more threads: these do
            break;
        }
    const Index until = at.words_done + words;
    auto found = Batch<T>::BATCH;
    do {
        if ((found = batch.next()) != Batch<T>::BATCH) break;
        for (applying = false;; applying = true) {
            const Index count = applying ? run.threads : batch.paragraphs();
            team.begin(count);
            team.finish(count, [&](Index index) { task(index, scratches[0]); });
            if (applying) break;
        }
        batch.finish();
    } while (at.words_done < until);
    team.stop();
    for (std::thread& helper : helpers) helper.join();
    return found == Batch<T>::BATCH ? 0 : found == Batch<T>::END ? 1 : -1;
} catch (const std::bad_alloc&) {
    return -2;
}

}  // namespace

extern "C" {
int frostline_word2vec_float32(Run* run, Position* at, Index words) { return train<float>(*run, *at, words); }
int frostline_word2vec_float64(Run* run, Position* at, Index words) { return train<double>(*run, *at, words); }
}
