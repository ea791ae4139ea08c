// Share a product among threads: a task is a tile of rows and a chunk of tokens.
#pragma once

#include "parallel.h"
#include "simd.h"

namespace ditquant {

constexpr int TOKENS = 6;        // of one step: 6 x 4 vectors of sums, 4 of weights and a token's fill the registers
constexpr int64_t CHUNK = 2048;  // tokens of a task: their codes stay in the shared cache while all tiles pass

// Call work(tile, token, end) for all tiles and tokens: enough tasks for every thread, none so small that decoding its
// tile would show, all but the last of a multiple of `step` tokens.
template <class Work>
void share(int64_t tiles, int64_t tokens, int64_t step, int threads, const Work& work) {
    int64_t chunks = ceil_div(tokens, CHUNK);
    if (threads > 1) chunks = std::max(chunks, std::min(ceil_div(4 * threads, tiles), ceil_div(tokens, 192)));
    const int64_t chunk = round_up(ceil_div(tokens, std::max<int64_t>(chunks, 1)), step);
    parallel(chunks * tiles, threads, [&](int64_t task) {
        const int64_t token = task / tiles * chunk;
        work(task % tiles, token, std::min(token + chunk, tokens));
    });
}

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
