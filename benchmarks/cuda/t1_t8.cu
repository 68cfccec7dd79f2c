// Eight questions about a chip's tensor cores (bfloat16 in, float32 sums), whose answers our GPU kernels rely on:
//
//   T1  wgmma and mma.sync give the same bits             T5  K may be permuted inside a group, and only there
//   T2  tile width and column position do not matter      T6  A from registers = A from shared memory
//   T3  A and B may swap roles                            T7  step_model.h holds, bit for bit
//   T4  zero steps and padded K change nothing            T8  what cuBLASLt does (reported, never failed)
//
// One line per test, PASS, FAIL or SKIP with its reason, and all of it as JSON with --json FILE. Exit code 1
// when one failed. --model tries the program itself out, without a GPU. T1 and T6 need sm_90a, as do the wgmma halves of the others.
//
//   nvcc -O2 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -o t1_t8 t1_t8.cu -ldl        (sm_80 and later: code=sm_80)
//
// Everywhere D = A·Bᵀ + C with A [M,K], B [N,K], C and D [M,N], row-major, K in steps of 16 chained through the accumulator.
// The kernels are written to be obviously right and are slow.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "step_model.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define HAVE_CUBLASLT_HEADER 1
#endif

#define CUDA_OK(call)                                                                                      \
  do {                                                                                                     \
    cudaError_t status_ = (call);                                                                          \
    if (status_ != cudaSuccess) {                                                                          \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status_));     \
      std::exit(2);                                                                                        \
    }                                                                                                      \
  } while (0)

// ---- mma.sync m16n8k16: one warp per 16 x 8 tile -----------------------------------------------------------------

__device__ inline uint32_t pair(const uint16_t *p) { return *reinterpret_cast<const uint32_t *>(p); }

__global__ void mma_kernel(float *d, const float *c, const uint16_t *a, const uint16_t *b, int n, int k) {
  int lane = threadIdx.x, group = lane / 4, column = lane % 4 * 2;
  int row = blockIdx.y * 16 + group, first = blockIdx.x * 8;
  const uint16_t *a0 = a + size_t(row) * k + column, *a1 = a0 + size_t(8) * k;
  const uint16_t *b0 = b + size_t(first + group) * k + column;
  size_t out = size_t(row) * n + first + column, below = out + size_t(8) * n;
  float d0 = c[out], d1 = c[out + 1], d2 = c[below], d3 = c[below + 1];
  for (int i = 0; i < k; i += 16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(pair(a0 + i)), "r"(pair(a1 + i)), "r"(pair(a0 + i + 8)), "r"(pair(a1 + i + 8)), "r"(pair(b0 + i)),
          "r"(pair(b0 + i + 8)));
  }
  d[out] = d0, d[out + 1] = d1, d[below] = d2, d[below + 1] = d3;
}

// ---- wgmma m64nNk16: one warpgroup per 64 x N tile ---------------------------------------------------------------

// The accumulator registers of width N are the first N/2 of 128 asm operands.
#define R8 "%0,%1,%2,%3"
#define R16 R8 "," "%4,%5,%6,%7"
#define R24 R16 "," "%8,%9,%10,%11"
#define R32 R24 "," "%12,%13,%14,%15"
#define R40 R32 "," "%16,%17,%18,%19"
#define R48 R40 "," "%20,%21,%22,%23"
#define R56 R48 "," "%24,%25,%26,%27"
#define R64 R56 "," "%28,%29,%30,%31"
#define R72 R64 "," "%32,%33,%34,%35"
#define R80 R72 "," "%36,%37,%38,%39"
#define R88 R80 "," "%40,%41,%42,%43"
#define R96 R88 "," "%44,%45,%46,%47"
#define R104 R96 "," "%48,%49,%50,%51"
#define R112 R104 "," "%52,%53,%54,%55"
#define R120 R112 "," "%56,%57,%58,%59"
#define R128 R120 "," "%60,%61,%62,%63"
#define R136 R128 "," "%64,%65,%66,%67"
#define R144 R136 "," "%68,%69,%70,%71"
#define R152 R144 "," "%72,%73,%74,%75"
#define R160 R152 "," "%76,%77,%78,%79"
#define R168 R160 "," "%80,%81,%82,%83"
#define R176 R168 "," "%84,%85,%86,%87"
#define R184 R176 "," "%88,%89,%90,%91"
#define R192 R184 "," "%92,%93,%94,%95"
#define R200 R192 "," "%96,%97,%98,%99"
#define R208 R200 "," "%100,%101,%102,%103"
#define R216 R208 "," "%104,%105,%106,%107"
#define R224 R216 "," "%108,%109,%110,%111"
#define R232 R224 "," "%112,%113,%114,%115"
#define R240 R232 "," "%116,%117,%118,%119"
#define R248 R240 "," "%120,%121,%122,%123"
#define R256 R248 "," "%124,%125,%126,%127"

