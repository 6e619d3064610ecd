#pragma once

#include "cpu/decode_attention.h"

namespace flashjanus {

// Like decode_attention, for many queries per row: in bfloat16, with heads of a multiple of 32 channels.
using TiledAttentionParams = DecodeAttentionParams;

}  // namespace flashjanus
