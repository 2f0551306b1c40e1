// What the compiler takes from its own system's C and C++ libraries and GLIBC 2.28 with GCC 8's libstdc++ do not have
// (manylinux_2_28). torch's libraries export some of it, and the linker would take it from there: it is no part of their interface.

#include <new>
#include <sstream>

extern "C" {
extern __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0; // never: reference counts of shared pointers stay atomic
}

namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
// Their constructors without arguments, and str().
template class basic_stringbuf<char>;
template class basic_ostringstream<char>;
template class basic_stringstream<char>;
} // namespace std
