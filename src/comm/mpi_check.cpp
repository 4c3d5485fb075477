#include "comm/mpi_check.hpp"

#include <array>

namespace awex {

std::string describe_mpi(int code) {
  std::array<char, MPI_MAX_ERROR_STRING + 1> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) {
    return fmt::format("unknown MPI error ({})", code);
  }
  return fmt::format("{} ({})", text.data(), code);
}

}  // namespace awex
