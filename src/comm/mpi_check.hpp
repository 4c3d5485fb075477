#pragma once

#include <mpi.h>

#include <string>

#include "base/error.hpp"

namespace awex {

/// "MPI_ERR_COUNT: invalid count argument (2)": MPI's own text for a return code.
[[nodiscard]] std::string describe_mpi(int code);

}  // namespace awex

/// Checks the return code of an MPI call, as AWEX_CHECK does for the other libraries: the further
/// arguments are a fmt format and its values that complete the sentence "cannot …".
#define AWEX_MPI(call, ...)                                        \
  do {                                                             \
    const int awex_code = (call);                                  \
    if (awex_code != MPI_SUCCESS) {                                \
      ::awex::throw_failed_call(::fmt::format(__VA_ARGS__), #call, \
                                ::awex::describe_mpi(awex_code));  \
    }                                                              \
  } while (false)
