// What plain ncclSend and ncclRecv reach between GPUs: for each matrix of bytes all ranks exchange
// at once, in one group with one message a pair. Prints JSON with seconds, and how many messages
// arrived wrong. One rank a GPU. Usage:
// mpirun -np GPUS nccl_limit MATRICES.json [share-gpu]
// MATRICES.json is {"name": [[bytes from GPU 0 to 0, from 0 to 1, …], …], …}. A rank may send to
// itself, so that one GPU is enough to try it. share-gpu lets several ranks be on one GPU.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/log.hpp"
#include "comm/job.hpp"
#include "memory/cuda_check.hpp"
#include "memory/cuda_owners.hpp"
#include "memory/device.hpp"
#include "memory/gpu_facts.hpp"
#include "transfer/move/nccl_exchange.hpp"

namespace awex {
namespace {

constexpr int kRounds = 10;
/// Groups of a round, in a row: launching and polling do not count.
constexpr int kGroups = 4;

using Matrix = std::vector<std::vector<uint64_t>>;
using Json = nlohmann::ordered_json;

void require(ncclResult_t result, const std::string& attempt) {
  if (result == ncclSuccess) return;
  throw runtime_error(fmt::format("cannot {}: {} ({}): {}", attempt, ncclGetErrorString(result),
                                  static_cast<int>(result), ncclGetLastError(nullptr)),
                      "run with NCCL_DEBUG=WARN for details");
}

Matrix read_matrix(const Json& json, const std::string& name, size_t ranks) {
  auto matrix = json.get<Matrix>();
  const bool is_square =
      matrix.size() == ranks && std::all_of(matrix.begin(), matrix.end(),
                                            [&](const auto& row) { return row.size() == ranks; });
  if (is_square) return matrix;
  throw request_error(fmt::format("the matrix \"{}\" is not {} x {}", name, ranks, ranks),
                      "start one rank for each GPU of the plan");
}

/// Owns a communicator of all ranks. Joining blocks; who starts the program bounds its time.
class Communicator {
 public:
  explicit Communicator(Job& job) {
    ncclUniqueId id{};
    if (job.rank() == 0) require(ncclGetUniqueId(&id), "make NCCL's unique id");
    id = job.all_gather_value(id, "swapping NCCL's unique id").front();
    require(ncclCommInitRank(&communicator_, job.size(), id, job.rank()),
            fmt::format("join NCCL's communicator as rank {} of {}", job.rank(), job.size()));
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  Communicator(Communicator&&) = delete;
  Communicator& operator=(Communicator&&) = delete;
  ~Communicator() { ncclCommAbort(communicator_); }

  [[nodiscard]] ncclComm_t get() const { return communicator_; }

 private:
  ncclComm_t communicator_ = nullptr;
};

/// Device memory in one piece.
class Buffer {
 public:
  Buffer(Device& device, uint64_t bytes)
      : range_(device.reserve("nccl limit", std::max<uint64_t>(bytes, 1))) {
    range_->take_chunks(0, range_->chunks());
  }
  [[nodiscard]] std::byte* data() const { return range_->data(); }

 private:
  std::unique_ptr<DeviceRange> range_;
};

/// One matrix, as one rank exchanges it.
class Traffic {
 public:
  Traffic(Job& job, Device& device, const Communicator& communicator, const CudaStream& stream,
          const Matrix& matrix)
      : job_(job),
        communicator_(communicator),
        stream_(stream),
        sends_(matrix.at(static_cast<size_t>(job.rank()))),
        receives_(column(matrix)),
        outgoing_(device, total(sends_)),
        incoming_(device, total(receives_)) {
    fill();
  }

