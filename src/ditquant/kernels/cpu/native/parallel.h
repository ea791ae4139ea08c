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

// Call work(i) once for every i below `tasks`, on at most `threads` threads; the next free thread takes the next i.
template <class Work>
void parallel(int64_t tasks, int threads, const Work& work) {
    struct Shared {
        const Work& work;
        int64_t tasks;
        std::atomic<int64_t> next{0};
        static void run(void* pointer) {
            auto& shared = *static_cast<Shared*>(pointer);
            for (int64_t i; (i = shared.next.fetch_add(1)) < shared.tasks;) shared.work(i);
        }
    } shared{work, tasks};
    threads = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
    if (threads <= 1) return Shared::run(&shared);
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
