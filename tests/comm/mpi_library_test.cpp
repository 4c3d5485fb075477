#include "comm/mpi_library.hpp"

#include <doctest/doctest.h>

#include <fstream>

#include "support/temporary_directory.hpp"

TEST_CASE("a component for PMI is found beside Open MPI's library, also through a link") {
  for (const char* folder : {"openmpi", "openmpi3", "openmpi/lib/openmpi3"}) {
    CAPTURE(folder);
    const awex::test::TemporaryDirectory root;
    const auto components = root.path() / "lib" / folder;
    std::filesystem::create_directories(components);
    std::ofstream(root.path() / "lib" / "libmpi.so.40.1") << "";
    std::filesystem::create_symlink(root.path() / "lib" / "libmpi.so.40.1",
                                    root.path() / "link.so");
    std::ofstream(components / "mca_pmix_ext3x.so") << "";
    CHECK_FALSE(awex::has_pmi_component(root.path() / "link.so"));
    std::ofstream(components / "mca_pmix_s2.so") << "";
    CHECK(awex::has_pmi_component(root.path() / "link.so"));
  }
  CHECK_FALSE(awex::has_pmi_component("/nonexistent/libmpi.so"));
}

TEST_CASE("MPI's name is known before its start") {
  CHECK(awex::mpi_name().find_first_of(",\n") == std::string::npos);
  CHECK_FALSE(awex::mpi_name().empty());
}
