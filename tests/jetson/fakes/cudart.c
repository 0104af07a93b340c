/* A libcudart whose device is host memory, for the tests of cudart.py. Signatures: NVIDIA's cuda_runtime_api.h.
   FAKE_CUDA_FAIL=function:code makes that function fail; FAKE_CUDA_GPUS=n sets how many GPUs there are;
   FAKE_CUDA_SMS=n how many multiprocessors. */
#include <stdlib.h>
#include <string.h>

#define LIMIT ((size_t)1 << 30)

struct cudaDeviceProp { char name[256]; char rest[752]; };

static int fail(const char *name) {
    const char *wanted = getenv("FAKE_CUDA_FAIL");
    size_t n = strlen(name);
    if (wanted && strncmp(wanted, name, n) == 0 && wanted[n] == ':') return atoi(wanted + n + 1);
    return 0;
}

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

const char *cudaGetErrorString(int code) {
    if (code == 2) return "out of memory";
    if (code == 100) return "no CUDA-capable device is detected";
    if (code == 700) return "an illegal memory access was encountered";
    return "unrecognized error code";
}

int cudaGetDeviceCount(int *count) {
    *count = number("FAKE_CUDA_GPUS", 1);
    return fail("cudaGetDeviceCount");
}

int cudaSetDevice(int device) { return fail("cudaSetDevice"); }

int cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0x5a, sizeof *properties);
    strcpy(properties->name, "Fake Orin");
    return fail("cudaGetDeviceProperties");
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 16: *value = number("FAKE_CUDA_SMS", 8); break;
    case 18: *value = 1; break; /* integrated */
    case 19: *value = 1; break; /* can map host memory */
    case 75: *value = 8; break;
    case 76: *value = 7; break;
    default: return 1;
    }
    return fail("cudaDeviceGetAttribute");
}

int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    if (flags != 1) return 1; /* cudaStreamNonBlocking is what is asked for */
    *stream = malloc(16);
    return fail("cudaStreamCreateWithFlags");
}

int cudaStreamSynchronize(void *stream) { return stream ? fail("cudaStreamSynchronize") : 400; }

/* Not cudaMalloc itself: in a process that has loaded a real libcudart, the call would go there. */
static int allocate(void **pointer, size_t size) {
    return size > LIMIT || posix_memalign(pointer, 256, size ? size : 1) ? 2 : 0;
}

int cudaMalloc(void **pointer, size_t size) { return allocate(pointer, size) ? 2 : fail("cudaMalloc"); }

int cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    if (flags & ~2u) return 1;
    return allocate(pointer, size) ? 2 : fail("cudaHostAlloc");
}

int cudaHostGetDevicePointer(void **device, void *host, unsigned flags) {
    *device = host;
    return flags ? 1 : fail("cudaHostGetDevicePointer");
}

int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
    if (!stream || (kind != 1 && kind != 2)) return 21;
    memcpy(to, from, n);
    return fail("cudaMemcpyAsync");
}
