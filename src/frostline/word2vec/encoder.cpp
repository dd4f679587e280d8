// Text to ids: each word gets the number of words that were seen before it for the first time.
//
// Words are separated by SPACE, TAB, VT, FF and CR; LF ends a line, which becomes -1 (one for several, none before the
// first word). encode.py does the same where there is no compiler. Text may arrive in pieces that end anywhere.

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Index = std::int64_t;
constexpr Index NOT_UTF8 = -1, NUL = -2, TOO_LONG = -3, TOO_MANY = -4;
constexpr std::size_t LONGEST = 65535;  // bytes of a word
constexpr std::size_t MOST = 2147483647;

bool is_utf8(const unsigned char* s, std::size_t size) {
    const unsigned char* const end = s + size;
    while (s < end) {
        if (*s < 0x80) {
            ++s;
            continue;
        }
        const int more = *s >= 0xF0 && *s <= 0xF4 ? 3 : *s >= 0xE0 && *s < 0xF0 ? 2 : *s >= 0xC2 && *s < 0xE0 ? 1 : 0;
        if (more == 0 || end - s <= more) return false;
        const unsigned low = *s == 0xE0 ? 0xA0 : *s == 0xF0 ? 0x90 : 0x80;  // shorter forms of the same character,
        const unsigned high = *s == 0xED ? 0x9F : *s == 0xF4 ? 0x8F : 0xBF;  // surrogates, and what is above U+10FFFF
        if (s[1] < low || s[1] > high) return false;
        for (int k = 2; k <= more; ++k)
            if ((s[k] & 0xC0) != 0x80) return false;
        s += more + 1;
    }
    return true;
}

std::uint64_t hash_of(std::string_view word) {  // FNV-1a
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (const char c : word) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    return hash ^ hash >> 32;
}

class Encoder {
  public:
    Encoder() : slots_(1 << 16, 0) {}

    Index feed(const char* text, Index size, std::int32_t* ids) {
        Index count = 0;
        const char *at = text, *const end = text + size;
        while (at < end) {
            const char* start = at;
            while (at < end && !is_space(*at)) ++at;
            if (at == end) {  // the word may go on in the next piece
                rest_.append(start, at);
                if (rest_.size() > LONGEST) return TOO_LONG;
                break;
            }
            Index id = -1;
            if (!rest_.empty()) {
                rest_.append(start, at);
                id = find(rest_);
                rest_.clear();
            } else if (at > start) {
                id = find(std::string_view(start, std::size_t(at - start)));
            }
            if (id == -2) return failure_;
            if (id >= 0) {
                ids[count++] = std::int32_t(id);
                open_ = true;
            }
            if (*at == '\n') {
                if (open_) ids[count++] = -1;
                open_ = false;
                ++lines;
            }
            ++at;
        }
        return count;
    }

    Index lines = 0;  // ends of lines so far
    std::string bytes;
    std::vector<Index> offsets{0}, counts;

  private:
    static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

    std::string_view word_of(Index id) const {
        return {bytes.data() + offsets[id], std::size_t(offsets[id + 1] - offsets[id])};
    }

    // Returns the id of a word, or -2 where it cannot be one.
    Index find(std::string_view word) {
        for (std::size_t slot = hash_of(word) & (slots_.size() - 1);; slot = (slot + 1) & (slots_.size() - 1)) {
            const Index found = Index(slots_[slot]) - 1;
            if (found < 0) return add(word, slot);
            if (word_of(found) == word) {
                ++counts[found];
                return found;
            }
        }
    }

    Index add(std::string_view word, std::size_t slot) {
        const bool nul = word.find('\0') != word.npos;
        const bool utf8 = is_utf8(reinterpret_cast<const unsigned char*>(word.data()), word.size());
        failure_ = nul ? NUL : !utf8 ? NOT_UTF8 : word.size() > LONGEST ? TOO_LONG : counts.size() == MOST ? TOO_MANY : 0;
        if (failure_) return -2;
        bytes.append(word);
        offsets.push_back(Index(bytes.size()));
        counts.push_back(1);
        slots_[slot] = std::uint32_t(counts.size());
        if (counts.size() * 2 > slots_.size()) grow();
        return Index(counts.size()) - 1;
    }

    void grow() {
        slots_.assign(slots_.size() * 2, 0);
        for (std::size_t id = 0; id < counts.size(); ++id) {
            std::size_t slot = hash_of(word_of(Index(id))) & (slots_.size() - 1);
            while (slots_[slot]) slot = (slot + 1) & (slots_.size() - 1);
            slots_[slot] = std::uint32_t(id + 1);
        }
    }

    std::vector<std::uint32_t> slots_;  // id + 1 of the word with this hash, or 0
    std::string rest_;                  // of a word that the last piece began
    bool open_ = false;                 // whether the line has a word
    Index failure_ = 0;
};

}  // namespace

extern "C" {
Encoder* frostline_encoder() { return new Encoder; }
void frostline_encoder_free(Encoder* encoder) { delete encoder; }

// Encode a piece of text. ids has room for size + 1. Returns how many were written, or what is wrong with a word.
Index frostline_encoder_feed(Encoder* encoder, const char* text, Index size, std::int32_t* ids) {
    return encoder->feed(text, size, ids);
}
Index frostline_encoder_lines(const Encoder* encoder) { return encoder->lines; }
Index frostline_encoder_words(const Encoder* encoder) { return Index(encoder->counts.size()); }
const char* frostline_encoder_bytes(const Encoder* encoder) { return encoder->bytes.data(); }
const Index* frostline_encoder_offsets(const Encoder* encoder) { return encoder->offsets.data(); }
const Index* frostline_encoder_counts(const Encoder* encoder) { return encoder->counts.data(); }
}