// Every legal width.
#define EACH_N(X)                                                                            \
  X(8) X(16) X(24) X(32) X(40) X(48) X(56) X(64) X(72) X(80) X(88) X(96) X(104) X(112)       \
  X(120) X(128) X(136) X(144) X(152) X(160) X(168) X(176) X(184) X(192) X(200) X(208)        \
  X(216) X(224) X(232) X(240) X(248) X(256)

#define F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(i) F4(i), F4(i + 4), F4(i + 8), F4(i + 12)
#define F64(i) F16(i), F16(i + 16), F16(i + 32), F16(i + 48)

template <int N>
__device__ void step_shared(float (&d)[128], uint64_t a, uint64_t b);
template <int N>
__device__ void step_registers(float (&d)[128], const uint32_t (&a)[4], uint64_t b);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WGMMA_STEP(N)                                                                                              \
  template <>                                                                                                      \
  __device__ void step_shared<N>(float (&d)[128], uint64_t a, uint64_t b) {                                        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" R##N "}, %128, %129, 1, 1, 1, 0, 0;" \
                 : F64(0), F64(64)                                                                                 \
                 : "l"(a), "l"(b));                                                                                \
  }                                                                                                                \
  template <>                                                                                                      \
  __device__ void step_registers<N>(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" R##N                                 \
                 "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;"                                                  \
                 : F64(0), F64(64)                                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                            \
  }
EACH_N(WGMMA_STEP)
#endif

// A descriptor of a [rows, 16] operand in shared memory without swizzle: cores of 8 rows x 8 values (128 bytes),
// cores down the rows 128 bytes apart, the two cores along K rows/8 * 128 bytes apart.
__device__ inline uint64_t describe(const uint16_t *shared, int rows) {
  uint64_t address = uint64_t(__cvta_generic_to_shared(shared)), along_k = rows * 16, along_rows = 128;
  return (address & 0x3ffff) >> 4 | along_k >> 4 << 16 | along_rows >> 4 << 32;
}

// Copies rows x 16 values into that layout; the warpgroup works together.
__device__ inline void stage(uint16_t *shared, const uint16_t *source, int rows, int k) {
  for (int i = threadIdx.x; i < rows * 2; i += 128) {
    int row = i / 2, half = i % 2;
    const uint16_t *from = source + size_t(row) * k + half * 8;
    uint16_t *to = shared + (half * (rows / 8) + row / 8) * 64 + row % 8 * 8;
    for (int j = 0; j < 8; j++) to[j] = from[j];
  }
}

template <int N, bool FromRegisters>
__global__ void wgmma_kernel(float *out, const float *c, const uint16_t *a, const uint16_t *b, int n, int k) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ __align__(128) uint16_t shared_a[64 * 16], shared_b[N * 16];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int row = warp * 16 + lane / 4, column = lane % 4 * 2;
  const uint16_t *tile_a = a + size_t(blockIdx.y) * 64 * k, *tile_b = b + size_t(blockIdx.x) * N * k;
  size_t corner = (size_t(blockIdx.y) * 64 + row) * n + size_t(blockIdx.x) * N + column, below = size_t(8) * n;

  float d[128];
