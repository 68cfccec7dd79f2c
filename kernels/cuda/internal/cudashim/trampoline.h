#ifndef CUDASHIM_TRAMPOLINE_H
#define CUDASHIM_TRAMPOLINE_H

// What the generated table and shim.c share. Hidden: nothing here is for other libraries of the process.
#pragma GCC visibility push(hidden)
extern const int cudashim_count;
extern const char *const cudashim_names[];
extern void *cudashim_slots[];
int cudashim_no_device(void);
#pragma GCC visibility pop

// A function of the driver's own name that jumps to what its slot holds, with all arguments where they are.
#if defined(__x86_64__)
#define TRAMPOLINE_JUMP(index) "endbr64\n jmp *cudashim_slots+8*" #index "(%rip)\n"
#elif defined(__aarch64__)
#define TRAMPOLINE_JUMP(index)                                                                            \
  "hint #34\n adrp x16, cudashim_slots+8*" #index "\n ldr x16, [x16, #:lo12:cudashim_slots+8*" #index "]\n" \
  " br x16\n"
#else
#error "cudashim knows x86-64 and arm64"
#endif

#define TRAMPOLINE(index, name)                                                                                \
  __asm__(".text\n.balign 16\n.globl " #name "\n.hidden " #name "\n.type " #name ", %function\n" #name ":\n "  \
          TRAMPOLINE_JUMP(index) ".size " #name ", .-" #name "\n");

#endif
