// How pairs are scored, for kernels of every device.
#pragma once

namespace caan::context_attention {

struct Options {
  bool cosine; // score by the cosine of the pooled vectors, not by their inner product
  bool inter;  // keep the term of the other side in the context
  bool intra;  // keep the term of the own side in the context

  // From core/arguments.h's Arguments, in the order of the record in Python. Braces take them from left to right.
  template <class Arguments>
  static Options from(Arguments& in) {
    return {in.template next<bool>(), in.template next<bool>(), in.template next<bool>()};
  }
};

} // namespace caan::context_attention
