#pragma once

namespace awex {

/// "0.1.0+g1a2b3c4d5e6f": the program's version, and the commit that it was built from, with
/// ".d<hash of the sources>" behind it where they had been changed; "0.1.0+s<hash of the sources>"
/// without git. Part of the fingerprint that all ranks must share: two builds that differ may plan
/// differently.
[[nodiscard]] const char* build_identity();

}  // namespace awex
