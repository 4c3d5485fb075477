#include <unistd.h>

#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "base/json_values.hpp"
#include "base/thread_pool.hpp"
#include "cli/options.hpp"
#include "cli/output_files.hpp"
#include "cli/subcommand.hpp"
#include "model/weights.hpp"

namespace awex {
namespace {

struct DigestOptions {
  std::string model;
  std::optional<uint64_t> layers;
  bool json = false;
  TalkOptions talk;
};

/// Digests by tensor name, in the names' order: two models compare with diff.
using NamedDigests = std::map<std::string, uint64_t>;

NamedDigests by_name(const Catalogue& catalogue, const std::vector<uint64_t>& digests) {
  NamedDigests named;
  for (size_t i = 0; i < digests.size(); ++i) named[catalogue.tensors()[i].name] = digests[i];
  return named;
}

std::string render_text(const NamedDigests& digests, uint64_t model) {
  std::string out;
  for (const auto& [name, digest] : digests) out += fmt::format("{:#018x}  {}\n", digest, name);
  return out + fmt::format("{:#018x}  model\n", model);
}

std::string render_digests_json(const NamedDigests& digests, uint64_t model) {
  Json tensors = Json::object();
  for (const auto& [name, digest] : digests) tensors[name] = fmt::format("{:#018x}", digest);
  const Json json = {{"schema_version", 1},
                     {"tensors", std::move(tensors)},
                     {"model", fmt::format("{:#018x}", model)}};
  return indented_text(json);
}

ExitCode run_digest(const DigestOptions& options) {
  speak(options.talk);
  const auto source = open_model(options.model, options.layers);
  for (const auto& remark : source->remarks()) log::warning(remark);
  ThreadPool pool(std::thread::hardware_concurrency());
  const auto digests = digest_source(*source, pool);
  const auto model = model_digest(source->catalogue(), digests);
  const auto named = by_name(source->catalogue(), digests);
  write_all(STDOUT_FILENO,
            options.json ? render_digests_json(named, model) : render_text(named, model), "stdout");
  return ExitCode::kOk;
}

}  // namespace

Subcommand add_digest(CLI::App& root) {
  const auto options = std::make_shared<DigestOptions>();
  auto* parser = root.add_subcommand(
      "digest", "Print the digest of every tensor of a checkpoint, and the model's");
  parser->footer(
      "Examples:\n"
      "  awex-colocate digest DIR\n"
      "  awex-colocate digest preset:tiny-dense --json");
  parser->add_option("model", options->model, "A checkpoint, or a preset's generated weights")
      ->type_name("DIR|preset:NAME");
  add_value(
      *parser, "--layers", "N", "Keep the first N layers of the model", "all",
      [options = options.get()](const std::string& text) { options->layers = parse_count(text); });
  parser->add_flag("--json", options->json, "Print JSON instead of lines");
  add_talk_options(*parser, options->talk);
  const auto complete = [options] {
    if (!options->model.empty()) return;
    throw request_error("digest needs a checkpoint", "awex-colocate digest DIR");
  };
  return {parser, complete,
          [options](int* /*argc*/, char*** /*argv*/) { return run_digest(*options); }};
}

}  // namespace awex
