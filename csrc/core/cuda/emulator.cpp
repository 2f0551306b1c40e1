#include "core/cuda/emulator.h"

#ifdef CAAN_EMULATED_THREADS
#include <condition_variable>
#include <mutex>
#include <thread>
#else
#include <setjmp.h>
#include <ucontext.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "core/cuda/device.h"

namespace caan::cuda {

namespace {

constexpr size_t MAIL = 64;

struct Copy {
  void* to;
  std::array<char, 16> bytes;
};

// What a thread has under way.
struct Pending {
  int exchanges = 0;
  std::vector<std::vector<Copy>> copies{1};
};

#ifdef CAAN_EMULATED_THREADS

// Where threads wait for each other.
class Barrier {
 public:
  void expect(int count) {
    members_ = count;
    arrived_ = 0;
  }
  void wait() {
    std::unique_lock lock(mutex_);
    const uint64_t generation = generation_;
    if (++arrived_ == members_) return release();
    changed_.wait(lock, [&] { return generation_ != generation; });
  }
  // A thread that has ended is waited for no more.
  void leave() {
    std::lock_guard lock(mutex_);
    if (--members_ == arrived_ && arrived_) release();
  }

 private:
  void release() {
    arrived_ = 0;
    ++generation_;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int members_ = 0, arrived_ = 0;
  uint64_t generation_ = 0;
};

#else

constexpr size_t STACK = 256 * 1024;

// Where threads wait for each other; the generation changes when all have come.
class Barrier {
 public:
  void expect(int count) {
    members_ = count;
    arrived_ = 0;
  }
  void wait();
  void leave() {
    --members_;
    if (arrived_) release_if_complete();
  }
  uint64_t generation() const { return generation_; }

 private:
  void release_if_complete() {
    if (members_ > 0 && arrived_ < members_) return;
    arrived_ = 0;
    ++generation_;
  }

  int members_ = 0, arrived_ = 0;
  uint64_t generation_ = 0;
};

struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf state;
  bool started, done;
  const Barrier* awaited;
  uint64_t generation;
};

#endif

struct Warp {
  Barrier barrier;
  // Two, used in turns: a lane may give its next item while another still reads the last.
  alignas(16) std::array<std::array<char, WARP * MAIL>, 2> mail;
};

struct Machine {
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<Pending> pending;
  Barrier block;
  std::vector<uint32_t> shared;
  const std::function<void()>* body;
#ifndef CAAN_EMULATED_THREADS
  std::vector<Fiber> fibers;
  jmp_buf scheduler;
  Fiber& fiber() { return fibers[threadIdx.x]; }
#endif

  Warp& warp() { return *warps[threadIdx.x / WARP]; }
  Pending& mine() { return pending[threadIdx.x]; }

