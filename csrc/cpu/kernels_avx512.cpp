#define CAAN_NAMESPACE avx512
#define CAAN_ISA_NAME "avx512"
#define CAAN_VECTOR_BYTES 64
#define CAAN_REGISTERS 32
#include "kernels.inl"
