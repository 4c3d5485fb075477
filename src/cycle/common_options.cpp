#include "cycle/common_options.hpp"

#include <array>
#include <string>

#include "base/build_identity.hpp"
#include "base/fixed_text.hpp"
#include "cycle/world.hpp"

namespace awex {
namespace {

/// The build, "--verify full" and the like, one a field, so that a difference can be shown as it
/// was given.
using Field = FixedText<128>;
using Fields = std::array<Field, 16>;

std::string verify_name(Verify verify) {
  switch (verify) {
    case Verify::kDigest:
      return "digest";
    case Verify::kFull:
      return "full";
    case Verify::kOff:
      return "off";
  }
  return "";
}

std::string exchange_name(ExchangeKind exchange) {
  switch (exchange) {
    case ExchangeKind::kAuto:
      return "auto";
    case ExchangeKind::kPeer:
      return "peer";
    case ExchangeKind::kNccl:
      return "nccl";
  }
  return "";
}

std::string backend_text(const JobOptions& options) {
  return options.backend ? backend_name(*options.backend) : "auto";
}

Field field(const char* name, const std::string& value) {
  return fixed_text<128>(fmt::format("{} {}", name, value));
}

Field flag(const char* name, bool value) { return field(name, value ? "on" : "off"); }

Fields fields_of(const Request& request) {
  const JobOptions& options = request.job;
  const CommandOptions& command = request.command;
  const auto budget = options.gpu_memory ? std::to_string(*options.gpu_memory) : "unlimited";
  return {field("awex-colocate", build_identity()),
          field("command", command_name(command.command)),
          field("--trainer", options.trainer.text()),
          field("--inference", options.inference.text()),
          field("--backend", backend_text(options)),
          field("--optimizer", options.optimizer ? "adamw" : "none"),
          field("--kv-cache", std::to_string(options.kv_cache_bytes)),
          field("--versions", std::to_string(command.versions)),
          field("--timeout", format_seconds(options.timeout.count())),
          field("--verify", verify_name(command.verify)),
          flag("offload", options.offload),
          field("--exchange", exchange_name(options.exchange)),
          flag("--share-gpu", options.share_gpu),
          field("--gpu-memory", budget),
          flag("--limits", options.measure_limits),
          flag("--warm-host-memory", options.warm_host_memory)};
}

}  // namespace

void check_common_options(Job& job, const Request& request) {
  const auto all = job.all_gather_value(fields_of(request), "the options of all ranks");
  for (size_t rank = 1; rank < all.size(); ++rank) {
    for (size_t i = 0; i < all[rank].size(); ++i) {
      if (all[rank][i] == all[0][i]) continue;
      job.fail_together(request_error(fmt::format("rank 0 has {}, rank {} has {}",
                                                  text_of(all[0][i]), rank, text_of(all[rank][i])),
                                      i == 0 ? "install the same build on every node"
                                             : "give every rank the same options; only --role may "
                                               "differ"));
    }
  }
}

}  // namespace awex
