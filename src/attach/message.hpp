#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/role.hpp"
#include "engine/engine.hpp"
#include "layout/layout.hpp"
#include "memory/lent_memory.hpp"
#include "memory/region.hpp"

/// What an engine's library and its rank say to each other: one message a frame
/// (attach/channel.hpp), a JSON object, some with descriptors. The rank asks one thing at a time
/// (kMap, kRelease, kChanged, kCopied), each of which the library answers with kAck while the
/// engine is in a call that consents; the library's kHello and kSeal are answered with kWelcome,
/// kSealed or kRefused.

namespace awex::attach {

/// Raised with every change that an older library or rank would misread.
inline constexpr int kProtocolVersion = 4;
/// What to do where the two do not understand each other.
inline constexpr const char* kOtherBuild =
    "the engine must load the libawex_colocate.so of the awex-colocate that the job runs";
inline constexpr uint64_t kMostKeptBytes = 16 << 20;
/// Kinds of memory that an engine tells of as its own.
inline constexpr size_t kMostBooked = 64;

/// By tag (memory/region.hpp): bytes.
using BytesByTag = std::array<uint64_t, 3>;

/// Whether a trainer's weights lie in memory of its own, and what becomes of that when the
/// trainer's memory is to go.
enum class OwnWeights : uint8_t {
  kNone,   ///< They lie in the job's memory.
  kStays,  ///< It stays where it is.
  kMoves,  ///< The engine moves it away and back, in its callbacks.
};

/// From the library.
struct ToRank {
  enum class Kind : uint8_t {
    kHello,     ///< First of all.
    kLend,      ///< Blocks of the engine's own memory, which what it declares next lies in, or
                ///< lies in now; with descriptors.
    kSeal,      ///< All that the engine declares.
    kReady,     ///< Consents to commands, and may wish for one. Holds until kOver or kWithdrawn.
    kWithdraw,  ///< Would like to have its consent back; kWithdrawn or a command's kOver follows.
    kAck,       ///< What was asked is done, or `error`.
    kKeep,      ///< With one descriptor of `bytes` bytes: a blob of the trainer's own.
    kBook,      ///< So many bytes of the device are the engine's own, for what `name` says.
    kDetach,    ///< Leaves; nothing of its memory is mapped any more.
  };
  Kind kind = Kind::kAck;

  // kHello
  int protocol = kProtocolVersion;
  std::string build;  ///< build_identity() of the library.
  Role role = Role::kTrainer;
  std::string name;  ///< Also of kBook.
  BytesByTag bytes{};
  OwnWeights own_weights = OwnWeights::kNone;

  // kLend
  bool begins = true;             ///< What was lent before is no more; `declared` weights follow.
  std::vector<LentBlock> blocks;  ///< Those with `has_fd` have a descriptor each, in their order.

  /// kSeal, by tag; kLend that begins: the weights. Places of weights that are the engine's own are
  /// addresses in its process.
  std::array<std::vector<Parameter>, 3> declared;
  uint64_t booked_bytes = 0;            ///< kBook.
  EngineWish wish = EngineWish::kNone;  ///< kReady.
  uint64_t newer_than = 0;              ///< kReady: see awex_wait.
  uint64_t kept_bytes = 0;              ///< kKeep.
  std::optional<Error> error;           ///< kAck.
};

/// From the rank.
struct ToEngine {
  enum class Kind : uint8_t {
    kWelcome,    ///< With the descriptor of the control page, and of what was kept, if anything.
    kRefused,    ///< `error`; after kHello the rank hangs up.
    kSealed,     ///< What was declared fits.
    kMap,        ///< Chunks of a tag, a descriptor each: map them.
    kRelease,    ///< A tag's memory is about to go: call before_release. Inference unmaps it; a
                 ///< trainer keeps each chunk mapped until that one's kCopied.
    kChanged,    ///< Inference's weights are those of `version`.
    kCopied,     ///< Chunks of a trainer's tag are in host memory, with the descriptors of that
                 ///< unless the engine has them: unmap them, they leave the device next.
    kWithdrawn,  ///< The consent is given back.
    kOver,       ///< A command is over, `error` if it failed; the consent has ended. Both are sent
                 ///< only while a consent holds, so that they end the one that was given last.
    kEnd,        ///< The job ends in order, or `error`.
  };
  Kind kind = Kind::kOver;

  // kWelcome
  int protocol = kProtocolVersion;
  int rank = 0;
  uint32_t role_rank = 0;
  std::string host;
  std::string model;
  std::string layout;
  std::string backend;
  bool reattached = false;
  uint64_t version = 0;  ///< Last committed; also of kChanged and kOver.
  uint64_t kept_bytes = 0;
  std::vector<Parameter> places;  ///< The layout's weights.
  BytesByTag bytes{};             ///< Of each tag's memory; 0 for none.
  BytesByTag chunk_bytes{};
  std::array<bool, 3> mapped{};  ///< Tags whose memory is there: their kMap follow, and until all
                                 ///< have come the engine's call attaches.
  std::array<bool, 3> away{};    ///< Tags whose memory is in host memory, or a part of it: the
                                 ///< same, a kMap or kCopied of each chunk.
  double silence_s = 0;          ///< How long the rank waits for an answer.
  bool takes_memory = true;      ///< False where no command takes any of it (--no-offload).

  Tag tag = Tag::kWeights;  ///< kMap, kRelease, kChanged, kCopied.
  uint64_t first = 0;       ///< kMap, kCopied: first chunk.
  bool last = true;         ///< kMap: with these all of the tag is here, to be used.
  bool has_content = true;  ///< kMap: false where the content is undefined.

  /// kCopied: what each chunk holds, unless that is not proven.
  std::vector<ChunkDigests> holds;

  bool gave = false;  ///< kOver: the command was one that takes this engine's memory (an update for
                      ///< trainers, a take-back for inference).
  bool brought = false;        ///< kOver: it was one that brings it.
  std::optional<Error> error;  ///< kRefused, kOver, kEnd.
};

[[nodiscard]] std::string encode(const ToRank& message);
[[nodiscard]] std::string encode(const ToEngine& message);
/// The reverse. The text may be anything: throw request errors that say what is wrong, also for
/// another protocol version. Sizes and places are checked to fit 64 bits.
[[nodiscard]] ToRank decode_to_rank(std::string_view text);
[[nodiscard]] ToEngine decode_to_engine(std::string_view text);

}  // namespace awex::attach
