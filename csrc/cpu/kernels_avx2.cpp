#define CAAN_NAMESPACE avx2
#define CAAN_ISA_NAME "avx2"
#define CAAN_VECTOR_BYTES 32
#define CAAN_REGISTERS 16
#include "kernels.inl"
