#include "plan/exchanged_copies.hpp"

#include "base/checked.hpp"

namespace awex {
namespace {

using Pieces = std::map<uint32_t, std::vector<Piece>>;

ExchangedCopies::ByPeer merge(const Pieces& pieces) {
  ExchangedCopies::ByPeer copies;
  for (const auto& [peer, of_peer] : pieces) copies.emplace(peer, merge_pieces(of_peer));
  return copies;
}

}  // namespace

ExchangedCopies exchanged_copies(const Plan& plan, const Placement& placement, uint32_t me) {
  const auto inference_on =
      rank_on_devices(placement.inference_device, placement.device_node.size());
  Pieces sends;
  Pieces receives;
  for (const auto& piece : plan.pieces) {
    const uint32_t sender = inference_on[placement.trainer_device[piece.source]];
    if (sender == piece.target) continue;
    if (sender == me) sends[piece.target].push_back(piece);
    if (piece.target == me) receives[sender].push_back(piece);
  }
  return {me, narrow<uint32_t>(placement.inference_device.size()), merge(sends), merge(receives)};
}

}  // namespace awex
