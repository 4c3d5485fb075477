#include "comm/job.hpp"

namespace awex {

const char* role_name(Role role) {
  switch (role) {
    case Role::kTrainer:
      return "trainer";
    case Role::kInference:
      return "inference";
  }
  return "unknown";
}

std::string Peer::describe() const {
  return fmt::format("rank {} ({}, host {}, gpu {})", rank, role_name(role), host, device.index);
}

}  // namespace awex
