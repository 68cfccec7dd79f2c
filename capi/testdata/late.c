/* Loads the library late: after other libraries and signal handlers, from a thread that is not the first; twice, with an unloading between. */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tinker.h"

static volatile sig_atomic_t mine;
static void on_usr1(int s) {
  (void)s;
  mine++;
}

typedef tinker_status (*open_fn)(const tinker_engine_options *, tinker_engine **);
typedef tinker_status (*handle_fn)(tinker_engine *);
typedef const char *(*text_fn)(void);

static const char *path;

static void *use(void *unused) {
  int i;
  (void)unused;
  for (i = 0; i < 2; i++) {
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    open_fn open_engine;
    handle_fn free_engine;
    text_fn version;
    tinker_engine *engine = NULL;
    if (!lib) return fprintf(stderr, "%s\n", dlerror()), (void *)path;
    *(void **)&open_engine = dlsym(lib, "tinker_engine_open");
    *(void **)&free_engine = dlsym(lib, "tinker_engine_free");
    *(void **)&version = dlsym(lib, "tinker_version");
    if (!open_engine || !free_engine || !version || strlen(version()) < 5) return (void *)path;
    if (open_engine(NULL, &engine) != TINKER_OK || free_engine(engine) != TINKER_OK) return (void *)path;
    dlclose(lib); /* does nothing */
  }
  return NULL;
}

int main(int argc, char **argv) {
  static const char *const others[] = {"libm.so.6", "libstdc++.so.6", "libresolv.so.2", "libz.so.1", "libgomp.so.1"};
  struct sigaction action;
  pthread_t t;
  void *failed = NULL;
  size_t i;
  if (argc != 2) return 2;
  path = argv[1];
  memset(&action, 0, sizeof action);
  action.sa_handler = on_usr1;
  sigaction(SIGUSR1, &action, NULL);
  for (i = 0; i < sizeof others / sizeof others[0]; i++) dlopen(others[i], RTLD_NOW | RTLD_GLOBAL); /* those that are there */
  if (pthread_create(&t, NULL, use, NULL) || pthread_join(t, &failed) || failed) return 1;
  raise(SIGUSR1); /* the program's own handler is still there */
  return mine == 1 ? 0 : 1;
}
