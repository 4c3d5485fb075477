#pragma once

#include <cstdint>
#include <memory>

#include "comm/job.hpp"
#include "model/weights.hpp"

namespace awex {

/// Checks that all ranks read the same checkpoint (model/checkpoint_identity.hpp): ranks that read
/// different bytes of the same shapes would make a model that nobody has trained, and every digest
/// would agree. `source` is what was opened of `model`. Returns a fingerprint of the files; that of
/// a preset is always the same. Throws an agreed request error that names two ranks, the file and
/// what differs. Collective.
uint64_t check_same_files(Job& job, const ModelName& model,
                          const std::shared_ptr<const WeightSource>& source);

}  // namespace awex