#pragma unroll
  for (int i = 0; i < 128; i++) {
    // Registers 4j and 4j+1 are columns 8j and 8j+1 of the thread's row, 4j+2 and 4j+3 those eight rows below.
    d[i] = i < N / 2 ? c[corner + i / 4 * 8 + i % 2 + (i % 4 < 2 ? 0 : below)] : 0.0f;
  }
  for (int i = 0; i < k; i += 16) {
    __syncthreads();
    stage(shared_a, tile_a + i, 64, k);
    stage(shared_b, tile_b + i, N, k);
    asm volatile("fence.proxy.async;" ::: "memory");  // the tensor core reads shared memory past the ordinary path
    __syncthreads();
    uint32_t fragment[4];
    const uint16_t *mine = tile_a + size_t(row) * k + i + column;
    fragment[0] = pair(mine), fragment[1] = pair(mine + size_t(8) * k);
    fragment[2] = pair(mine + 8), fragment[3] = pair(mine + size_t(8) * k + 8);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    if (FromRegisters) {
      step_registers<N>(d, fragment, describe(shared_b, N));
    } else {
      step_shared<N>(d, describe(shared_a, 64), describe(shared_b, N));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int j = 0; j < 128; j++) asm volatile("" : "+f"(d[j])::"memory");  // nothing reads d before the wait
  }
#pragma unroll
  for (int i = 0; i < N / 2; i++) out[corner + i / 4 * 8 + i % 2 + (i % 4 < 2 ? 0 : below)] = d[i];
#endif
}

// ---- host: problems and runs -------------------------------------------------------------------------------------

using Halves = std::vector<uint16_t>;
using Floats = std::vector<float>;

struct Problem {
  int m, n, k;
  Halves a, b;
  Floats c;
};

