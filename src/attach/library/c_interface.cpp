// The C interface: nothing is thrown across it, and the calling thread keeps what went wrong.
#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "attach/library/participant.hpp"
#include "awex_colocate.h"
#include "base/build_identity.hpp"
#include "base/error.hpp"
#include "model/json_input.hpp"

namespace {

using namespace awex;
using namespace awex::attach;

constexpr Seconds kUsualAttachTimeout{600};
constexpr size_t kLongestName = 31;

static_assert(AWEX_LOST == static_cast<int>(ExitCode::kPeerLost));
static_assert(AWEX_MISMATCH == static_cast<int>(ExitCode::kMismatch));
static_assert(AWEX_TAGS == std::tuple_size_v<BytesByTag>);
static_assert(AWEX_KV_CACHE == static_cast<int>(Tag::kKvCache));
static_assert(AWEX_INFERENCE == static_cast<int>(Role::kInference));
static_assert(AWEX_MOST_KEPT_BYTES == kMostKeptBytes);
static_assert(AWEX_OWN_STAYS == static_cast<int>(OwnWeights::kStays));
static_assert(AWEX_OWN_MOVES == static_cast<int>(OwnWeights::kMoves));

/// What this thread's last call said.
std::string& last_error() {
  thread_local std::string text;
  return text;
}

/// "rank 3 (trainer): …", where the error comes from a rank.
std::string origin(const ErrorContext& context) {
  if (!context.rank) return {};
  const auto role = context.role.empty() ? "" : fmt::format(" ({})", context.role);
  const auto phase = context.phase.empty() ? "" : fmt::format("in phase {}: ", context.phase);
  return fmt::format("rank {}{}: {}", *context.rank, role, phase);
}

awex_status fail(const Error& error) {
  const auto hint = error.hint().empty() ? "" : "\n" + error.hint();
  last_error() = origin(error.context()) + error.what() + hint;
  return static_cast<awex_status>(error.code());
}

/// Runs a call's work; its error is the thread's.
template <class Work>
awex_status guarded(const Work& work) noexcept {
  try {
    last_error().clear();
    work();
    return AWEX_OK;
  } catch (const Error& error) {
    return fail(error);
  } catch (const std::bad_alloc&) {
    return fail(runtime_error("this process has no memory left"));
  } catch (const std::exception& error) {
    return fail(runtime_error(error.what()));
  } catch (...) {
    return fail(runtime_error("something that is no error was thrown"));
  }
}

void require(bool fits, const char* why) {
  if (!fits) throw request_error(why, "see awex_colocate.h");
}

Seconds timeout_of(double seconds) {
  require(seconds >= 0, "a timeout is not negative, nor NaN");
  return Seconds(seconds);
}

Tag tag_of(awex_tag tag) {
  require(tag >= 0 && tag < AWEX_TAGS, "there is no such tag");
  return static_cast<Tag>(tag);
}

/// "bf16" of BF16.
std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (auto& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return lower;
}

DType dtype_of(const char* name) {
  require(name != nullptr, "a tensor needs a dtype");
  std::string upper(name);
  for (auto& c : upper) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  const auto dtype = dtype_from_name(upper);
  if (dtype) return *dtype;
  throw request_error(fmt::format("{} is no dtype", in_quotes(name)),
                      "known: bf16, f16, f32, f8_e4m3, f8_e5m2");
}

Parameter parameter_of(const awex_tensor& tensor) {
  require(tensor.name != nullptr && *tensor.name != '\0', "a tensor needs a name");
  return {tensor.name, dtype_of(tensor.dtype), tensor.rows, tensor.cols, tensor.offset_bytes};
}

/// Of an engine, or of memory that is its own.
std::string checked_name(const char* name) {
  std::string text(name == nullptr ? "" : name);
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  require(!text.empty() && text.size() <= kLongestName &&
              std::none_of(text.begin(), text.end(), is_control),
          "a name needs 1 to 31 bytes");
  return text;
}

ParticipantOptions options_of(const awex_attach_options& options) {
  require(options.struct_size == sizeof(awex_attach_options),
          "struct_size is not sizeof(awex_attach_options): header and library differ");
  int role = 0;  // in C an enum may have any value
  std::memcpy(&role, &options.role, sizeof(role));
  require(role == AWEX_TRAINER || role == AWEX_INFERENCE, "there is no such role");
  require(options.device >= 0, "a device is counted from 0");
  ParticipantOptions result;
  const bool is_told = options.job != nullptr && *options.job != '\0';
  result.rank.job = is_told ? options.job : find_job();
  result.rank.role = static_cast<Role>(role);
  result.rank.device = options.device;
  if (options.gpu_uuid != nullptr) result.rank.gpu = parse_gpu_uuid(options.gpu_uuid);
  result.name = checked_name(options.name);
  std::copy(std::begin(options.bytes), std::end(options.bytes), result.bytes.begin());
  int own = 0;
  std::memcpy(&own, &options.own_weights, sizeof(own));
  require(own >= AWEX_OWN_NONE && own <= AWEX_OWN_MOVES, "there is no such kind of own weights");
  require(own == AWEX_OWN_NONE || (role == AWEX_TRAINER && options.bytes[AWEX_WEIGHTS] == 0),
          "only a trainer has weights of its own, and then asks for none of the job's");
  result.own_weights = static_cast<OwnWeights>(own);
  const auto timeout = timeout_of(options.timeout_s);
  result.timeout = timeout.count() > 0 ? timeout : kUsualAttachTimeout;
  return result;
}

/// All arenas of this process, for memory that is freed on whatever thread.
class Arenas {
 public:
  void add(const std::shared_ptr<Arena>& arena) {
    if (!arena) return;
    const std::lock_guard lock(mutex_);
    arenas_.push_back(arena);
  }
  void remove(const std::shared_ptr<Arena>& arena) noexcept {
    const std::lock_guard lock(mutex_);
    arenas_.erase(std::remove(arenas_.begin(), arenas_.end(), arena), arenas_.end());
  }
  [[nodiscard]] std::shared_ptr<Arena> find(const std::byte* memory) {
    const std::lock_guard lock(mutex_);
    for (const auto& arena : arenas_) {
      if (arena->holds(memory)) return arena;
    }
    return nullptr;
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<Arena>> arenas_;
};

/// Never destroyed: allocators free memory at the very end of a process.
Arenas& arenas() {
  static auto* const all = new Arenas;
  return *all;
}

/// Where this thread allocates.
std::weak_ptr<Arena>& arena_of_thread() {
  thread_local std::weak_ptr<Arena> arena;
  return arena;
}

constexpr awex_tag kTags[] = {AWEX_WEIGHTS, AWEX_OPTIMIZER, AWEX_KV_CACHE};

}  // namespace

struct awex_engine {
  explicit awex_engine(const ParticipantOptions& options) : participant(options) {
    for (const auto& place : participant.welcome().places) {
      dtypes.push_back(lower_case(dtype_name(place.dtype)));
    }
    for (const auto tag : kTags) arenas().add(participant.arena(static_cast<Tag>(tag)));
  }
  awex_engine(const awex_engine&) = delete;
  awex_engine& operator=(const awex_engine&) = delete;
  awex_engine(awex_engine&&) = delete;
  awex_engine& operator=(awex_engine&&) = delete;
  ~awex_engine() {
    for (const auto tag : kTags) arenas().remove(participant.arena(static_cast<Tag>(tag)));
  }

