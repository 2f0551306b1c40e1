// The rates that an estimate of a kernel rests on, measured on the GPU at hand: instructions of each pipe, bandwidths, launches.
//
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a benchmarks/gpu_rates.cu -o gpu_rates && ./gpu_rates
//
// Prints a JSON list of {"name", "value", "unit"}; rates a clock have "sm_clock_ghz" too, the clock that they ran at.

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

void check(cudaError_t error, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "gpu_rates.cu:%d: %s\n", line, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check(call, __LINE__)

constexpr int kRounds = 512;
constexpr int kUnrolled = 4;
// Independent instructions of a thread, enough to hide the latency of one.
constexpr int kChains = 8;
constexpr int kThreads = 512;

// Without this the loop would have no result that anybody reads, and would be left out.
__device__ void keep(float sum, float* out) {
  if (sum == 12345.678f) out[threadIdx.x] = sum;
}

template <class Instruction>
__global__ void __launch_bounds__(kThreads) chains(float seed, float* out, long long* clocks) {
  typename Instruction::State state[kChains];
  for (int i = 0; i < kChains; ++i) state[i] = Instruction::start(seed, i + threadIdx.x);
  __syncthreads();
  const long long begin = clock64();
  for (int r = 0; r < kRounds; ++r) {
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
#pragma unroll
      for (int i = 0; i < kChains; ++i) Instruction::step(state[i], seed);
    }
  }
  __syncthreads();
  const long long end = clock64();
  float sum = 0;
  for (int i = 0; i < kChains; ++i) sum += Instruction::value(state[i]);
  keep(sum, out);
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
}

struct Single {
  using State = float;
  static __device__ float start(float seed, int i) { return seed + i * 1e-3f; }
  static __device__ float value(float x) { return x; }
};
struct Packed {
  using State = uint32_t;
  static __device__ uint32_t start(float seed, int i) { return 0x38003a00u + i + static_cast<uint32_t>(seed); }
  static __device__ float value(uint32_t x) { return static_cast<float>(x); }
};
struct Sums {
  using State = float4;
  static __device__ float4 start(float seed, int i) { return {seed + i, seed, seed - i, seed}; }
  static __device__ float value(float4 x) { return x.x + x.y + x.z + x.w; }
};

#define ONE_OPERAND(NAME, KIND, TEXT, CONSTRAINT)                                                   \
  struct NAME : KIND {                                                                              \
    static __device__ void step(State& x, float) { asm volatile(TEXT " %0, %0;" : CONSTRAINT(x)); } \
  };
#define FUSED(NAME, KIND, TEXT, CONSTRAINT, INPUT, CAST)                                                                       \
  struct NAME : KIND {                                                                                                         \
    static __device__ void step(State& x, float s) { asm volatile(TEXT " %0, %0, %1, %1;" : CONSTRAINT(x) : INPUT(CAST(s))); } \
  };
FUSED(Fma, Single, "fma.rn.f32", "+f", "f", float)
FUSED(FmaF16, Packed, "fma.rn.f16x2", "+r", "r", __float_as_uint)
FUSED(FmaBf16, Packed, "fma.rn.bf16x2", "+r", "r", __float_as_uint)
ONE_OPERAND(Tanh, Single, "tanh.approx.f32", "+f")
ONE_OPERAND(TanhF16, Packed, "tanh.approx.f16x2", "+r")
ONE_OPERAND(Exp2, Single, "ex2.approx.ftz.f32", "+f")
ONE_OPERAND(Rsqrt, Single, "rsqrt.approx.ftz.f32", "+f")

struct Shuffle : Single {
  static __device__ void step(float& x, float) {
    x = __shfl_xor_sync(0xffffffffu, x, 1);
    asm volatile("" : "+f"(x));
  }
};
struct ToBf16 : Single {
  static __device__ void step(float& x, float s) {
    uint32_t y;
    asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(x), "f"(s));
    x = __uint_as_float(y);
  }
};
struct Logic : Packed {
  static __device__ void step(uint32_t& x, float s) {
    asm volatile("lop3.b32 %0, %0, %1, %1, 0x96;" : "+r"(x) : "r"(__float_as_uint(s)));
  }
};