template <class T>
class DeviceCopy {
 public:
  explicit DeviceCopy(const std::vector<T> &host) {
    CUDA_OK(cudaMalloc(&data, host.size() * sizeof(T)));
    CUDA_OK(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceCopy() { cudaFree(data); }
  DeviceCopy(const DeviceCopy &) = delete;
  T *data = nullptr;
};

using Launch = std::function<void(float *, const float *, const uint16_t *, const uint16_t *)>;

static Floats run(const Problem &p, const Launch &launch) {
  DeviceCopy<uint16_t> a(p.a), b(p.b);
  DeviceCopy<float> c(p.c), d(Floats(size_t(p.m) * p.n, NAN));
  launch(d.data, c.data, a.data, b.data);
  CUDA_OK(cudaGetLastError());
  CUDA_OK(cudaDeviceSynchronize());
  Floats out(size_t(p.m) * p.n);
  CUDA_OK(cudaMemcpy(out.data(), d.data, out.size() * sizeof(float), cudaMemcpyDeviceToHost));
  return out;
}

// With --model the model stands in for the chip: the questions must then all have the expected answer, which
// proves the questions (not the chip) and needs no GPU.
static bool model_only = false;

static Floats modelled(const Problem &p, step_model::Unit unit) {
  Floats d(p.c.size());
  for (int i = 0; i < p.m; i++)
    for (int j = 0; j < p.n; j++)
      d[size_t(i) * p.n + j] = step_model::chain(unit, &p.a[size_t(i) * p.k], &p.b[size_t(j) * p.k], p.k, p.c[size_t(i) * p.n + j]);
  return d;
}

// m a multiple of 16, n of 8, k of 16.
static Floats with_mma(const Problem &p) {
  if (model_only) return modelled(p, step_model::unit_of(9, 0));
  return run(p, [&](float *d, const float *c, const uint16_t *a, const uint16_t *b) {
    mma_kernel<<<dim3(p.n / 8, p.m / 16), 32>>>(d, c, a, b, p.n, p.k);
  });
}

// m a multiple of 64, n of width, k of 16.
static Floats with_wgmma(const Problem &p, int width, bool from_registers) {
  if (model_only) return modelled(p, step_model::unit_of(9, 0));
  return run(p, [&](float *d, const float *c, const uint16_t *a, const uint16_t *b) {
    dim3 grid(p.n / width, p.m / 64);
    switch (width) {
#define LAUNCH(N)                                                                 \
  case N:                                                                         \
    if (from_registers)                                                           \
      wgmma_kernel<N, true><<<grid, 128>>>(d, c, a, b, p.n, p.k);                 \
    else                                                                          \
      wgmma_kernel<N, false><<<grid, 128>>>(d, c, a, b, p.n, p.k);                \
    break;
      EACH_N(LAUNCH)
#undef LAUNCH
    }
  });
}

// ---- host: data --------------------------------------------------------------------------------------------------

static std::mt19937_64 generator(20261124);

static uint16_t normal_half(float scale) {
  static std::normal_distribution<float> normal;
  return step_model::float_to_bf16(normal(generator) * scale);
}

// A signed value with a random significand and an exponent from the range.
static uint16_t half_between(int low, int high) {
  int exponent = std::uniform_int_distribution<int>(low, high)(generator);
  uint16_t sign = generator() & 0x8000, significand = generator() & 0x7f;
  if (exponent < -126) return sign | significand;  // subnormal
  return uint16_t(sign | (exponent + 127) << 7 | significand);
}

static double exact_dot(const Problem &p, int row, int column) {
  double sum = 0;
  for (int i = 0; i < p.k; i++) {
    sum += double(step_model::bf16_to_float(p.a[size_t(row) * p.k + i])) *
           step_model::bf16_to_float(p.b[size_t(column) * p.k + i]);
  }
  return sum;
}

enum class Data { normal, gaps, cancelling, tiny, sparse };
static const char *const data_names[] = {"normal", "exponent gaps", "cancelling", "subnormal", "sparse"};

static Problem make(Data data, int m, int n, int k) {
  Problem p{m, n, k, Halves(size_t(m) * k), Halves(size_t(n) * k), Floats(size_t(m) * n)};
  auto fill = [&](Halves &v) {
    for (auto &x : v) {
      switch (data) {
        case Data::normal:
        case Data::cancelling: x = normal_half(1); break;
        case Data::gaps: x = half_between(-30, 30); break;
        case Data::tiny: x = half_between(-75, -55); break;  // products around the smallest float32
        case Data::sparse: x = generator() % 3 ? uint16_t(generator() & 0x8000) : half_between(-8, 8); break;
      }
      if (data == Data::tiny && generator() % 8 == 0) x = half_between(-127, -126);  // subnormal inputs
      if (data == Data::tiny && generator() % 8 == 0) x = half_between(-10, 10);
    }
  };
  fill(p.a);
  fill(p.b);
  if (data == Data::cancelling) {
    // Neighbours along K cancel but for a last bit now and then: b keeps its value, a changes its sign.
    for (size_t i = 0; i + 1 < p.a.size(); i += 2) p.a[i + 1] = uint16_t((p.a[i] ^ 0x8000) + generator() % 2);
    for (size_t i = 0; i + 1 < p.b.size(); i += 2) p.b[i + 1] = p.b[i];
  }
  for (int row = 0; row < m; row++) {
    for (int column = 0; column < n; column++) {
      float &c = p.c[size_t(row) * n + column];
      c = step_model::bf16_to_float(data == Data::tiny ? half_between(-140, -110) : half_between(-20, 20));
      if (data == Data::cancelling || generator() % 4 == 0) {
        c = float(-exact_dot(p, row, column));  // cancels the whole sum
        if (generator() % 2) c = std::nextafter(c, 0.0f);
      }
    }
  }
  return p;
}

static Problem swapped(const Problem &p) {
  Problem q{p.n, p.m, p.k, p.b, p.a, Floats(p.c.size())};
  for (int i = 0; i < p.m; i++)
    for (int j = 0; j < p.n; j++) q.c[size_t(j) * p.m + i] = p.c[size_t(i) * p.n + j];
  return q;
}

static Floats transposed(const Floats &d, int rows, int columns) {
  Floats t(d.size());
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) t[size_t(j) * rows + i] = d[size_t(i) * columns + j];
  return t;
}

// The problem with B's rows (and C's columns) moved by `by` places, cyclically.
static Problem rotated(const Problem &p, int by) {
  Problem q = p;
  for (int j = 0; j < p.n; j++) {
    int to = (j + by) % p.n;
    std::copy_n(&p.b[size_t(j) * p.k], p.k, &q.b[size_t(to) * p.k]);
    for (int i = 0; i < p.m; i++) q.c[size_t(i) * p.n + to] = p.c[size_t(i) * p.n + j];
  }
  return q;
}

static Floats rotated_back(const Floats &d, int m, int n, int by) {
  Floats out(d.size());
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) out[size_t(i) * n + j] = d[size_t(i) * n + (j + by) % n];
  return out;
}

