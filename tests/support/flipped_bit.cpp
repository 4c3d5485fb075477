#include "support/flipped_bit.hpp"

void awex::test::flip_bits(std::byte* where, std::byte bits) { *where ^= bits; }