#define PRODUCT(NAME, SHAPE, TYPES, A, B)                                                                             \
  struct NAME : Sums {                                                                                                \
    static __device__ void step(float4& c, float s) {                                                                 \
      const uint32_t x = __float_as_uint(s) + 0x3f803f80u + threadIdx.x;                                              \
      asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPES ".f32 {%0,%1,%2,%3}, " A ", " B ", {%0,%1,%2,%3};" \
                   : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w)                                                       \
                   : "r"(x));                                                                                         \
    }                                                                                                                 \
  };
PRODUCT(MmaBf16, "m16n8k16", "bf16.bf16", "{%4,%4,%4,%4}", "{%4,%4}")
PRODUCT(MmaF16, "m16n8k16", "f16.f16", "{%4,%4,%4,%4}", "{%4,%4}")
PRODUCT(MmaBf16Short, "m16n8k8", "bf16.bf16", "{%4,%4}", "{%4}")
PRODUCT(MmaTf32, "m16n8k8", "tf32.tf32", "{%4,%4,%4,%4}", "{%4,%4}")

// Two pipes at once: what their sum would take if they did not overlap is known from each alone.
struct MmaAndTanh : Sums {
  static __device__ void step(float4& c, float s) {
    MmaBf16::step(c, s);
    asm volatile("tanh.approx.f32 %0, %0;" : "+f"(c.x));
  }
};
struct TanhAndFma {
  using State = float2;
  static __device__ float2 start(float seed, int i) { return {seed, seed + i}; }
  static __device__ float value(float2 x) { return x.x + x.y; }
  static __device__ void step(float2& x, float s) {
    Tanh::step(x.x, s);
    for (int i = 0; i < 8; ++i) Fma::step(x.y, s);
  }
};

enum class Access { kLoad16, kLoadMatrix, kLoad4, kStore16 };

template <Access kind>
__global__ void __launch_bounds__(kThreads) shared_memory(float* out, long long* clocks) {
  __shared__ __align__(128) float4 data[2048];
  for (int i = threadIdx.x; i < 2048; i += kThreads) data[i] = {1.f * i, 2.f, 3.f, 4.f};
  __syncthreads();
  const uint32_t own = static_cast<uint32_t>(__cvta_generic_to_shared(data)) + threadIdx.x * 16;
  float sum = 0;
  const long long begin = clock64();
  for (int r = 0; r < kRounds; ++r) {
#pragma unroll
    for (int u = 0; u < 16; ++u) {
      // Another place each time, or the compiler would read once.
      const uint32_t at = own + (u * 1536 + r * 128) % 24576;
      uint32_t a = r, b = 0, c = 0, d = 0;
      if constexpr (kind == Access::kLoad16)
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(at));
      if constexpr (kind == Access::kLoadMatrix)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                     : "r"(at));
      if constexpr (kind == Access::kLoad4) asm volatile("ld.shared.u32 %0, [%1];" : "=r"(a) : "r"(at - threadIdx.x * 12));
      if constexpr (kind == Access::kStore16)
        asm volatile("st.shared.v4.u32 [%4], {%0,%1,%2,%3};" ::"r"(a), "r"(b), "r"(c), "r"(d), "r"(at));
      sum += __uint_as_float(a ^ b ^ c ^ d);
    }
  }
  __syncthreads();
  const long long end = clock64();
  keep(sum, out);
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
}

// Four warpgroups, both factors in shared memory without swizzle, four products of a warpgroup under way at a time.
template <int N>
__global__ void __launch_bounds__(kThreads) warpgroup_products(float* out, long long* clocks) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint16_t tile[];
  for (int i = threadIdx.x; i < 16384; i += kThreads) tile[i] = 0x3c00 + (i * 7919 & 1023);
  __syncthreads();
  asm volatile("fence.proxy.async;" ::: "memory");
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(tile));
  const auto descriptor = [](uint32_t address) {
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(128 >> 4) << 16 |
           static_cast<uint64_t>(256 >> 4) << 32;
  };
  const uint64_t a = descriptor(base + threadIdx.x / 128 * 2048), b = descriptor(base + 8192);
  float d[N / 2] = {};
  const long long begin = clock64();
  for (int r = 0; r < kRounds; ++r) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      if constexpr (N == 64) {
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,"
            "%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
              "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
              "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]),
              "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
            : "l"(a), "l"(b));
      } else {
        asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, 1, 1, 0, 0;"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
                     : "l"(a), "l"(b));
      }
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  __syncthreads();
  const long long end = clock64();
  float sum = 0;
  for (float x : d) sum += x;
  keep(sum, out);
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
#endif
}

