// A CUDA driver without a device, for tests: device memory is host memory, work runs at once, the two kernels of
// kernels.ptx are known by name. FAKE_INIT is what cuInit returns; FAKE_LOG gets the calls in order, repeats once.
#include <cuda.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static CUresult fault;  // once set, every call that waits returns it
static const char *last_call = "";

static void call(const char *name) {
  const char *file = getenv("FAKE_LOG");
  if (!file || strcmp(name, last_call) == 0) return;
  last_call = name;
  FILE *log = fopen(file, "a");
  if (!log) abort();
  fprintf(log, "%s\n", name);
  fclose(log);
}
#define CALL call(__func__)

CUresult cuInit(unsigned int flags) {
  CALL;
  (void)flags;
  const char *code = getenv("FAKE_INIT");
  return code ? atoi(code) : CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name) { return *name = error == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_FAKE", CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char **text) { return (void)error, *text = "said by the fake", CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { CALL; return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { CALL; return *device = ordinal, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int bytes, CUdevice device) { return (void)device, snprintf(name, bytes, "Fake GPU"), CUDA_SUCCESS; }

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  (void)device;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
    default: *value = 1000 + attribute;
  }
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { CALL; return (void)device, *context = (CUcontext)&fault, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { CALL; return context == (CUcontext)&fault ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CUresult cuCtxSynchronize(void) { return fault; }
CUresult cuMemGetInfo(size_t *free_bytes, size_t *total) { return *free_bytes = 12 << 20, *total = 16 << 20, CUDA_SUCCESS; }

// Modules and functions are their own names.
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count, CUjit_option *options, void **values) {
  CALL;
  if (strstr(image, "wrong.f32")) {
    if (count != 2 || options[0] != CU_JIT_ERROR_LOG_BUFFER || options[1] != CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    snprintf(values[0], (size_t)values[1], "fake ptxas, line 4: wrong");
    return CUDA_ERROR_INVALID_PTX;
  }
  if (!strstr(image, ".visible .entry add(")) return CUDA_ERROR_INVALID_IMAGE;
  *module = (CUmodule) "module";
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  CALL;
  (void)module;
  *function = (CUfunction)(strcmp(name, "add") == 0 ? "add" : "saxpy");
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  CALL;
  return function && attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && value <= 232448 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemAlloc(CUdeviceptr *address, size_t bytes) { return *address = (CUdeviceptr)(uintptr_t)malloc(bytes), CUDA_SUCCESS; }
CUresult cuMemFree(CUdeviceptr address) { return free((void *)(uintptr_t)address), CUDA_SUCCESS; }
CUresult cuMemHostAlloc(void **memory, size_t bytes, unsigned int flags) { CALL; return (void)flags, *memory = malloc(bytes), CUDA_SUCCESS; }
CUresult cuMemFreeHost(void *memory) { CALL; return free(memory), CUDA_SUCCESS; }
static CUresult copy(void *to, const void *from, size_t bytes) { return memmove(to, from, bytes), fault; }
CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t bytes) { CALL; return copy((void *)(uintptr_t)to, from, bytes); }
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) { CALL; return copy(to, (void *)(uintptr_t)from, bytes); }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream s) { return (void)s, copy((void *)(uintptr_t)to, from, bytes); }
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream s) { return (void)s, copy(to, (void *)(uintptr_t)from, bytes); }
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream s) {
  CALL;
  return (void)s, copy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
}
CUresult cuMemsetD32(CUdeviceptr to, unsigned int value, size_t count) {
  CALL;
  for (size_t i = 0; i < count; i++) ((unsigned int *)(uintptr_t)to)[i] = value;
  return CUDA_SUCCESS;
}

// A launch, with its parameters packed as the kernel lays them out.
typedef struct {
  CUfunction function;
  unsigned int threads;
  char params[32];
} launch;

static launch captured[1024];
static int captured_count, capturing;

static CUresult run(const launch *l) {
  float *p0 = *(float **)l->params, *p1 = *(float **)(l->params + 8);
  if ((uintptr_t)p0 == 16) return fault = CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_SUCCESS;
  if (strcmp((char *)l->function, "add") == 0) {
    float *p2 = *(float **)(l->params + 16);
    unsigned int n = *(unsigned int *)(l->params + 24);
    for (unsigned int i = 0; i < n && i < l->threads; i++) p0[i] = p1[i] + p2[i];
  } else {
    float scale = *(float *)(l->params + 16);
    unsigned int n = *(unsigned int *)(l->params + 20);
    for (unsigned int i = 0; i < n && i < l->threads; i++) p0[i] = fmaf(scale, p1[i], p0[i]);
  }
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared, CUstream stream, void **params, void **extra) {
  CALL;
  (void)stream;
  if ((size_t)bx * by * bz > 1024 || shared > 232448) return CUDA_ERROR_INVALID_VALUE;
  launch l = {function, gx * gy * gz * bx, {0}};
  if (params && !extra) {
    int add = strcmp((char *)function, "add") == 0;
    memcpy(l.params, params[0], 8);
    memcpy(l.params + 8, params[1], 8);
    memcpy(l.params + 16, params[2], add ? 8 : 4);
    memcpy(l.params + (add ? 24 : 20), params[3], 4);
  } else {
    if (params || extra[0] != CU_LAUNCH_PARAM_BUFFER_POINTER || extra[2] != CU_LAUNCH_PARAM_BUFFER_SIZE || extra[4] != CU_LAUNCH_PARAM_END) return CUDA_ERROR_INVALID_VALUE;
    if (*(size_t *)extra[3] != 24) return CUDA_ERROR_INVALID_VALUE;  // saxpy's, the only one launched so
    memcpy(l.params, extra[1], 24);
  }
  if (!capturing) return run(&l);
  captured[captured_count++] = l;
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) { CALL; return (void)flags, *stream = (CUstream)&fault, CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream stream) { return (void)stream, fault; }
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) { CALL; return (void)stream, captured_count = 0, capturing = 1, mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) { CALL; return (void)stream, capturing = 0, *graph = (CUgraph)captured, CUDA_SUCCESS; }
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) { CALL; return (void)flags, *exec = (CUgraphExec)graph, CUDA_SUCCESS; }
CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) { CALL; return (void)exec, (void)stream, CUDA_SUCCESS; }
CUresult cuGraphDestroy(CUgraph graph) { CALL; return (void)graph, CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec exec) { CALL; return (void)exec, CUDA_SUCCESS; }
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
  CALL;
  (void)stream;
  for (int i = 0; i < captured_count; i++) run((launch *)exec + i);
  return CUDA_SUCCESS;
}

// An event is the time at which it was recorded.
CUresult cuEventCreate(CUevent *event, unsigned int flags) { return (void)flags, *event = calloc(1, sizeof(struct timespec)), CUDA_SUCCESS; }
CUresult cuEventDestroy(CUevent event) { return free(event), CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent event, CUstream stream) { return (void)stream, clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event), CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent event) { return (void)event, fault; }
CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end) {
  const struct timespec *a = (const struct timespec *)start, *b = (const struct timespec *)end;
  *ms = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) / 1e6f;
  return CUDA_SUCCESS;
}