// The problem with its K rearranged: column i of the new A and B is column from[i] of the old, or zero for -1.
static Problem rearranged(const Problem &p, const std::vector<int> &from) {
  int k = int(from.size());
  Problem q{p.m, p.n, k, Halves(size_t(p.m) * k), Halves(size_t(p.n) * k), p.c};
  for (int i = 0; i < k; i++) {
    if (from[i] < 0) continue;
    for (int r = 0; r < p.m; r++) q.a[size_t(r) * k + i] = p.a[size_t(r) * p.k + from[i]];
    for (int r = 0; r < p.n; r++) q.b[size_t(r) * k + i] = p.b[size_t(r) * p.k + from[i]];
  }
  return q;
}

// ---- host: comparison and report ---------------------------------------------------------------------------------

static size_t differences(const Floats &x, const Floats &y, bool zeros_equal = false) {
  size_t count = 0;
  for (size_t i = 0; i < x.size(); i++) {
    uint32_t a = step_model::bits(x[i]), b = step_model::bits(y[i]);
    if (a != b && !(zeros_equal && x[i] == 0 && y[i] == 0)) count++;
  }
  return count;
}

struct Report {
  std::string json;
  int failed = 0;

  void line(const char *test, const char *verdict, const std::string &text) {
    std::printf("%-4s %-4s %s\n", test, verdict, text.c_str());
    std::fflush(stdout);
    if (verdict == std::string("FAIL")) failed++;
    json += std::string(json.empty() ? "" : ",\n  ") + "{\"test\": \"" + test + "\", \"verdict\": \"" + verdict +
            "\", \"text\": \"" + text + "\"}";
  }
  void same(const char *test, const std::string &what, size_t different, size_t of) {
    line(test, different ? "FAIL" : "PASS", what + ": " + std::to_string(different) + " of " + std::to_string(of) + " differ");
  }
};

static const Data all_data[] = {Data::normal, Data::gaps, Data::cancelling, Data::tiny, Data::sparse};

static std::string named(const std::string &what, Data data) { return what + ", " + data_names[int(data)]; }

// ---- the tests ---------------------------------------------------------------------------------------------------

static void t1_instructions(Report &report) {
  for (Data data : all_data) {
    Problem p = make(data, 256, 256, 1024);
    report.same("T1", named("wgmma n=128 against mma.sync", data), differences(with_wgmma(p, 128, false), with_mma(p)), p.c.size());
  }
}

