#ifndef CUDASHIM_SHIM_H
#define CUDASHIM_SHIM_H

#include <stddef.h>

// Opens the driver library, initialises it and fills the table. 0 on success; -1 where the library cannot be
// opened or is no driver; else the code that its cuInit returned. text gets the library's path on success and
// the reason otherwise. missing has cudashim_symbols() bytes, 1 for each function that the library lacks.
int cudashim_load(const char *library, char *text, size_t bytes, unsigned char *missing);

int cudashim_symbols(void);
const char *cudashim_symbol(int index);

#endif