  Participant participant;
  std::vector<std::string> dtypes;  ///< Of the layout's tensors.
};

namespace {

Participant& participant_of(awex_engine* engine) {
  require(engine != nullptr, "there is no engine: it is NULL");
  return engine->participant;
}

EngineCallback callback_of(awex_callback callback, void* user) {
  if (callback == nullptr) return {};
  return [callback, user](Tag tag, uint64_t version) {
    return callback(user, static_cast<awex_tag>(tag), version);
  };
}

}  // namespace

uint32_t awex_abi_version(void) { return AWEX_ABI_VERSION; }

const char* awex_build(void) { return build_identity(); }

const char* awex_error(void) { return last_error().c_str(); }

awex_status awex_attach(const awex_attach_options* options, awex_engine** engine) {
  if (engine != nullptr) *engine = nullptr;
  return guarded([&] {
    require(options != nullptr && engine != nullptr, "awex_attach: an argument is NULL");
    *engine = std::make_unique<awex_engine>(options_of(*options)).release();
  });
}

void awex_detach(awex_engine* engine) {
  guarded([&] { const std::unique_ptr<awex_engine> last(engine); });
}

awex_status awex_place(awex_engine* engine, awex_place_in_job* place) {
  return guarded([&] {
    const auto& participant = participant_of(engine);
    require(place != nullptr, "awex_place: an argument is NULL");
    const auto& welcome = participant.welcome();
    *place = {welcome.rank,
              static_cast<int32_t>(welcome.role_rank),
              welcome.host.c_str(),
              welcome.model.c_str(),
              welcome.layout.c_str(),
              welcome.backend.c_str(),
              welcome.reattached ? 1 : 0,
              participant.version()};
  });
}

awex_status awex_memory(awex_engine* engine, awex_tag tag, awex_memory_info* info) {
  return guarded([&] {
    const auto& participant = participant_of(engine);
    require(info != nullptr, "awex_memory: an argument is NULL");
    const auto of = tag_of(tag);
    *info = {participant.address(of), participant.welcome().bytes.at(static_cast<size_t>(of)),
             participant.is_mapped(of) ? 1 : 0};
  });
}

awex_status awex_map_placeholder(awex_engine* engine, awex_tag tag) {
  return guarded([&] { participant_of(engine).map_placeholder(tag_of(tag)); });
}

uint64_t awex_layout_size(awex_engine* engine) {
  uint64_t size = 0;
  guarded([&] { size = participant_of(engine).welcome().places.size(); });
  return size;
}

awex_status awex_layout_tensor(awex_engine* engine, uint64_t index, awex_tensor* tensor) {
  return guarded([&] {
    const auto& places = participant_of(engine).welcome().places;
    require(tensor != nullptr, "awex_layout_tensor: an argument is NULL");
    if (index >= places.size()) {
      throw request_error(
          fmt::format("the layout has {} tensors, and no number {}", places.size(), index));
    }
    const auto& place = places[index];
    *tensor = {place.name.c_str(), engine->dtypes[index].c_str(),
               place.rows,         place.cols,
               place.offset_bytes, AWEX_WEIGHTS};
  });
}

awex_status awex_declare(awex_engine* engine, const awex_tensor* tensor) {
  return guarded([&] {
    auto& participant = participant_of(engine);
    require(tensor != nullptr, "awex_declare: an argument is NULL");
    participant.declare(tag_of(tensor->tag), parameter_of(*tensor));
  });
}

awex_status awex_declare_own(awex_engine* engine, const awex_tensor* tensor, const void* address) {
  return guarded([&] {
    auto& participant = participant_of(engine);
    require(tensor != nullptr, "awex_declare_own: an argument is NULL");
    require(tensor->tag == AWEX_WEIGHTS, "awex_declare_own is for weights");
    auto parameter = parameter_of(*tensor);
    parameter.offset_bytes = reinterpret_cast<uintptr_t>(address);
    participant.declare_own(parameter);
  });
}

awex_status awex_seal(awex_engine* engine, double timeout_s) {
  return guarded([&] { participant_of(engine).seal(timeout_of(timeout_s)); });
}

awex_status awex_hand_over(awex_engine* engine, double timeout_s, uint64_t* version) {
  return guarded([&] {
    const auto committed = participant_of(engine).hand_over(timeout_of(timeout_s));
    if (version != nullptr) *version = committed;
  });
}

awex_status awex_take_back(awex_engine* engine, double timeout_s) {
  return guarded([&] { participant_of(engine).take_back(timeout_of(timeout_s)); });
}

awex_status awex_take_back_weights(awex_engine* engine, double timeout_s) {
  return guarded([&] { participant_of(engine).take_back_weights(timeout_of(timeout_s)); });
}

awex_status awex_wait(awex_engine* engine, uint64_t newer_than, double timeout_s,
                      uint64_t* version) {
  return guarded([&] {
    const auto served = participant_of(engine).wait(newer_than, timeout_of(timeout_s));
    if (version != nullptr) *version = served;
  });
}

awex_status awex_release(awex_engine* engine, double timeout_s) {
  return guarded([&] { participant_of(engine).release(timeout_of(timeout_s)); });
}

awex_status awex_ready(awex_engine* engine, double timeout_s) {
  return guarded([&] { participant_of(engine).ready(timeout_of(timeout_s)); });
}

awex_status awex_restore(awex_engine* engine, int32_t* proven) {
  return guarded([&] {
    const bool is_proven = participant_of(engine).restore();
    if (proven != nullptr) *proven = is_proven ? 1 : 0;
  });
}

awex_status awex_check(awex_engine* engine) {
  return guarded([&] { participant_of(engine).check(); });
}

awex_status awex_writing(awex_engine* engine) {
  return guarded([&] { participant_of(engine).begin_writing(); });
}

awex_status awex_consistent(awex_engine* engine) {
  return guarded([&] { participant_of(engine).end_writing(); });
}

awex_status awex_before_release(awex_engine* engine, awex_callback callback, void* user) {
  return guarded(
      [&] { participant_of(engine).callbacks().before_release = callback_of(callback, user); });
}

awex_status awex_after_resume(awex_engine* engine, awex_callback callback, void* user) {
  return guarded(
      [&] { participant_of(engine).callbacks().after_resume = callback_of(callback, user); });
}

awex_status awex_weights_changed(awex_engine* engine, awex_callback callback, void* user) {
  return guarded(
      [&] { participant_of(engine).callbacks().weights_changed = callback_of(callback, user); });
}

awex_status awex_use(awex_engine* engine, awex_tag tag) {
  return guarded([&] {
    const auto arena = participant_of(engine).arena(tag_of(tag));
    require(arena != nullptr, "awex_use: the engine has no memory of this tag");
    arena_of_thread() = arena;
  });
}

void* awex_alloc(ssize_t bytes, int /*device*/, void* /*stream*/) {
  void* memory = nullptr;
  guarded([&] {
    require(bytes >= 0, "awex_alloc: the size is negative");
    if (bytes == 0) return;
    const auto arena = arena_of_thread().lock();
    require(arena != nullptr, "awex_alloc: this thread has called no awex_use, or its engine left");
    memory = arena->allocate(static_cast<uint64_t>(bytes));
  });
  return memory;
}

void awex_free(void* memory, ssize_t /*bytes*/, int /*device*/, void* /*stream*/) {
  guarded([&] {
    if (memory == nullptr) return;
    auto* const at = static_cast<std::byte*>(memory);
    const auto arena = arenas().find(at);
    require(arena != nullptr && arena->free(at),
            "awex_free: the memory is not of awex_alloc, was freed before, or its engine left");
  });
}

awex_status awex_book(awex_engine* engine, const char* what, uint64_t bytes) {
  return guarded([&] { participant_of(engine).book(checked_name(what), bytes); });
}

awex_status awex_keep(awex_engine* engine, const void* bytes, size_t count) {
  return guarded([&] {
    auto& participant = participant_of(engine);
    require(bytes != nullptr || count == 0, "awex_keep: an argument is NULL");
    require(count <= AWEX_MOST_KEPT_BYTES, "awex_keep: 16 MiB are the most");
    participant.keep(count == 0 ? std::string()
                                : std::string(static_cast<const char*>(bytes), count));
  });
}

awex_status awex_kept(awex_engine* engine, const void** bytes, size_t* count) {
  return guarded([&] {
    const auto& kept = participant_of(engine).kept();
    require(bytes != nullptr && count != nullptr, "awex_kept: an argument is NULL");
    *bytes = kept.empty() ? nullptr : kept.data();
    *count = kept.size();
  });
}