static void t2_width(Report &report, bool wgmma) {
  Problem p = make(Data::normal, 64, 256, 512);
  Floats want = with_mma(p);
  size_t different = 0, of = 0;
  for (int by = 1; by < 8; by++, of += want.size())
    different += differences(rotated_back(with_mma(rotated(p, by)), p.m, p.n, by), want);
  report.same("T2", "mma.sync, every column position", different, of);
  if (!wgmma) return;
  different = of = 0;
  std::string widths;
  for (int width = 8; width <= 256; width += 8) {
    Problem q = make(Data::normal, 64, (256 + width - 1) / width * width, p.k);
    q.a = p.a;  // the same first 256 columns, others beside them
    std::copy(p.b.begin(), p.b.end(), q.b.begin());
    for (int i = 0; i < p.m; i++) std::copy_n(&p.c[size_t(i) * p.n], p.n, &q.c[size_t(i) * q.n]);
    Floats got = with_wgmma(q, width, false), cut(want.size());
    for (int i = 0; i < p.m; i++) std::copy_n(&got[size_t(i) * q.n], p.n, &cut[size_t(i) * p.n]);
    size_t here = differences(cut, want);
    if (here) widths += " " + std::to_string(width);
    different += here, of += want.size();
  }
  report.same("T2", "wgmma n=8..256 against mma.sync" + (widths.empty() ? "" : " (widths" + widths + ")"), different, of);
  different = of = 0;
  for (int by = 1; by < 256; by += by < 8 ? 1 : 31, of += want.size())
    different += differences(rotated_back(with_wgmma(rotated(p, by), 256, false), p.m, p.n, by), want);
  report.same("T2", "wgmma n=256, columns moved", different, of);
}

static void t3_roles(Report &report, bool wgmma) {
  for (Data data : all_data) {
    Problem p = make(data, 128, 128, 512), q = swapped(p);
    report.same("T3", named("mma.sync, roles swapped", data), differences(transposed(with_mma(q), p.n, p.m), with_mma(p)), p.c.size());
    if (wgmma)
      report.same("T3", named("wgmma, roles swapped", data),
                  differences(transposed(with_wgmma(q, 64, false), p.n, p.m), with_wgmma(p, 64, false)), p.c.size());
  }
}

static void t4_zeros(Report &report, bool wgmma) {
  Problem p = make(Data::normal, 64, 64, 256);
  std::vector<int> padded, tail;
  for (int step = 0; step < p.k / 16; step++) {
    for (int zero = int(generator() % 3); zero > 0; zero--) padded.insert(padded.end(), 16, -1);
    for (int i = 0; i < 16; i++) padded.push_back(step * 16 + i);
  }
  // K = 250 as it would be padded: the last step has six zeros.
  for (int i = 0; i < 256; i++) tail.push_back(i < 250 ? i : -1);
  Problem with_zeros = rearranged(p, padded);
  report.same("T4", "mma.sync, zero steps", differences(with_mma(with_zeros), with_mma(p), true), p.c.size());
  Problem cut = rearranged(p, tail);
  std::vector<int> longer = tail;
  longer.insert(longer.end(), 48, -1);
  Problem cut_longer = rearranged(p, longer);
  report.same("T4", "mma.sync, padded K", differences(with_mma(cut_longer), with_mma(cut), true), p.c.size());
  // Zeros in A against values in B, as when a weight is padded and the activation is not.
  Problem one_sided = with_zeros;
  for (size_t i = 0; i < one_sided.b.size(); i++)
    if (padded[i % one_sided.k] < 0) one_sided.b[i] = normal_half(100);
  report.same("T4", "mma.sync, zeros in A only", differences(with_mma(one_sided), with_mma(p), true), p.c.size());
  if (!wgmma) return;
  report.same("T4", "wgmma, zero steps", differences(with_wgmma(with_zeros, 64, false), with_wgmma(p, 64, false), true), p.c.size());
  report.same("T4", "wgmma, padded K", differences(with_wgmma(cut_longer, 64, false), with_wgmma(cut, 64, false), true), p.c.size());
}

