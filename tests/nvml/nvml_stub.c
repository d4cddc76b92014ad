/* A stand-in for NVIDIA's management library. It replays a profile: the text file that NVML_STUB_PROFILE names, one `key value` a
   line, read anew at each call so that a test can change it while a node runs. Without a profile there is no driver.

     cards N                 how many there are
     C.name, C.uuid, C.bus_id
     C.memory TOTAL FREE USED          MiB (C.memory.v1: only the old form of the call)
     C.utilization, C.temperature, C.power, C.power_limit, C.energy, C.sm_clock, C.sm_clock_max, C.memory_clock
     C.throttle BITS         C.ecc CORRECTED UNCORRECTED     C.processes N     C.xid CODE...
     C.mig N                 places for slices; C.mig.P.name, C.mig.P.uuid, C.mig.P.memory, ... where there is one

   A key that is missing is NOT_SUPPORTED; `error CODE` as a value makes the call fail with that code. Answers follow the NVML
   API reference; the profiles hold figures of no real card and say so. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory2_t;
typedef struct { unsigned gpu, memory; } rates_t;
typedef struct { void *device; u64 type, data; unsigned gi, ci; } event_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct { char key[24]; int events; } device_t;
enum { OK, UNINITIALIZED, INVALID, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 6, SMALL, NO_DRIVER = 9, TIMEOUT, UNKNOWN = 999 };

static device_t places[64];
static int used_places;

/* 0 and the value, or a code. */
static int find(const char *device, const char *name, char *out, size_t size) {
  const char *path = getenv("NVML_STUB_PROFILE");
  FILE *file = path ? fopen(path, "r") : NULL;
  char key[64], line[256];
  int code = NOT_SUPPORTED;
  if (!file) return NO_DRIVER;
  snprintf(key, sizeof key, "%s%s%s ", device, *device ? "." : "", name);
  while (code == NOT_SUPPORTED && fgets(line, sizeof line, file))
    if (!strncmp(line, key, strlen(key))) {
      line[strcspn(line, "\n")] = 0;
      snprintf(out, size, "%s", line + strlen(key));
      code = OK;
      sscanf(out, "error %d", &code);
    }
  fclose(file);
  return code;
}
static int number(void *device, const char *name, unsigned *out) {
  char text[128];
  int code = find(((device_t *)device)->key, name, text, sizeof text);
  if (!code) *out = (unsigned)strtoul(text, NULL, 0);
  return code;
}
static int wide(void *device, const char *name, int which, u64 *out) {
  char text[128], *at = text;
  int code = find(((device_t *)device)->key, name, text, sizeof text);
  if (code) return code;
  for (int n = 0; n <= which; n++) *out = strtoull(at, &at, 0);
  return OK;
}
static void *place(const char *key) {
  for (int n = 0; n < used_places; n++) if (!strcmp(places[n].key, key)) return &places[n];
  snprintf(places[used_places].key, sizeof places[0].key, "%s", key);
  return &places[used_places++];
}
static int is_slice(void *device) { return strstr(((device_t *)device)->key, "mig") != NULL; }
static int say(void *device, const char *name, char *out, unsigned size) {
  return find(((device_t *)device)->key, name, out, size);
}

