#include "transfer/share/handle_exchange.hpp"

#include "base/fixed_text.hpp"
#include "base/hex.hpp"
#include "transfer/share/lent_exchange.hpp"

namespace awex {
namespace {

std::string describe(const HandleRecord& record) {
  return fmt::format("rank {} ({}, host {})", record.rank, role_name(record.role),
                     record.node.name());
}

void check_same_program(const HandleRecord& a, const HandleRecord& b) {
  if (a.protocol != b.protocol) {
    throw request_error(fmt::format("{} speaks handle protocol {}, {} speaks {}", describe(a),
                                    a.protocol, describe(b), b.protocol),
                        "start the same version of the program on every rank");
  }
  if (a.fingerprint != b.fingerprint) {
    throw request_error(
        fmt::format(
            "{} has the fingerprint {:#018x} of model, layouts and program, {} has {:#018x}",
            describe(a), a.fingerprint, describe(b), b.fingerprint),
        "give every rank the same --model, --layers, --trainer and --inference, and the same "
        "version of the program");
  }
}

void check_pair(const HandleRecord& mine, const HandleRecord& theirs) {
  if (theirs.partner != mine.rank || theirs.role == mine.role) {
    throw request_error(fmt::format("{} takes {} for its partner, whose partner is rank {}",
                                    describe(mine), describe(theirs), theirs.partner));
  }
  if (mine.node != theirs.node) {
    throw request_error(
        fmt::format("{} and {} are partners on different hosts", describe(mine), describe(theirs)),
        "start the trainer and the inference rank of a GPU on the same host");
  }
  if (mine.device_uuid != theirs.device_uuid) {
    throw request_error(
        fmt::format("{} and {} are partners on different devices: {} and {}", describe(mine),
                    describe(theirs), hex_of(mine.device_uuid), hex_of(theirs.device_uuid)),
        "look at CUDA_VISIBLE_DEVICES of both ranks");
  }
}

void check_offer(const HandleRecord& record) {
  const auto& offered = record.offered;
  const bool offers = offered.kind != HandleKind::kNone;
  if (offers != (record.role == Role::kTrainer) || !offered.makes_sense()) {
    throw request_error(fmt::format(
        "{} offers {} by {} {}, in chunks of {}", describe(record), format_bytes(offered.bytes),
        offered.count, handle_kind_name(offered.kind), format_bytes(offered.chunk_bytes)));
  }
}

void check_kinds(const HandleRecord& trainer, const HandleRecord& inference) {
  const auto kind = trainer.offered.kind;
  if (kind == inference.maps || kind == HandleKind::kLent) return;
  throw request_error(fmt::format("{} offers its weights by {}, {} maps {}", describe(trainer),
                                  handle_kind_name(trainer.offered.kind), describe(inference),
                                  handle_kind_name(inference.maps)),
                      "start both roles with the same --backend, and let the trainer's memory be "
                      "what awex-colocate "
                      "has taken");
}

HandleRecord make_record(Job& job, BackendKind backend, const HandlesHere& here, int partner_rank,
                         uint64_t fingerprint) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  HandleRecord record;
  record.protocol = kHandleProtocol;
  record.rank = job.rank();
  record.partner = partner_rank;
  record.role = me.role;
  record.node = job.node();
  record.device_uuid = me.device.uuid;
  record.fingerprint = fingerprint;
  record.maps = handle_kind_of(backend);
  record.borrowed = here.borrowed;
  if (here.owned != nullptr) record.offered = offer(*here.owned, backend);
  if (here.lent != nullptr) record.offered = offer(*here.lent);
  return record;
}

std::string weights_of(const Job& job, int trainer) {
  return fmt::format("the weights of {}", job.describe(trainer));
}

}  // namespace

void check_handles(std::span<const HandleRecord> records) {
  for (const auto& record : records) check_same_program(records.front(), record);
  for (const auto& record : records) {
    if (record.partner < 0 || static_cast<size_t>(record.partner) >= records.size()) {
      throw request_error(fmt::format("{} names rank {} as its partner, which does not exist",
                                      describe(record), record.partner));
    }
    check_pair(record, records[static_cast<size_t>(record.partner)]);
    check_offer(record);
  }
  for (const auto& record : records) {
    if (record.role != Role::kTrainer) continue;
    check_kinds(record, records[static_cast<size_t>(record.partner)]);
  }
}

ReceivedRange swap_handles(Job& job, BackendKind backend, const HandlesHere& here, int partner_rank,
                           uint64_t fingerprint, FdTransport transport) {
  const auto record = make_record(job, backend, here, partner_rank, fingerprint);
  const auto records = job.all_gather_value(record, "the swap of memory handles");
  // Every rank sees the same records, so every rank comes to the same verdict.
  job.do_and_agree([&] { check_handles(records); });
  const auto& partner = records[static_cast<size_t>(partner_rank)];
  if (here.owned != nullptr) {
    hand_out_fds(job, partner_rank, record.offered.numbers(), weights_of(job, record.rank));
    return {};
  }
  if (here.lent != nullptr) {
    const bool is_open = partner.borrowed == here.lent->number;
    if (!is_open) hand_out_lent(job, partner_rank, *here.lent, weights_of(job, record.rank));
    return {};
  }
  const auto& trainer = partner;
  if (trainer.offered.kind == HandleKind::kLent) {
    ReceivedRange received{.bytes = trainer.offered.bytes, .is_lent = true};
    if (trainer.offered.lent_number != here.borrowed) {
      received.lent =
          take_lent(job, trainer.rank, trainer.offered, weights_of(job, trainer.rank), transport);
    }
    return received;
  }
  auto fds = take_fds(job, trainer.rank, trainer.offered.numbers(), weights_of(job, trainer.rank),
                      transport);
  return {.bytes = trainer.offered.bytes,
          .chunk_bytes = trainer.offered.chunk_bytes,
          .fds = std::move(fds)};
}

}  // namespace awex