static void t5_permutation(Report &report, bool wgmma, int group) {
  for (Data data : {Data::normal, Data::gaps, Data::cancelling}) {
    Problem p = make(data, 64, 64, 256);
    std::vector<int> inside(p.k), across(p.k);
    std::iota(inside.begin(), inside.end(), 0);
    across = inside;
    for (int i = 0; i < p.k; i += group) std::shuffle(&inside[i], &inside[i] + group, generator);
    std::shuffle(across.begin(), across.end(), generator);
    std::string text = "permuted inside " + std::to_string(group);
    Floats want = with_mma(p);
    report.same("T5", named("mma.sync, " + text, data), differences(with_mma(rearranged(p, inside)), want), p.c.size());
    if (wgmma)
      report.same("T5", named("wgmma, " + text, data), differences(with_wgmma(rearranged(p, inside), 64, false), want), p.c.size());
    // The control: permuting everything must change something, or this test sees nothing.
    size_t moved = differences(with_mma(rearranged(p, across)), want);
    report.line("T5", moved ? "PASS" : "FAIL", named("control: permuted across groups", data) + ": " + std::to_string(moved) + " of " +
                std::to_string(p.c.size()) + " differ, some must");
  }
}

static void t6_registers(Report &report) {
  for (Data data : all_data) {
    Problem p = make(data, 128, 256, 512);
    report.same("T6", named("wgmma, A from registers", data), differences(with_wgmma(p, 128, true), with_wgmma(p, 128, false)), p.c.size());
  }
}

static void t7_model(Report &report, bool wgmma, step_model::Unit unit) {
  for (Data data : all_data) {
    Problem p = make(data, 1024, 1024, 16);
    Floats want = modelled(p, unit), got = with_mma(p);
    report.same("T7", named("mma.sync against the model, one step", data), differences(got, want), p.c.size());
    if (wgmma) report.same("T7", named("wgmma against the model, one step", data), differences(with_wgmma(p, 128, false), want), p.c.size());
    for (size_t i = 0, shown = 0; i < want.size() && shown < 3; i++) {
      if (step_model::bits(got[i]) == step_model::bits(want[i])) continue;
      std::printf("          element %zu: got %a, model %a, c %a\n", i, got[i], want[i], p.c[i]);
      shown++;
    }
  }
  Problem p = make(Data::normal, 256, 256, 1024);
  report.same("T7", "mma.sync against the model, a chain of 64 steps", differences(with_mma(p), modelled(p, unit)), p.c.size());
}

#ifdef HAVE_CUBLASLT_HEADER
// cuBLASLt's first choice without split-K, float32 out, C = 0. Empty when the library or an algorithm is missing.
static Floats with_cublaslt(const Problem &p, std::string &why) {
  void *library = nullptr;
  for (const char *name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"})
    if (!library) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    why = "no libcublasLt";
    return {};
  }
#define LT(name) auto name##_ = reinterpret_cast<decltype(&name)>(dlsym(library, #name)); if (!name##_) { why = "no " #name; return {}; }
  LT(cublasLtCreate) LT(cublasLtMatmulDescCreate) LT(cublasLtMatmulDescSetAttribute) LT(cublasLtMatrixLayoutCreate)
  LT(cublasLtMatmulPreferenceCreate) LT(cublasLtMatmulPreferenceSetAttribute) LT(cublasLtMatmulAlgoGetHeuristic) LT(cublasLtMatmul)
#undef LT
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t la, lb, ld;
  cublasLtMatmulPreference_t preference;
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  cublasOperation_t transpose = CUBLAS_OP_T, plain = CUBLAS_OP_N;
  uint32_t no_split = CUBLASLT_REDUCTION_SCHEME_NONE;
  // cuBLAS is column-major: Dᵀ [N,M] = B·Aᵀ, with B and A stored row by row.
  bool ok = cublasLtCreate_(&handle) == 0 && cublasLtMatmulDescCreate_(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F) == 0 &&
            cublasLtMatmulDescSetAttribute_(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose) == 0 &&
            cublasLtMatmulDescSetAttribute_(operation, CUBLASLT_MATMUL_DESC_TRANSB, &plain, sizeof plain) == 0 &&
            cublasLtMatrixLayoutCreate_(&la, CUDA_R_16BF, p.k, p.n, p.k) == 0 &&
            cublasLtMatrixLayoutCreate_(&lb, CUDA_R_16BF, p.k, p.m, p.k) == 0 &&
            cublasLtMatrixLayoutCreate_(&ld, CUDA_R_32F, p.n, p.m, p.n) == 0 && cublasLtMatmulPreferenceCreate_(&preference) == 0 &&
            cublasLtMatmulPreferenceSetAttribute_(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_split, sizeof no_split) == 0 &&
            cublasLtMatmulAlgoGetHeuristic_(handle, operation, la, lb, ld, ld, preference, 1, &found, &count) == 0 && count > 0;
  if (!ok) {
    why = "no algorithm without split-K";
    return {};
  }
  const float one = 1, zero = 0;
  return run(p, [&](float *d, const float *, const uint16_t *a, const uint16_t *b) {
    if (cublasLtMatmul_(handle, operation, &one, b, la, a, lb, &zero, d, ld, d, ld, &found.algo, nullptr, 0, nullptr) != 0) why = "cublasLtMatmul failed";
  });
}
#endif