int nvmlInitWithFlags(unsigned flags) { char text[64]; (void)flags; return find("", "cards", text, sizeof text); }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { static char text[32]; snprintf(text, sizeof text, "stub error %d", code); return text; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { return find("", "driver", out, size); }
int nvmlDeviceGetCount_v2(unsigned *count) {
  char text[64];
  int code = find("", "cards", text, sizeof text);
  if (!code) *count = (unsigned)atoi(text);
  return code;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  unsigned count = 0;
  char key[24];
  int code = nvmlDeviceGetCount_v2(&count);
  if (code) return code;
  if (index >= count) return NOT_FOUND;
  snprintf(key, sizeof key, "%u", index);
  *device = place(key);
  return OK;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
  unsigned many = 0;
  if (is_slice(device)) return NOT_SUPPORTED;
  *current = *pending = number(device, "mig", &many) == OK;
  return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { return number(device, "mig", count); }
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **slice) {
  char key[24], text[128];
  snprintf(key, sizeof key, "%s.mig.%u", ((device_t *)device)->key, index);
  if (find(key, "uuid", text, sizeof text)) return NOT_FOUND;
  *slice = place(key);
  return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  unsigned count = 0, many;
  char text[128];
  int code = nvmlDeviceGetCount_v2(&count);
  if (code) return code;
  for (unsigned card = 0; card < count; card++) {
    nvmlDeviceGetHandleByIndex_v2(card, device);
    if (!say(*device, "uuid", text, sizeof text) && !strcmp(text, uuid)) return OK;
    void *whole = *device;
    if (number(whole, "mig", &many)) continue;
    for (unsigned n = 0; n < many; n++)
      if (!nvmlDeviceGetMigDeviceHandleByIndex(whole, n, device) && !say(*device, "uuid", text, sizeof text) &&
          !strcmp(text, uuid))
        return OK;
  }
  return NOT_FOUND;
}
int nvmlDeviceGetName(void *device, char *out, unsigned size) { return say(device, "name", out, size); }
int nvmlDeviceGetUUID(void *device, char *out, unsigned size) { return say(device, "uuid", out, size); }
int nvmlDeviceGetPciInfo_v3(void *device, pci_t *out) { return say(device, "bus_id", out->bus_id, sizeof out->bus_id); }

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
  const char *name = "memory";
  if (wide(device, name, 0, &memory->total) == NOT_SUPPORTED) name = "memory.v1";
  int code = wide(device, name, 0, &memory->total) | wide(device, name, 1, &memory->free) | wide(device, name, 2, &memory->used);
  memory->total <<= 20, memory->free <<= 20, memory->used <<= 20;
  return code;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, memory2_t *memory) {
  int code = wide(device, "memory", 0, &memory->total) | wide(device, "memory", 1, &memory->free) |
             wide(device, "memory", 2, &memory->used);
  if (code) return code;
  memory->total <<= 20, memory->free <<= 20, memory->used <<= 20;
  memory->reserved = memory->total - memory->free - memory->used;
  return OK;
}
int nvmlDeviceGetUtilizationRates(void *device, rates_t *rates) {
  rates->memory = 0;
  return number(device, "utilization", &rates->gpu);
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) { return number(device, "power", mw); }
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw) { return number(device, "power_limit", mw); }
int nvmlDeviceGetTotalEnergyConsumption(void *device, u64 *mj) { return wide(device, "energy", 0, mj); }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
  return sensor ? INVALID : number(device, "temperature", celsius);
}
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *mhz) {
  return number(device, kind == 1 ? "sm_clock" : kind == 2 ? "memory_clock" : "graphics_clock", mhz);
}
int nvmlDeviceGetMaxClockInfo(void *device, int kind, unsigned *mhz) {
  return kind == 1 ? number(device, "sm_clock_max", mhz) : NOT_SUPPORTED;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, u64 *bits) { return wide(device, "throttle", 0, bits); }
int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, u64 *count) {
  return counter == 1 ? wide(device, "ecc", kind, count) : INVALID;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, void *infos) {
  unsigned many = 0;
  int code = number(device, "processes", &many);
  if (code || !many) { *count = 0; return code; }
  if (!infos) { *count = many; return SMALL; }
  memset(infos, 0, many * 24);
  *count = many;
  return OK;
}

/* An event set is the device that it watches. */
int nvmlEventSetCreate(void **set) { *set = calloc(1, sizeof(void *)); return OK; }
int nvmlEventSetFree(void *set) { free(set); return OK; }
int nvmlDeviceRegisterEvents(void *device, u64 kinds, void *set) {
  char text[128];
  if (kinds != 8) return INVALID;
  int code = say(device, "xid", text, sizeof text);
  if (!code) *(void **)set = device;
  return code;
}
int nvmlEventSetWait_v2(void *set, event_t *event, unsigned ms) {
  device_t *device = *(void **)set;
  char text[128], *at = text, *end;
  (void)ms;
  int code = say(device, "xid", text, sizeof text);
  if (code) return code;
  for (int n = 0; n < device->events; n++) strtoull(at, &at, 0);
  event->data = strtoull(at, &end, 0);
  if (end == at) return TIMEOUT;
  event->device = device, event->type = 8, device->events++;
  return OK;
}