__global__ void read_rounds(const uint4* data, size_t count, int rounds, float* out) {
  uint32_t sum = 0;
  for (int r = 0; r < rounds; ++r) {
    for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
      uint4 x;
      asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(data + i));
      sum += x.x ^ x.y ^ x.z ^ x.w;
    }
  }
  keep(__uint_as_float(sum), out);
}

__global__ void write_rounds(uint4* data, size_t count, int rounds) {
  for (int r = 0; r < rounds; ++r) {
    for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x)
      data[i] = {static_cast<uint32_t>(i), static_cast<uint32_t>(r), 0u, 1u};
  }
}

__global__ void nothing() {}

class Rates {
 public:
  Rates() {
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceProperties(&properties, 0));
    multiprocessors_ = properties.multiProcessorCount;
    hopper_ = properties.major == 9;
    CHECK(cudaMalloc(&out_, kThreads * sizeof(float)));
    CHECK(cudaMalloc(&clocks_, multiprocessors_ * sizeof(long long)));
  }

  void all() {
    const std::string operations = "operations a clock and multiprocessor", products = "multiply-adds a clock and multiprocessor";
    instructions<Fma>("fma.rn.f32", operations);
    instructions<FmaF16>("fma.rn.f16x2", operations, 2);
    instructions<FmaBf16>("fma.rn.bf16x2", operations, 2);
    instructions<Tanh>("tanh.approx.f32", operations);
    instructions<TanhF16>("tanh.approx.f16x2", operations, 2);
    instructions<Exp2>("ex2.approx.ftz.f32", operations);
    instructions<Rsqrt>("rsqrt.approx.ftz.f32", operations);
    instructions<Shuffle>("shfl.sync.bfly", operations);
    instructions<ToBf16>("cvt.rn.bf16x2.f32", operations);
    instructions<Logic>("lop3.b32", operations);
    instructions<MmaBf16>("mma.sync.m16n8k16.bf16", products, 16 * 8 * 16 / 32);
    instructions<MmaF16>("mma.sync.m16n8k16.f16", products, 16 * 8 * 16 / 32);
    instructions<MmaBf16Short>("mma.sync.m16n8k8.bf16", products, 16 * 8 * 8 / 32);
    instructions<MmaTf32>("mma.sync.m16n8k8.tf32", products, 16 * 8 * 8 / 32);
    instructions<MmaBf16>("mma.sync.m16n8k16.bf16, 4 warps", products, 16 * 8 * 16 / 32, 128);
    instructions<MmaBf16>("mma.sync.m16n8k16.bf16, 8 warps", products, 16 * 8 * 16 / 32, 256);
    instructions<MmaAndTanh>("mma.sync.m16n8k16.bf16, a tanh.approx.f32 beside each", products, 16 * 8 * 16 / 32);
    instructions<TanhAndFma>("tanh.approx.f32, eight fma.rn.f32 beside each", operations);
    if (hopper_) {
      warpgroups<64>("wgmma.m64n64k16.bf16, four warpgroups", products);
      warpgroups<16>("wgmma.m64n16k16.bf16, four warpgroups", products);
    }
    accesses<Access::kLoad16>("ld.shared.v4", 16);
    accesses<Access::kLoadMatrix>("ldmatrix.x4", 16);
    accesses<Access::kLoad4>("ld.shared.u32", 4);
    accesses<Access::kStore16>("st.shared.v4", 16);
    memory();
    launches();
    std::printf("\n]\n");
  }

 private:
  // The quickest of five runs after one that is not counted.
  template <class Launch>
  double seconds(Launch launch) {
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    double best = 1e9;
    for (int i = 0; i < 6; ++i) {
      CHECK(cudaEventRecord(begin));
      launch();
      CHECK(cudaGetLastError());
      CHECK(cudaEventRecord(end));
      CHECK(cudaEventSynchronize(end));
      float milliseconds;
      CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
      if (i > 0 && milliseconds * 1e-3 < best) best = milliseconds * 1e-3;
    }
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    return best;
  }

  double mean_clocks() {
    std::vector<long long> each(multiprocessors_);
    CHECK(cudaMemcpy(each.data(), clocks_, each.size() * sizeof(long long), cudaMemcpyDeviceToHost));
    double sum = 0;
    for (long long clocks : each) sum += static_cast<double>(clocks);
    return sum / multiprocessors_;
  }

  void tell(const std::string& name, double value, const std::string& unit, double clock_ghz = 0) {
    std::printf("%s{\"name\": \"%s\", \"value\": %.5g, \"unit\": \"%s\"", first_ ? "[\n " : ",\n ", name.c_str(), value,
                unit.c_str());
    if (clock_ghz > 0) std::printf(", \"sm_clock_ghz\": %.4g", clock_ghz);
    std::printf("}");
    first_ = false;
  }

  // What one block does, by the clocks that it took.
  template <class Launch>
  void a_clock(const std::string& name, const std::string& unit, double done, Launch launch) {
    const double took = seconds(launch), clocks = mean_clocks();
    tell(name, done / clocks, unit, clocks / took * 1e-9);
  }

  template <class Instruction>
  void instructions(const std::string& name, const std::string& unit, double of_a_lane = 1, int threads = kThreads) {
    a_clock(name, unit, 1.0 * kRounds * kUnrolled * kChains * threads * of_a_lane,
            [&] { chains<Instruction><<<multiprocessors_, threads>>>(0.001f, out_, clocks_); });
  }

  template <Access kind>
  void accesses(const std::string& name, double bytes) {
    a_clock(name, "bytes a clock and multiprocessor", 16.0 * kRounds * kThreads * bytes,
            [&] { shared_memory<kind><<<multiprocessors_, kThreads>>>(out_, clocks_); });
  }

  template <int N>
  void warpgroups(const std::string& name, const std::string& unit) {
    constexpr int kBytes = 65536;
    CHECK(cudaFuncSetAttribute(warpgroup_products<N>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    a_clock(name, unit, 1.0 * kRounds * kUnrolled * (kThreads / 128) * 64 * N * 16,
            [&] { warpgroup_products<N><<<multiprocessors_, kThreads, kBytes>>>(out_, clocks_); });
  }

  void memory() {
    constexpr size_t kLarge = size_t{4} << 30;
    constexpr int kAgain = 20;
    char* data;
    CHECK(cudaMalloc(&data, kLarge));
    CHECK(cudaMemset(data, 1, kLarge));
    uint4* const words = reinterpret_cast<uint4*>(data);
    for (size_t mib : {8, 20, 32, 48}) {
      const size_t bytes = mib << 20, count = bytes / sizeof(uint4);
      const std::string size = ", " + std::to_string(mib) + " MiB";
      double took = seconds([&] { read_rounds<<<multiprocessors_ * 4, kThreads>>>(words, count, kAgain, out_); });
      tell("read again and again" + size, bytes * kAgain / took * 1e-9, "GB/s");
      took = seconds([&] { write_rounds<<<multiprocessors_ * 4, kThreads>>>(words, count, kAgain); });
      tell("written again and again" + size, bytes * kAgain / took * 1e-9, "GB/s");
    }
    double took = seconds([&] { read_rounds<<<multiprocessors_ * 8, kThreads>>>(words, kLarge / sizeof(uint4), 1, out_); });
    tell("read once, 4 GiB", kLarge / took * 1e-9, "GB/s");
    took = seconds([&] { CHECK(cudaMemcpyAsync(data + kLarge / 2, data, kLarge / 2, cudaMemcpyDeviceToDevice)); });
    tell("copied, 2 GiB read and 2 GiB written", kLarge / took * 1e-9, "GB/s");
    CHECK(cudaFree(data));
  }

  void launches() {
    constexpr int kLaunches = 2000, kInGraph = 200;
    double took = seconds([&] {
      for (int i = 0; i < kLaunches; ++i) nothing<<<1, 32>>>();
    });
    tell("launches one after another", took / kLaunches * 1e6, "microseconds each");
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < kInGraph; ++i) nothing<<<1, 32, 0, stream>>>();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    took = seconds([&] {
      for (int i = 0; i < kLaunches / kInGraph; ++i) CHECK(cudaGraphLaunch(executable, nullptr));
    });
    tell("launches of a graph", took / kLaunches * 1e6, "microseconds each");
  }

  int multiprocessors_ = 0;
  bool hopper_ = false;
  bool first_ = true;
  float* out_ = nullptr;
  long long* clocks_ = nullptr;
};

} // namespace

int main() {
  Rates().all();
  return 0;
}
