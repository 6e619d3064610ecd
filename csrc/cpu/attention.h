#pragma once

#include "cpu/decode_attention.h"

namespace flashjanus {

// Like decode_attention, for many queries per row.
using AttentionParams = DecodeAttentionParams;

}  // namespace flashjanus
