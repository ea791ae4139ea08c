// Share a product among threads: a task is a run of tiles of rows and a chunk of tokens.
#pragma once

#include "parallel.h"
#include "simd.h"

namespace ditquant {

constexpr int TOKENS = 6;        // of one step: 6 x 4 vectors of sums, 4 of weights and a token's fill the registers
constexpr int64_t CHUNK = 2048;  // tokens of a task: their codes stay in the shared cache while all tiles pass

struct Grid {
    int64_t tiles, together;  // at most so many tiles in a run
    int64_t tokens, step;     // all chunks but the last have a multiple of `step`
};

// Call work(tile, count, token, end) for all runs of tiles and chunks of tokens: enough tasks for every thread, none so
// small that decoding its tiles would show.
template <class Work>
void share(const Grid& grid, int threads, const Work& work) {
    int64_t runs = ceil_div(grid.tiles, grid.together), chunks = ceil_div(grid.tokens, CHUNK);
    if (threads > 1) {
        runs = std::max<int64_t>(round_up(runs, threads), 2 * threads);
        if (2 * runs > grid.tiles) runs = grid.tiles;  // runs of one tile and of two would not be done together
        const int64_t wanted = runs < grid.tiles ? 1 : ceil_div(4 * threads, runs);
        chunks = std::max(chunks, std::min(wanted, ceil_div(grid.tokens, 192)));
    }
    const int64_t chunk = round_up(ceil_div(grid.tokens, std::max<int64_t>(chunks, 1)), grid.step);
    parallel(chunks * runs, threads, [&](int64_t task) {
        // the longer runs come first: what is left for the last thread is short
        const int64_t run = task % runs, longer = grid.tiles % runs, token = task / runs * chunk;
        const int64_t tile = run * (grid.tiles / runs) + std::min(run, longer), count = grid.tiles / runs + (run < longer);
        work(tile, count, token, std::min(token + chunk, grid.tokens));
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