  /// Seconds of one exchange in each round, sorted. Collective.
  std::vector<double> measure() {
    struct Span {
      double start_s;
      double end_s;
    };
    std::vector<double> seconds;
    for (int round = 0; round <= kRounds; ++round) {
      job_.agree(nullptr);  // all begin together
      Span mine{job_.now(), 0};
      for (int i = 0; i < kGroups; ++i) exchange();
      wait();
      mine.end_s = job_.now();
      Span whole = mine;
      for (const auto& [start, end] : job_.all_gather_value(mine, "the times of a round")) {
        whole = {std::min(whole.start_s, start), std::max(whole.end_s, end)};
      }
      if (round > 0) seconds.push_back((whole.end_s - whole.start_s) / kGroups);  // one warms up
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds;
  }

  /// How many messages to this rank have not arrived; their first and last bytes tell.
  [[nodiscard]] uint64_t wrong_messages() const {
    uint64_t wrong = 0;
    const std::byte* at = incoming_.data();
    for (size_t peer = 0; peer < receives_.size(); ++peer) {
      const uint64_t bytes = receives_[peer];
      if (bytes == 0) continue;
      const auto expected = named_byte(static_cast<int>(peer), job_.rank());
      if (fetch(at) != expected || fetch(at + bytes - 1) != expected) ++wrong;
      at += bytes;
    }
    return wrong;
  }

 private:
  [[nodiscard]] std::vector<uint64_t> column(const Matrix& matrix) const {
    std::vector<uint64_t> bytes;
    for (const auto& row : matrix) bytes.push_back(row.at(static_cast<size_t>(job_.rank())));
    return bytes;
  }

  static uint64_t total(const std::vector<uint64_t>& bytes) {
    uint64_t sum = 0;
    for (const uint64_t one : bytes) sum += one;
    return sum;
  }

  /// Never 0, which is what nothing has arrived as.
  static std::byte named_byte(int from, int to) {
    return static_cast<std::byte>(1 + (from * 16 + to) % 255);
  }

  static std::byte fetch(const std::byte* from) {
    std::byte byte{};
    AWEX_CHECK(cudaMemcpy(&byte, from, 1, cudaMemcpyDeviceToHost), "read a byte of a message");
    return byte;
  }

  void fill() {
    std::byte* at = outgoing_.data();
    for (size_t peer = 0; peer < sends_.size(); ++peer) {
      if (sends_[peer] == 0) continue;
      const auto value = static_cast<int>(named_byte(job_.rank(), static_cast<int>(peer)));
      AWEX_CHECK(cudaMemsetAsync(at, value, sends_[peer], stream_.get()), "fill a message");
      at += sends_[peer];
    }
    AWEX_CHECK(cudaMemsetAsync(incoming_.data(), 0, std::max<uint64_t>(total(receives_), 1),
                               stream_.get()),
               "clear what is to be received");
    wait();
  }

  void exchange() {
    require(ncclGroupStart(), "begin a group");
    std::byte* from = outgoing_.data();
    std::byte* to = incoming_.data();
    for (size_t i = 0; i < sends_.size(); ++i) {
      const auto peer = static_cast<int>(i);
      if (sends_[i] > 0) {
        require(ncclSend(from, sends_[i], ncclUint8, peer, communicator_.get(), stream_.get()),
                fmt::format("send {} bytes to rank {}", sends_[i], peer));
      }
      if (receives_[i] > 0) {
        require(ncclRecv(to, receives_[i], ncclUint8, peer, communicator_.get(), stream_.get()),
                fmt::format("receive {} bytes from rank {}", receives_[i], peer));
      }
      from += sends_[i];
      to += receives_[i];
    }
    require(ncclGroupEnd(), "launch a group");
  }

  void wait() {
    const auto is_idle = [&] {
      ncclResult_t state = ncclSuccess;
      require(ncclCommGetAsyncError(communicator_.get(), &state), "ask NCCL how it fares");
      require(state, "finish an exchange");
      return is_done(cudaStreamQuery(stream_.get()), "cudaStreamQuery", "an exchange");
    };
    wait_until(is_idle, "an exchange", job_.deadline(), job_);
  }

  Job& job_;
  const Communicator& communicator_;
  const CudaStream& stream_;
  std::vector<uint64_t> sends_;     ///< By peer.
  std::vector<uint64_t> receives_;  ///< By peer.
  Buffer outgoing_;
  Buffer incoming_;
};

void run(Job& job, const std::string& path) {
  std::ifstream file(path);
  if (!file) throw request_error("cannot read " + path, "name a file of matrices");
  const auto matrices = Json::parse(file);
  job.synchronise_clocks();
  const auto device = make_cuda_device(job.node_rank() % std::max(1, cuda_device_count()), 1);
  const CudaStream stream;
  const Communicator communicator(job);
  Json results = Json::object();
  for (const auto& [name, json] : matrices.items()) {
    const auto matrix = read_matrix(json, name, static_cast<size_t>(job.size()));
    Traffic traffic(job, *device, communicator, stream, matrix);
    const auto seconds = traffic.measure();
    std::vector<uint64_t> wrong{traffic.wrong_messages()};
    job.all_reduce_sum(wrong, "the wrong messages");
    results[name] = {{"best_seconds", seconds.front()},
                     {"median_seconds", seconds[seconds.size() / 2]},
                     {"wrong_messages", wrong.front()}};
  }
  if (job.rank() == 0) std::printf("%s\n", results.dump(2).c_str());
}

[[noreturn]] void fail(Job& job, const Error& error) {
  const auto first = job.announce_failure(error);
  if (job.is_reporter()) log::error(first);
  job.abort(first.code());
}

}  // namespace
}  // namespace awex

int main(int argc, char** argv) {
  const bool shares_gpu = argc == 3 && std::string_view(argv[2]) == "share-gpu";
  if (argc != 2 && !shares_gpu) {
    std::fprintf(stderr, "usage: mpirun -np GPUS nccl_limit MATRICES.json [share-gpu]\n");
    return 2;
  }
  const std::string path = argv[1];
  awex::Job job(&argc, &argv, awex::Seconds(60));
  try {
    if (shares_gpu) awex::let_nccl_share_gpu(job.rank());
    awex::run(job, path);
  } catch (const awex::Error& error) {
    awex::fail(job, error);
  } catch (const nlohmann::json::exception& error) {
    awex::fail(job, awex::request_error(fmt::format("{}: {}", path, error.what()),
                                        "it must hold an object of matrices of bytes"));
  }
  job.finish();
  return 0;
}
