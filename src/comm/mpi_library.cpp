#include "comm/mpi_library.hpp"

#include <dlfcn.h>
#include <mpi.h>

#include <array>
#include <string_view>

namespace awex {

std::string mpi_name() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  if (MPI_Get_library_version(text.data(), &length) != MPI_SUCCESS) return "another MPI";
  const std::string whole(text.data(), static_cast<size_t>(length));
  return whole.substr(0, whole.find_first_of(",\n"));
}

std::string mpi_thread_level() {
  int is_initialised = 0;
  int level = 0;
  MPI_Initialized(&is_initialised);
  if (is_initialised == 0 || MPI_Query_thread(&level) != MPI_SUCCESS) return {};
  if (level == MPI_THREAD_SINGLE) return "MPI_THREAD_SINGLE";
  if (level == MPI_THREAD_FUNNELED) return "MPI_THREAD_FUNNELED";
  if (level == MPI_THREAD_SERIALIZED) return "MPI_THREAD_SERIALIZED";
  return "MPI_THREAD_MULTIPLE";
}

bool mpi_speaks_pmi() {
  if (mpi_name().rfind("Open MPI", 0) != 0) return true;
  Dl_info info{};
  const auto function = reinterpret_cast<void*>(&MPI_Init);
  if (::dladdr(function, &info) == 0 || info.dli_fname == nullptr) return false;
  return has_pmi_component(info.dli_fname);
}

bool has_pmi_component(const std::filesystem::path& library) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto folder = fs::canonical(library, error).parent_path();
  if (error) return false;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    // "openmpi" by itself, "openmpi3" in Debian, where "openmpi/lib/openmpi3" is beside the links.
    if (entry->path().filename().string().rfind("openmpi", 0) != 0) continue;
    for (const char* part : {"", "lib/openmpi3"}) {
      for (const char* name : {"mca_pmix_s1.so", "mca_pmix_s2.so"}) {
        std::error_code missing;
        if (fs::exists(entry->path() / part / name, missing)) return true;
      }
    }
  }
  return false;
}

}  // namespace awex
