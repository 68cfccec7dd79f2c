//go:build cuda && linux && cgo

#define _GNU_SOURCE
#include "shim.h"

#include <dlfcn.h>
#include <stdio.h>

#include "trampoline.h"

enum { NO_DEVICE = 100, NOT_FOUND = 500 };

// What slots hold before the driver is loaded, and for functions that it lacks. The arguments stay unread.
int cudashim_no_device(void) { return NO_DEVICE; }
static int not_found(void) { return NOT_FOUND; }

// The cuInit that the program is linked against. The driver's own is called by cudashim_load.
__attribute__((visibility("hidden"))) int cuInit(unsigned int flags) {
  (void)flags;
  return 0;
}

int cudashim_symbols(void) { return cudashim_count; }

const char *cudashim_symbol(int index) { return cudashim_names[index]; }

static const char *describe(void *library, const char *function, int code) {
  int (*describe_code)(int, const char **) = (int (*)(int, const char **))dlsym(library, function);
  const char *text = NULL;
  if (!describe_code || describe_code(code, &text) != 0 || !text) return "?";
  return text;
}

int cudashim_load(const char *name, char *text, size_t bytes, unsigned char *missing) {
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(text, bytes, "%s", dlerror());
    return -1;
  }
  int (*init)(unsigned int) = (int (*)(unsigned int))dlsym(library, "cuInit");
  if (!init) {
    snprintf(text, bytes, "%s has no cuInit: it is not the CUDA driver", name);
    dlclose(library);
    return -1;
  }
  int code = init(0);
  if (code != 0) {
    // The library stays open: a driver that has begun to initialise may have left threads and exit handlers.
    snprintf(text, bytes, "cuInit of %s returned %d (%s: %s)", name, code, describe(library, "cuGetErrorName", code),
             describe(library, "cuGetErrorString", code));
    return code;
  }
  for (int i = 0; i < cudashim_count; i++) {
    void *function = dlsym(library, cudashim_names[i]);
    missing[i] = function == NULL;
    cudashim_slots[i] = function ? function : (void *)not_found;
  }
  Dl_info info;
  snprintf(text, bytes, "%s", dladdr((void *)init, &info) && info.dli_fname ? info.dli_fname : name);
  return 0;
}
