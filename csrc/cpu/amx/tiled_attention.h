#pragma once

#include "cpu/decode_attention.h"

namespace flashjanus {

// As decode_attention, for many queries a row: in bfloat16, heads of a multiple of 32 channels.
using TiledAttentionParams = DecodeAttentionParams;

}  // namespace flashjanus
