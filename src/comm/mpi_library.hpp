#pragma once

#include <filesystem>
#include <string>

namespace awex {

/// The MPI that this program runs with, "Open MPI v4.1.4". May be asked before MPI is initialised.
[[nodiscard]] std::string mpi_name();

/// What MPI lets threads do, "MPI_THREAD_FUNNELED", once it is initialised; empty before.
[[nodiscard]] std::string mpi_thread_level();

/// Whether this MPI connects processes by PMI, which srun --mpi=pmi2 and MPICH's mpirun offer: any
/// but Open MPI, and Open MPI where it has such a component. May be asked before MPI is
/// initialised.
[[nodiscard]] bool mpi_speaks_pmi();

/// Whether Open MPI, whose library is this file, has a component for PMI-1 or PMI-2: since version
/// 4 they are files in a folder beside the library; version 5 has none.
[[nodiscard]] bool has_pmi_component(const std::filesystem::path& library);

}  // namespace awex
