// Threads that share the work of a round. Compiled in front of kernel.cpp.

namespace {

// Threads that share tasks: those of a round are done, by whoever comes, before the next round begins.
//
// Nobody waits for a thread that has no task, such as one that does not get a CPU: on a busy machine the first thread then
// does them all. Who waits looks for a moment, and then sleeps: on a busy machine, a thread that only looks takes the
// time of the one that it waits for.
class Team {
  public:
    // Begin a round of `count` tasks. Only the first thread calls this, when the last round is over.
    void begin(Index count) {
        done_ = 0;
        const std::uint64_t round = (ticket_.load() >> 32) + 1;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            ticket_ = round << 32 | std::uint64_t(count) << 16;
        }
        if (sleeping_ > 0) begun_.notify_all();
    }

    // Do tasks of the round until none is left, then wait until all are done.
    template <class Task>
    void finish(Index count, Task task) {
        work(task);
        if (look([&] { return done_ == count; })) return;
        std::unique_lock<std::mutex> lock(mutex_);
        ended_.wait(lock, [&] { return done_ == count; });
    }

    // Do tasks of every round until `stop`.
    template <class Task>
    void help(Task task) {
        for (std::uint64_t round = 0;;) {
            const auto next = [&] { return stopped_ || ticket_.load() >> 32 != round; };
            if (!look(next)) {
                std::unique_lock<std::mutex> lock(mutex_);
                ++sleeping_;
                begun_.wait(lock, next);
                --sleeping_;
            }
            if (stopped_) return;
            round = ticket_.load() >> 32;
            work(task);
        }
    }

    void stop() {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopped_ = true;
        begun_.notify_all();
    }

  private:
    template <class Task>
    void work(Task task) {
        for (;;) {
            const std::uint64_t ticket = ticket_.fetch_add(1);
            const Index index = ticket & 0xffff, count = ticket >> 16 & 0xffff;
            if (index >= count) return;
            task(index);
            if (done_.fetch_add(1) + 1 == count) {
                const std::lock_guard<std::mutex> lock(mutex_);
                ended_.notify_one();
            }
        }
    }

    template <class Condition>
    static bool look(Condition condition) {
        for (int looks = 0; looks < 3000; ++looks)  // some microseconds
            if (condition()) return true;
        return false;
    }

    std::atomic<std::uint64_t> ticket_{0};  // number of the round, its count of tasks, the next one
    std::atomic<Index> done_{0};
    std::atomic<int> sleeping_{0};
    std::atomic<bool> stopped_{false};
    std::mutex mutex_;
    std::condition_variable begun_, ended_;
};

}  // namespace
