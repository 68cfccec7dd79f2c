#ifndef CUDRV_LAUNCH_H
#define CUDRV_LAUNCH_H

#include <cuda.h>

// One launch, as Go's Launch lays it out: no pointers to Go memory, so that an array of them crosses as it is.
typedef struct {
  uint64_t function;
  uint32_t grid[3], block[3];
  uint32_t shared;
  uint32_t offset, bytes;  // of its parameters in the block that goes with the launches
} cudrv_launch;

// Issues the launches in order and stops at the first that fails. issued gets the number of those that did not.
CUresult cudrv_issue(const cudrv_launch *launches, int count, const void *params, CUstream stream, int *issued);

#endif