  // Between blocks nothing is left of the last one.
  void clear(unsigned threads) {
    block.expect(int(threads));
    for (unsigned w = 0; w * WARP < threads; ++w) warps[w]->barrier.expect(int(std::min<unsigned>(WARP, threads - w * WARP)));
    pending.assign(threads, {});
    std::fill(shared.begin(), shared.end(), 0xffffffffu);
  }
  void leave() {
    warp().barrier.leave();
    block.leave();
  }
};

#ifdef CAAN_EMULATED_THREADS

thread_local Machine* current = nullptr;
Machine& machine() { return *current; }

void run_block(unsigned threads, bool) {
  machine().clear(threads);
  const Index block = blockIdx, size = blockDim, grid = gridDim;
  std::vector<std::thread> running;
  for (unsigned t = 0; t < threads; ++t)
    running.emplace_back([=, of_block = current] {
      current = of_block;
      threadIdx.x = t, blockIdx = block, blockDim = size, gridDim = grid;
      (*machine().body)();
      machine().leave();
    });
  for (std::thread& thread : running) thread.join();
}

// Two blocks at once, so that what they write to one place is seen, too, and they wait for each other as on a GPU.
void run_blocks(int64_t blocks, unsigned threads, const std::function<void(Machine&)>& prepare) {
  static std::array<Machine, 2> machines;
  std::atomic<int64_t> next{0};
  std::vector<std::thread> running;
  for (Machine& mine : machines)
    running.emplace_back([&] {
      current = &mine;
      prepare(mine);
      blockDim.x = threads, gridDim.x = unsigned(blocks);
      for (int64_t block = next++; block < blocks; block = next++) {
        blockIdx.x = unsigned(block);
        run_block(threads, false);
      }
    });
  for (std::thread& thread : running) thread.join();
}

#else

Machine& machine() {
  thread_local Machine only;
  return only;
}

void yield() {
  if (_setjmp(machine().fiber().state) == 0) _longjmp(machine().scheduler, 1);
}

void Barrier::wait() {
  const uint64_t generation = generation_;
  machine().fiber().awaited = this;
  machine().fiber().generation = generation;
  ++arrived_;
  release_if_complete();
  while (generation_ == generation) yield();
  machine().fiber().awaited = nullptr;
}

void run_fiber() {
  (*machine().body)();
  machine().fiber().done = true;
  machine().leave();
  _longjmp(machine().scheduler, 1);
}

void resume(unsigned thread) {
  threadIdx.x = thread;
  Fiber& fiber = machine().fiber();
  if (_setjmp(machine().scheduler)) return;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

bool waits(const Fiber& fiber) { return fiber.awaited && fiber.awaited->generation() == fiber.generation; }

void prepare(Fiber& fiber) {
  if (!fiber.stack) fiber.stack = std::make_unique<char[]>(STACK);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = STACK;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, run_fiber, 0);
  fiber.started = fiber.done = false;
  fiber.awaited = nullptr;
}

void run_block(unsigned threads, bool backwards) {
  machine().clear(threads);
  machine().fibers.resize(std::max(machine().fibers.size(), size_t(threads)));
  for (unsigned t = 0; t < threads; ++t) prepare(machine().fibers[t]);
  for (bool any = true, moved; any;) {
    any = moved = false;
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned thread = backwards ? threads - 1 - i : i;
      const Fiber& fiber = machine().fibers[thread];
      if (fiber.done) continue;
      any = true;
      if (waits(fiber)) continue;
      moved = true;
      resume(thread);
    }
    // A block that takes all turns of a grid runs its threads both ways, too.
    backwards = !backwards;
    if (any && !moved) {
      std::fprintf(stderr, "a block's threads wait for each other at different barriers\n");
      std::abort();
    }
  }
}

void run_blocks(int64_t blocks, unsigned threads, const std::function<void(Machine&)>& prepare) {
  prepare(machine());
  blockDim.x = threads, gridDim.x = unsigned(blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    blockIdx.x = unsigned(block);
    run_block(threads, block % 2);
  }
}

#endif

char* next_mail() { return machine().warp().mail[machine().mine().exchanges++ % 2].data(); }

float half_to_float(uint16_t bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return float(x);
}

uint16_t float_to_half(float x) {
  const _Float16 half = _Float16(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

uint16_t float_to_bfloat(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return 0x7fff;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T>
void unpack(float* numbers, uint32_t both) {
  numbers[0] = to_float(T{uint16_t(both)});
  numbers[1] = to_float(T{uint16_t(both >> 16)});
}

// Whether an error goes up; as good as chance, and always the same for the same number.
bool upwards(float x) { return std::bit_cast<uint32_t>(x) * 2654435761u >> 31; }

// A result with a relative error of `most`, truncated so as not to pass it; where it is infinite or 0, PTX says what it is.
float off_by(double exact, double most, float x) {
  if (!std::isfinite(x) || !std::isfinite(exact) || exact == 0) return float(exact);
  const double wrong = exact * (upwards(x) ? 1 + most : 1 - most);
  const float nearest = float(wrong);
  return std::abs(nearest - exact) <= std::abs(exact) * most ? nearest : std::nextafter(nearest, float(exact));
}

// Factors of a tensor-core product, the right one by columns.
struct Factors {
  float left[16][16], right[8][16];
};

// Which lane holds which number is PTX's: mma.m16n8k16 and m16n8k8 with 16-bit factors.
template <typename T, int PARTS>
void multiply_add_of(float (&sums)[4], const uint32_t (&left)[2 * PARTS], const uint32_t (&right)[PARTS]) {
  const int lane = int(threadIdx.x) % WARP, row = lane / 4, column = 2 * (lane % 4);
  auto& factors = *reinterpret_cast<Factors*>(next_mail());
  for (int i = 0; i < 2 * PARTS; ++i) unpack<T>(&factors.left[row + 8 * (i % 2)][column + 8 * (i / 2)], left[i]);
  for (int i = 0; i < PARTS; ++i) unpack<T>(&factors.right[row][column + 8 * i], right[i]);
  warp_barrier();
  float products[4] = {};
  for (int k = 0; k < 8 * PARTS; ++k)
    for (int i = 0; i < 4; ++i) products[i] += factors.left[row + 8 * (i / 2)][k] * factors.right[column + i % 2][k];
  for (int i = 0; i < 4; ++i) sums[i] += products[i];
}

// The largest power of two in a number, a finite one.
double power_in(double x) { return std::bit_cast<double>(std::bit_cast<uint64_t>(x) & uint64_t(0x7ff) << 52); }

// What four products leave of a sum that they are added to: all are cut to 24 bits below the largest of them, and the result again.
// PTX promises no rounding: a model that is meant to err by no less than a GPU.
float add_and_cut(float sum, const double (&products)[4]) {
  double largest = std::abs(double(sum)), total = sum;
  for (double x : products) largest = std::max(largest, std::abs(x)), total += x;
  if (!std::isfinite(total) || largest == 0) return float(total);
  const double unit = std::max(power_in(largest) * 0x1p-23, 0x1p-149);
  total = std::trunc(sum / unit) * unit;
  for (double x : products) total += std::trunc(x / unit) * unit;
  const float nearest = float(total);
  return std::abs(nearest) > std::abs(total) ? std::nextafter(nearest, 0.0f) : nearest;
}

} // namespace

void emulate(int64_t blocks, int threads, size_t shared, const std::function<void()>& body) {
  run_blocks(blocks, unsigned(threads), [&](Machine& mine) {
    while (mine.warps.size() * WARP < size_t(threads)) mine.warps.push_back(std::make_unique<Warp>());
    mine.shared.assign((shared + 3) / 4 + 32, 0);
    mine.body = &body;
  });
}

char* emulated_shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(machine().shared.data());
  return reinterpret_cast<char*>((address + 127) / 128 * 128);
}

void block_barrier() { machine().block.wait(); }
void warp_barrier() { machine().warp().barrier.wait(); }

int64_t take_turn(int64_t* taken) { return std::atomic_ref(*taken).fetch_add(1, std::memory_order_relaxed); }
void end_turn(int64_t* ended) { std::atomic_ref(*ended).fetch_add(1, std::memory_order_release); }
void wait_for_turns(const int64_t* ended, int64_t count) {
  const std::atomic_ref all(const_cast<int64_t&>(*ended));
#ifdef CAAN_EMULATED_THREADS
  while (all.load(std::memory_order_acquire) < count) std::this_thread::yield();
#else
  if (all.load() >= count) return;
  std::fprintf(stderr, "a block waits for turns that none has taken before\n");
  std::abort();
#endif
}

const void* exchange(const void* mine, size_t size) {
  char* const mail = next_mail();
  std::memcpy(mail + size * (threadIdx.x % WARP), mine, size);
  warp_barrier();
  return mail;
}

float shuffle_xor(float x, int mask) {
  return static_cast<const float*>(exchange(&x, sizeof(x)))[(threadIdx.x % WARP) ^ unsigned(mask)];
}

void copy_16_bytes(void* shared, const void* global, bool exists) {
  Copy copy{shared, {}};
  if (exists) std::memcpy(copy.bytes.data(), global, 16);
  machine().mine().copies.back().push_back(copy);
}

void close_copies() { machine().mine().copies.emplace_back(); }

void wait_until_open(int groups) {
  auto& copies = machine().mine().copies;
  while (int(copies.size()) - 1 > groups) {
    for (const Copy& copy : copies.front()) std::memcpy(copy.to, copy.bytes.data(), 16);
    copies.erase(copies.begin());
  }
}

void load_matrices(uint32_t* parts, int count, const void* row, bool transposed) {
  const auto* rows = static_cast<const uint16_t* const*>(exchange(&row, sizeof(row)));
  const int lane = int(threadIdx.x) % WARP, r = lane / 4, c = 2 * (lane % 4);
  for (int i = 0; i < count; ++i) {
    const auto* const* matrix = rows + 8 * i;
    const uint16_t first = transposed ? matrix[c][r] : matrix[r][c], second = transposed ? matrix[c + 1][r] : matrix[r][c + 1];
    parts[i] = first | uint32_t(second) << 16;
  }
  // The rows must not be overwritten before all have read them.
  warp_barrier();
}

uint32_t transpose_matrix(uint32_t part) {
  const auto* parts = static_cast<const uint32_t*>(exchange(&part, sizeof(part)));
  const int lane = int(threadIdx.x) % WARP, row = lane / 4, column = 2 * (lane % 4);
  const auto number = [&](int r, int c) { return parts[4 * r + c / 2] >> (16 * (c % 2)) & 0xffff; };
  return number(column, row) | number(column + 1, row) << 16;
}

void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1, bfloat16) {
  multiply_add_of<bfloat16, 2>(sums, left, {right0, right1});
}
void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1, float16) {
  multiply_add_of<float16, 2>(sums, left, {right0, right1});
}
void multiply_add(float (&sums)[4], const uint32_t (&left)[2], uint32_t right, bfloat16) {
  multiply_add_of<bfloat16, 1>(sums, left, {right});
}
void multiply_add(float (&sums)[4], const uint32_t (&left)[2], uint32_t right, float16) {
  multiply_add_of<float16, 1>(sums, left, {right});
}

