#include "transfer/grants.hpp"

#include <map>
#include <utility>

namespace awex {

Grants grants_of(std::span<const MessageRound> rounds, uint32_t buffers) {
  Grants grants;
  grants.after_round.resize(rounds.size());
  std::map<std::pair<uint32_t, uint64_t>, size_t> last_use;  // by buffer and offset
  for (size_t round = 0; round < rounds.size(); ++round) {
    const uint32_t turn = rounds[round].turn;
    for (const auto& message : rounds[round].receives) {
      const auto [place, is_free] = last_use.try_emplace({turn % buffers, message.offset}, round);
      auto& when = is_free ? grants.at_begin : grants.after_round[place->second];
      when.push_back({message.peer, turn});
      place->second = round;
    }
  }
  return grants;
}

}  // namespace awex
