// Share tasks among threads: those of the OpenMP runtime that torch has loaded, so that no second pool competes with
// them, else std::thread.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

namespace ditquant {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline GompParallel openmp() {
    static const auto found = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

// Call work(i) once for every i below `tasks`, on at most `threads` threads. A thread takes tasks that follow each other,
// which have much in common, and helps the others when it is through with its own.
template <class Work>
void parallel(int64_t tasks, int threads, const Work& work) {
    struct alignas(64) Range {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };
    struct Shared {
        const Work& work;
        std::vector<Range> ranges;
        std::atomic<size_t> started{0};
        static void run(void* pointer) {
            auto& shared = *static_cast<Shared*>(pointer);
            const size_t own = shared.started.fetch_add(1), count = shared.ranges.size();
            for (size_t k = 0; k < count; k++) {
                Range& range = shared.ranges[(own + k) % count];
                for (int64_t i; (i = range.next.fetch_add(1)) < range.end;) shared.work(i);
            }
        }
    };
    threads = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
    if (threads <= 1) {
        for (int64_t i = 0; i < tasks; i++) work(i);
        return;
    }
    Shared shared{work, std::vector<Range>(threads)};
    for (int i = 0; i < threads; i++) {
        shared.ranges[i].next = i * tasks / threads, shared.ranges[i].end = (i + 1) * tasks / threads;
    }
    if (openmp()) return openmp()(Shared::run, &shared, static_cast<unsigned>(threads), 0);
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back(Shared::run, &shared);
    Shared::run(&shared);
    for (auto& other : others) other.join();
}

// Aligned memory of one thread that grows and is used again.
template <class T>
class Scratch {
    T* data_ = nullptr;
    int64_t size_ = 0;

  public:
    ~Scratch() { std::free(data_); }
    T* get(int64_t size) {
        if (size > size_) {
            std::free(data_);
            data_ = static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64));
            if (!data_) throw std::bad_alloc();
            size_ = size;
        }
        return data_;
    }
};

}  // namespace ditquant
