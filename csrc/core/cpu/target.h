// The instruction set that this file is compiled for: setup.py sets CAAN_ISA and the flags that go with it.
#pragma once

// CAAN_VECTOR_BYTES and CAAN_REGISTERS, the vector registers that there are, may be given to try others.
#define CAAN_ISA_generic 0
#define CAAN_ISA_avx2 2
#define CAAN_ISA_avx512 3
#define CAAN_ISA_NUMBER_OF(isa) CAAN_ISA_##isa
#define CAAN_ISA_NUMBER(isa) CAAN_ISA_NUMBER_OF(isa)

#define CAAN_NAMESPACE CAAN_ISA

#ifndef CAAN_VECTOR_BYTES
#if CAAN_ISA_NUMBER(CAAN_ISA) == CAAN_ISA_avx512
#define CAAN_VECTOR_BYTES 64
#elif CAAN_ISA_NUMBER(CAAN_ISA) == CAAN_ISA_avx2
#define CAAN_VECTOR_BYTES 32
#else
// Vectors in plain C++, which every compiler turns into what its target has (SSE2, NEON).
#define CAAN_VECTOR_BYTES 16
#endif
#endif

#ifndef CAAN_REGISTERS
#if CAAN_ISA_NUMBER(CAAN_ISA) == CAAN_ISA_avx512 || defined(__aarch64__)
#define CAAN_REGISTERS 32
#else
#define CAAN_REGISTERS 16
#endif
#endif
