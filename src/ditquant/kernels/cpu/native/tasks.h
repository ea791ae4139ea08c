// Share a product among threads: a task is a run of tiles of rows and a part of the tokens.
#pragma once

#include "parallel.h"
#include "simd.h"

namespace ditquant {

constexpr int TOKENS = 6;        // of one step: 6 x 4 vectors of sums, 4 of weights and a token's fill the registers
constexpr int64_t CHUNK = 2048;  // tokens that all tiles pass before the next ones: their codes stay in the shared cache
constexpr int64_t PART = 512;    // tokens of a task, where there is more than one thread

struct Grid {
    int64_t tiles, together;  // at most so many tiles in a run
    int64_t tokens, step;     // all tasks but the last of a chunk have a multiple of `step`
};

// Call work(tile, count, token, end) for all runs of tiles and parts of the tokens. A thread gets the parts of a run one
// after the other. There are tasks enough that one that is slower than the others can be helped.
template <class Work>
void share(const Grid& grid, int threads, const Work& work) {
    if (grid.tokens == 0) return;
    const auto cut = [&](int64_t tokens, int64_t most) { return round_up(ceil_div(tokens, ceil_div(tokens, most)), grid.step); };
    const int64_t chunk = cut(grid.tokens, CHUNK), chunks = ceil_div(grid.tokens, chunk);
    const int64_t part = threads > 1 ? cut(chunk, PART) : chunk, parts = ceil_div(chunk, part);
    int64_t runs = ceil_div(grid.tiles, grid.together);
    if (threads > 1) runs = std::min(grid.tiles, std::max(round_up(runs, threads), ceil_div(4 * threads, chunks * parts)));
    parallel(chunks * runs * parts, threads, [&](int64_t task) {
        const int64_t run = task / parts % runs, longer = grid.tiles % runs;
        const int64_t tile = run * (grid.tiles / runs) + std::min(run, longer), count = grid.tiles / runs + (run < longer);
        const int64_t first = task / parts / runs * chunk, last = std::min(first + chunk, grid.tokens);
        const int64_t token = first + task % parts * part, end = std::min(token + part, last);
        if (token < end) work(tile, count, token, end);
    });
}

// What a thread remembers of a run of tiles between the parts of its tokens, in one product.
class Remembered {
    uint64_t product_ = 0;
    int64_t tile_ = 0, count_ = 0;

  public:
    static uint64_t next_product() {
        static std::atomic<uint64_t> last{0};
        return ++last;
    }
    // Whether these tiles are those of before.
    bool same(uint64_t product, int64_t tile, int64_t count) {
        const bool known = product == product_ && tile == tile_ && count == count_;
        product_ = product, tile_ = tile, count_ = count;
        return known;
    }
};

template <int COUNT>
struct Count {
    static constexpr int value = COUNT;
};

// Call step(token, Count) for all tokens, as many at a time as a step takes.
template <class Step>
void by_steps(int64_t token, int64_t end, const Step& step) {
    for (; token + TOKENS <= end; token += TOKENS) step(token, Count<TOKENS>());
    switch (end - token) {
        case 1: return step(token, Count<1>());
        case 2: return step(token, Count<2>());
        case 3: return step(token, Count<3>());
        case 4: return step(token, Count<4>());
        case 5: return step(token, Count<5>());
    }
}

}  // namespace ditquant
