/* A stand-in for NVIDIA's management library: one card, whole or cut into two MIG slices (NVML_STUB_MIG=1), or none
   (NVML_STUB_NONE=1). Answers as documented in the NVML API reference, with figures that no real card has. */
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;
static int card, slice0, slice1;
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

static int cut(void) { return getenv("NVML_STUB_MIG") != NULL; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return getenv("NVML_STUB_NONE") ? 9 : OK; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "stub"; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &card; return index == 0 ? OK : NOT_FOUND; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  *device = !strcmp(uuid, "GPU-1111") ? &card : !strcmp(uuid, "MIG-a") ? &slice0 : !strcmp(uuid, "MIG-b") ? &slice1 : 0;
  return *device ? OK : NOT_FOUND;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
  *current = *pending = device == &card && cut(); return device == &card ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { (void)device; *count = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **slice) {
  (void)device;
  if (index == 2) { *slice = &slice0; return OK; }
  if (index == 3) { *slice = &slice1; return OK; }
  return NOT_FOUND;
}
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
  unsigned long long mib = 1ull << 20;
  memory->total = device == &card ? 8192 * mib : device == &slice0 ? 2048 * mib : 1024 * mib;
  memory->free = device == &card ? 6144 * mib : device == &slice0 ? 1984 * mib : 960 * mib;
  memory->used = memory->total - memory->free;
  return OK;
}
static int say(char *out, unsigned size, const char *text) { strncpy(out, text, size); return OK; }
int nvmlDeviceGetName(void *device, char *out, unsigned size) {
  return say(out, size, device == &card ? "Stub Card" : "Stub Card MIG");
}
int nvmlDeviceGetUUID(void *device, char *out, unsigned size) {
  return say(out, size, device == &card ? "GPU-1111" : device == &slice0 ? "MIG-a" : "MIG-b");
}
