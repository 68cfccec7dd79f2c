//go:build cuda && linux && cgo

#include "launch.h"

CUresult cudrv_issue(const cudrv_launch *launches, int count, const void *params, CUstream stream, int *issued) {
  for (int i = 0; i < count; i++) {
    const cudrv_launch *l = &launches[i];
    size_t bytes = l->bytes;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, (void *)((const char *)params + l->offset),
                     CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes, CU_LAUNCH_PARAM_END};
    CUresult code = cuLaunchKernel((CUfunction)(uintptr_t)l->function, l->grid[0], l->grid[1], l->grid[2], l->block[0],
                                   l->block[1], l->block[2], l->shared, stream, NULL, extra);
    if (code != CUDA_SUCCESS) {
      *issued = i;
      return code;
    }
  }
  *issued = count;
  return CUDA_SUCCESS;
}