static void t8_cublaslt(Report &report) {
#ifdef HAVE_CUBLASLT_HEADER
  for (int k : {1024, 4096}) {
    Problem p = make(Data::normal, 512, 512, k);
    std::fill(p.c.begin(), p.c.end(), 0.0f);
    std::string why;
    Floats got = with_cublaslt(p, why);
    if (!why.empty()) {
      report.line("T8", "SKIP", why);
      return;
    }
    report.line("T8", "PASS", "cuBLASLt against one chain, K=" + std::to_string(k) + ": " + std::to_string(differences(got, with_mma(p))) +
                " of " + std::to_string(p.c.size()) + " differ (for information)");
  }
#else
  report.line("T8", "SKIP", "built without cublasLt.h");
#endif
}

int main(int argc, char **argv) {
  const char *json = argc == 3 && argv[1] == std::string("--json") ? argv[2] : nullptr;
  model_only = argc == 2 && argv[1] == std::string("--model");
  if (argc != 1 && !json && !model_only) {
    std::fprintf(stderr, "usage: t1_t8 [--json FILE | --model]\n");
    return 2;
  }
  cudaDeviceProp device{};
  if (model_only) {
    std::snprintf(device.name, sizeof device.name, "no chip, the model in its place");
    device.major = 9;
  } else {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      std::fprintf(stderr, "no CUDA device: %s\n", cudaGetErrorString(cudaGetLastError()));
      return 2;
    }
    CUDA_OK(cudaGetDeviceProperties(&device, 0));
  }
  const bool wgmma = device.major == 9;
  const step_model::Unit unit = step_model::unit_of(device.major, device.minor);
  std::printf("%s, sm_%d%d\n", device.name, device.major, device.minor);
  if (device.major < 8) {
    std::fprintf(stderr, "bfloat16 tensor cores need sm_80 or later\n");
    return 2;
  }

  Report report;
  if (wgmma) t1_instructions(report); else report.line("T1", "SKIP", "this chip has no wgmma");
  t2_width(report, wgmma);
  t3_roles(report, wgmma);
  t4_zeros(report, wgmma);
  t5_permutation(report, wgmma, unit.group ? unit.group : 8);
  if (wgmma) t6_registers(report); else report.line("T6", "SKIP", "this chip has no wgmma");
  if (unit.group) t7_model(report, wgmma, unit); else report.line("T7", "SKIP", "no model is published for this chip");
  if (model_only) report.line("T8", "SKIP", "no chip"); else t8_cublaslt(report);

  if (json) {
    FILE *file = std::fopen(json, "w");
    if (!file) {
      std::perror(json);
      return 2;
    }
    std::fprintf(file, "{\"device\": \"%s\", \"capability\": \"%d.%d\", \"model\": {\"group\": %d, \"fraction\": %d}, \"tests\": [\n  %s\n]}\n",
                 device.name, device.major, device.minor, unit.group, unit.fraction, report.json.c_str());
    std::fclose(file);
  }
  return report.failed ? 1 : 0;
}
