// What the links to host memory reach when all devices copy at once, and on which NUMA nodes that
// memory lies; one rank a device, all on one node. Prints JSON. Usage:
// mpirun -np DEVICES all_links cuda|host MIB_A_DEVICE
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "base/log.hpp"
#include "comm/job.hpp"
#include "memory/device.hpp"
#include "memory/gpu_facts.hpp"

namespace awex {
namespace {

constexpr int kRounds = 8;
/// Copies of a round, in a row: queuing and polling do not count.
constexpr int kCopies = 4;

struct Span {
  double start_s;
  double end_s;
};

struct Rates {
  double best = 0;
  double median = 0;
};

/// What a rank says of itself.
struct Place {
  static constexpr size_t kMostNodes = 64;
  std::array<uint8_t, 16> uuid{};
  int32_t index = 0;
  std::array<uint64_t, kMostNodes> bytes_on_node{};
};

/// Asks the kernel where each page is. On machines where it does not say, all stays 0.
void find_pages(std::span<std::byte> memory, Place& place) {
  const auto page_bytes = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  std::vector<void*> pages;
  for (uint64_t at = 0; at < memory.size(); at += page_bytes) pages.push_back(&memory[at]);
  std::vector<int> nodes(pages.size(), -1);
  ::syscall(SYS_move_pages, 0, pages.size(), pages.data(), nullptr, nodes.data(), 0);
  for (const int node : nodes) {
    if (node >= 0 && node < static_cast<int>(Place::kMostNodes)) {
      place.bytes_on_node.at(static_cast<size_t>(node)) += page_bytes;
    }
  }
}

/// One device with memory on both ends of its link.
class Link {
 public:
  Link(Job& job, Device& device, uint64_t bytes)
      : job_(job),
        bytes_(bytes),
        range_(device.reserve("all links", bytes)),
        host_(device.allocate_host(bytes)),
        queue_(device.make_queue()) {
    range_->take_chunks(0, range_->chunks());
    queue_->fill_zero(range_->data(), bytes);
    queue_->finish("clearing the device's memory", job.deadline(), job);
  }

  [[nodiscard]] std::span<std::byte> host() const { return host_->bytes(); }
  [[nodiscard]] Rates to_host() { return measure(host_->bytes().data(), range_->data()); }
  [[nodiscard]] Rates to_device() { return measure(range_->data(), host_->bytes().data()); }

 private:
  /// Bytes per second of all devices together: from the first start to the last end. Collective.
  Rates measure(std::byte* to, const std::byte* from) {
    std::vector<double> rates;
    for (int round = 0; round <= kRounds; ++round) {
      job_.agree(nullptr);  // all begin together
      Span mine{job_.now(), 0};
      for (int i = 0; i < kCopies; ++i) queue_->copy(to, from, bytes_);
      queue_->finish("copies over the link", job_.deadline(), job_);
      mine.end_s = job_.now();
      const auto all = job_.all_gather_value(mine, "the times of a round");
      Span whole = mine;
      for (const auto& [start, end] : all) {
        whole = {std::min(whole.start_s, start), std::max(whole.end_s, end)};
      }
      const auto moved = static_cast<double>(bytes_) * kCopies * job_.size();
      if (round > 0) rates.push_back(moved / (whole.end_s - whole.start_s));  // the first warms up
    }
    std::sort(rates.begin(), rates.end());
    return {rates.back(), rates[rates.size() / 2]};
  }

  Job& job_;
  uint64_t bytes_;
  std::unique_ptr<DeviceRange> range_;
  std::unique_ptr<HostBlock> host_;
  std::unique_ptr<CopyQueue> queue_;
};

std::unique_ptr<Device> open_device(const Job& job, BackendKind backend) {
  const size_t threads = std::max(1U, std::thread::hardware_concurrency() / job.size());
  switch (backend) {
    case BackendKind::kCuda:
      return make_cuda_device(job.node_rank() % std::max(1, cuda_device_count()), threads);
    case BackendKind::kHost:
      return make_host_device(job.node_rank(), threads);
  }
  throw runtime_error("unknown backend");
}

/// "GPU-0123abcd-…", as nvidia-smi writes it.
std::string uuid_text(const std::array<uint8_t, 16>& uuid) {
  std::string text = "GPU";
  for (size_t i = 0; i < uuid.size(); ++i) {
    const bool begins_group = i == 0 || i == 4 || i == 6 || i == 8 || i == 10;
    text += fmt::format("{}{:02x}", begins_group ? "-" : "", uuid.at(i));
  }
  return text;
}

nlohmann::ordered_json device_json(const Place& place) {
  nlohmann::ordered_json nodes = nlohmann::ordered_json::object();
  for (size_t node = 0; node < place.bytes_on_node.size(); ++node) {
    if (place.bytes_on_node.at(node) > 0) {
      nodes[std::to_string(node)] = place.bytes_on_node.at(node);
    }
  }
  return {{"index", place.index},
          {"uuid", uuid_text(place.uuid)},
          {"host_bytes_by_numa_node", std::move(nodes)}};
}

nlohmann::ordered_json rates_json(const Rates& rates) {
  return {{"best_bytes_per_s", rates.best}, {"median_bytes_per_s", rates.median}};
}

void run(Job& job, BackendKind backend, uint64_t bytes) {
  job.synchronise_clocks();
  const auto device = open_device(job, backend);
  Link link(job, *device, bytes);
  Place place{device->identity().uuid, device->identity().index, {}};
  find_pages(link.host(), place);
  const auto places = job.all_gather_value(place, "where memory lies");
  const auto to_host = link.to_host();
  const auto to_device = link.to_device();
  if (job.rank() != 0) return;
  nlohmann::ordered_json devices = nlohmann::ordered_json::array();
  for (const auto& one : places) devices.push_back(device_json(one));
  const nlohmann::ordered_json json = {{"device_to_host", rates_json(to_host)},
                                       {"host_to_device", rates_json(to_device)},
                                       {"devices", std::move(devices)}};
  std::printf("%s\n", json.dump(2).c_str());
}

/// 0 for what is no number from 1 to 65536.
uint64_t read_number(const std::string& text) {
  uint64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  return error == std::errc{} && stop == end && number <= 65536 ? number : 0;
}

}  // namespace
}  // namespace awex

int main(int argc, char** argv) {
  const std::string backend = argc == 3 ? argv[1] : "";
  const uint64_t mib = argc == 3 ? awex::read_number(argv[2]) : 0;
  if ((backend != "cuda" && backend != "host") || mib == 0) {
    std::fprintf(stderr, "usage: mpirun -np DEVICES all_links cuda|host MIB_A_DEVICE\n");
    return 2;
  }
  awex::Job job(&argc, &argv, awex::Seconds(60));
  try {
    awex::run(job, backend == "cuda" ? awex::BackendKind::kCuda : awex::BackendKind::kHost,
              mib << 20);
  } catch (const awex::Error& error) {
    const auto first = job.announce_failure(error);
    if (job.is_reporter()) awex::log::error(first);
    job.abort(first.code());
  }
  job.finish();
  return 0;
}