// PTX's mma.m16n8k8 with TF32 factors.
void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1, float) {
  const auto cut = [](uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000); };
  const std::array<float, 6> mine{cut(left[0]), cut(left[1]), cut(left[2]), cut(left[3]), cut(right0), cut(right1)};
  const auto* all = static_cast<const std::array<float, 6>*>(exchange(&mine, sizeof(mine)));
  const int lane = int(threadIdx.x) % WARP;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    for (int half = 0; half < 2; ++half) {
      double products[4];
      for (int k = 0; k < 4; ++k)
        products[k] = double(all[4 * (row % 8) + k][row / 8 + 2 * half]) * double(all[4 * column + k][4 + half]);
      sums[i] = add_and_cut(sums[i], products);
    }
  }
}

float rough_tanh(float x) { return off_by(std::tanh(double(x)), 0x1p-11, x); }
// CUDA's __expf rounds x log2(e) to float32 before it calls ex2.approx.
float quick_power_of_two(float x) { return off_by(std::exp2(double(x)), 0x1p-22, x); }
float quick_inverse(float x) {
  const double exact = 1 / double(x);
  const float nearest = float(exact);
  if (!std::isfinite(nearest) || nearest == 0) return nearest;
  if (upwards(x)) return nearest > exact ? nearest : std::nextafter(nearest, INFINITY);
  return nearest < exact ? nearest : std::nextafter(nearest, -INFINITY);
}
float quick_inverse_root(float x) { return off_by(1 / std::sqrt(double(x)), std::exp2(-22.9), x); }

float to_float(bfloat16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }
float to_float(float16 x) { return half_to_float(x.bits); }
uint32_t pack(float first, float second, bfloat16) { return float_to_bfloat(first) | uint32_t(float_to_bfloat(second)) << 16; }
uint32_t pack(float first, float second, float16) { return float_to_half(first) | uint32_t(float_to_half(second)) << 16; }

} // namespace caan::cuda
