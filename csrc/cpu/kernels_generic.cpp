// The fallback: 16-byte vectors in plain C++, which every compiler turns into what its target has (SSE2, NEON).
#define CAAN_NAMESPACE generic
#define CAAN_ISA_NAME "generic"
#ifndef CAAN_VECTOR_BYTES
#define CAAN_VECTOR_BYTES 16
#endif
#ifndef CAAN_REGISTERS
#if defined(__aarch64__)
#define CAAN_REGISTERS 32
#else
#define CAAN_REGISTERS 16
#endif
#endif
#include "kernels.inl"
